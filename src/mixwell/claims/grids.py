"""Settings that a claim tries on its tuning seed, as many for the baseline as for the method."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

RATES = (1e-3, 3e-3, 1e-2)  # learning rates of small layers under Adam


def finer(values: Sequence[float], tries: int) -> tuple[float, ...]:
    """So many values from the first to the last at equal ratios, where the other side has a coefficient to try, too."""
    first, last = values[0], values[-1]
    ratio = (last / first) ** (1 / (tries - 1))
    found = []
    for place in range(tries):
        rate = first * ratio**place
        found.append(float(f"{rate:.3g}"))
    return tuple(found)


def variants(base: Mapping[str, Any], **values: Sequence[Any]) -> tuple[dict[str, Any], ...]:
    """`base` with every combination of the values: options of a router, coefficients of balance rules."""
    found = []
    for combination in itertools.product(*values.values()):
        changes = dict(zip(values, combination))
        found.append({**base, **changes})
    return tuple(found)
