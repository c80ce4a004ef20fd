"""Student's T at whole degrees of freedom.

Reference: Student 1908; Abramowitz and Stegun 1964, 26.7.3 and 26.7.4.
"""

from __future__ import annotations

import math


def within(t: float, freedom: int) -> float:
    """P(-t <= T <= t) of Student's T with `freedom` (1 or more) degrees of freedom, exactly."""
    angle = math.atan(t / math.sqrt(freedom))
    sine = math.sin(angle)
    cosine = math.cos(angle)
    odd = freedom % 2 == 1
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= cosine * cosine * k / (k + 1)
    if not odd:
        return sine * total
    return 2.0 / math.pi * (angle + sine * total)


def quantile(freedom: int, inside: float = 0.95) -> float:
    """The t with P(-t <= T <= t) = `inside`, by bisection."""
    low, high = 0.0, 1.0
    while within(high, freedom) < inside:
        high *= 2.0
    for _ in range(60):
        middle = (low + high) / 2.0
        if within(middle, freedom) < inside:
            low = middle
        else:
            high = middle
    return high
