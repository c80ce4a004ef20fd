"""The learning rate as a pure function of how much of the budget is used, so that it fits tokens, FLOPs and seconds."""

from __future__ import annotations

import math
from typing import Literal

Shape = Literal["linear", "1-sqrt"]


def learning_rate(progress: float, *, peak: float, floor: float = 0.0, warmup: float = 0.0, decay: float = 0.0,
                  shape: Shape = "linear") -> float:
    """Warm-up, stable, decay.

    progress: share of the budget used, 0 to 1 (values beyond are clamped). `warmup` and `decay` are the shares spent
    rising from 0 to `peak` and falling to `floor`. "linear" falls by u and "1-sqrt" by sqrt(u), where u runs from 0
    to 1 over the decay (Hagele et al. 2024, 2405.18392, section 3: the latter falls fast first and ends gently).
    """
    progress = min(max(progress, 0.0), 1.0)
    if progress < warmup:
        return peak * progress / warmup
    begin = 1.0 - decay
    if not decay or progress <= begin:
        return peak
    u = (progress - begin) / decay
    fallen = math.sqrt(u) if shape == "1-sqrt" else u
    return floor + (peak - floor) * (1.0 - fallen)
