"""Numbers as people write them, in files and on a command line: `7G`, `1e21`, `400T`."""

from __future__ import annotations

import math
import re

from mixwell.core.errors import MixwellError, shown
from mixwell.core.units import SUFFIXES

SUCH_AS = "7G or 1e21"
_NUMBER = re.compile(r"([-+]?\d+\.?\d*(?:[eE][-+]?\d+)?)\s*([a-zA-Z]?)")


def number(text: str, where: str, such_as: str = SUCH_AS) -> float:
    """A finite number, with k, M, G (or B), T or P for thousands to 10^15; anything else raises `MixwellError`."""
    match = _NUMBER.fullmatch(text.strip())
    if match is None or match[2] not in SUFFIXES:
        raise MixwellError(f"{where}: expected a number such as {such_as}, got {shown(text)}.")
    found = float(match[1]) * SUFFIXES[match[2]]
    if not math.isfinite(found):
        raise MixwellError(f"{where}: {shown(text)} is too large.")
    return found
