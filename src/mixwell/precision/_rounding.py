"""Rounding that is learned: how far each weight goes up, from a number of its own, and what drives it to an end."""

from __future__ import annotations

import torch
from torch import Tensor

STRETCH, BELOW = 1.2, 0.1  # zeta - gamma and -gamma
FIRST, LAST = 20.0, 2.0  # beta


def share_up(V: Tensor) -> Tensor:
    """h(V), how far up each weight goes, 0 to 1."""
    stretched = STRETCH * V.sigmoid() - BELOW
    return stretched.clamp(0, 1)


def start(fraction: Tensor) -> Tensor:
    """The V at which h is the fraction of a step that is left above the floor."""
    share = (fraction + BELOW) / STRETCH
    return torch.logit(share)


def undecided(h: Tensor, beta: float) -> Tensor:
    """Sum of 1 - |2 h - 1|^beta: 0 where each weight goes all the way up or stays."""
    sides = (2 * h - 1).abs()
    return (1 - sides**beta).sum()


def beta_at(step: int, steps: int, warm_up: float) -> float | None:
    """The exponent at one of so many steps; None while warming up, the first share of them."""
    waiting = warm_up * steps
    if step < waiting:
        return None
    done = (step - waiting) / (steps - waiting)
    return FIRST + done * (LAST - FIRST)
