"""Lists in running text."""

from __future__ import annotations

from collections.abc import Sequence


def listed(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`; no part at all raises `ValueError`."""
    *others, last = parts
    if not others:
        return last
    return f"{', '.join(others)} and {last}"
