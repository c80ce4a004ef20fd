"""Numbers in words for people: SI prefixes, sensible digits, a thin space before the unit."""

from __future__ import annotations

import math
import re
from typing import Any, TypeGuard

from mixwell.core.errors import MixwellError, shown

THIN = "\u202f"  # narrow no-break space
ABSENT = "–"
SUFFIXES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12, "P": 1e15}  # as people write them
_AMOUNT = re.compile(r"([-+]?\d+\.?\d*(?:[eE][-+]?\d+)?)\s*([a-zA-Z]?)")
_PREFIXES = ("", "k", "M", "G", "T", "P", "E")
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def pairs(text: str) -> dict[str, str]:
    """`flops=2T,bytes=20M` as text by name."""
    found = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        found[name.strip()] = value.strip()
    return found


def amount(text: str, where: str) -> float:
    """A finite number, with k, M, G (or B), T or P for thousands to 10^15; anything else raises `MixwellError`."""
    match = _AMOUNT.fullmatch(text.strip())
    if match is None or match[2] not in SUFFIXES:
        raise MixwellError(f"{where}: expected a number such as 7G or 1e21, got {shown(text)}.")
    found = float(match[1]) * SUFFIXES[match[2]]
    if not math.isfinite(found):
        raise MixwellError(f"{where}: {shown(text)} is too large.")
    return found


def is_number(value: Any) -> TypeGuard[float]:
    """Whether `value` is a finite int or float (a bool is not a number)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value)


def number(value: Any, digits: int = 3) -> str:
    """`value` with `digits` significant digits: 0.0312, 2.41, 12 300, 3.2 × 10⁻⁶. Anything else is a dash."""
    if not is_number(value):
        return ABSENT
    if value == 0:
        return "0"
    decimals = digits - 1
    rounded = f"{abs(value):.{decimals}e}"  # 9.996 becomes 1.00e+01, with the exponent of 10.0
    exponent = int(rounded.split("e")[1])
    if exponent < -3 or exponent > 5:
        mantissa = f"{value / 10.0**exponent:.{decimals}f}"
        power = str(exponent).translate(_SUPERSCRIPT)
        return _typeset(f"{mantissa}{THIN}×{THIN}10{power}")
    places = decimals - exponent
    return _typeset(f"{round(value, places):,.{max(places, 0)}f}")


def fixed(value: Any, decimals: int) -> str:
    """`value` with a fixed number of decimals, for columns that are to line up."""
    if not is_number(value):
        return ABSENT
    return _typeset(f"{value:.{decimals}f}")


def whole(value: Any) -> str:
    """A count with its thousands set apart."""
    if not is_number(value):
        return ABSENT
    return _typeset(f"{round(value):,}")


def _typeset(digits: str) -> str:
    """A true minus, and thin spaces between thousands."""
    return digits.replace(",", THIN).replace("-", "−")


def si(value: Any, unit: str = "", digits: int = 3) -> str:
    """`value` with an SI prefix: 12 345 678 -> `12.3 M`, 3.2e12 FLOP -> `3.20 TFLOP`, 950 B -> `950 B`."""
    if not is_number(value):
        return ABSENT
    scaled, prefix = _prefixed(value, digits)
    exact = not prefix and float(value).is_integer()
    text = _typeset(f"{value:.0f}") if exact else number(scaled, digits)
    return _joined(text, prefix + unit)


def tick(value: float) -> str:
    """The shortest form with an SI prefix, for an axis of round numbers: `0`, `250 k`, `1.5 M`."""
    scaled, prefix = _prefixed(value, 6)
    return _joined(_typeset(f"{scaled:g}"), prefix)


def _prefixed(value: float, digits: int) -> tuple[float, str]:
    scaled = float(value)
    for prefix in _PREFIXES[:-1]:
        rounded = float(f"{scaled:.{digits - 1}e}")
        if abs(rounded) < 1000:
            return scaled, prefix
        scaled /= 1000
    return scaled, _PREFIXES[-1]


def _joined(text: str, unit: str) -> str:
    return f"{text}{THIN}{unit}" if unit else text


def counted(number: int, what: str, several: str = "") -> str:
    """`1 row`, `3 rows`; `several` where the plural is another than with an s."""
    plural = several or f"{what}s"
    name = what if number == 1 else plural
    return f"{whole(number)} {name}"


def seconds(value: Any) -> str:
    """A duration: `52 ms`, `0.42 s`, `12.3 s`, `4 min 05 s`, `2 h 07 min`."""
    if not is_number(value):
        return ABSENT
    if 0 < value < 0.0995:
        return f"{number(1000 * value, 2)}{THIN}ms"
    if value < 59.95:
        return f"{number(value, 3 if value >= 10 else 2)}{THIN}s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes}{THIN}min{THIN}{rest:02d}{THIN}s"
    return f"{minutes // 60}{THIN}h{THIN}{minutes % 60:02d}{THIN}min"


def percent(fraction: Any, decimals: int = 1, sign: bool = False) -> str:
    """A fraction as a percentage; `sign` also writes the plus."""
    if not is_number(fraction):
        return ABSENT
    return f"{100 * fraction:{'+' if sign else ''}.{decimals}f}{THIN}%".replace("-", "−")
