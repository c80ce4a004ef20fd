"""Nets on the way from one to another."""

from __future__ import annotations

import torch
from torch import Tensor

from mixwell.claims.merge._digits import Tensors


def between(base: Tensors, net: Tensors, share: float) -> dict[str, Tensor]:
    """The base plus this share of the net's change from it, beyond the net where it is above 1."""
    found = {}
    for name, start in base.items():
        end = net[name]
        found[name] = torch.lerp(start, end, share)
    return found
