"""Copies of a sentence: of N that a corpus holds, the square root of N stay.

**Equation:** keep(N) = floor(N^p), p = 1/2; the first ones stay.
**Shapes:** ids [T], equal where sentences are; a mask [T] of those that stay.
**Reference:** 360Zhinao Technical Report 2024 (2405.13386).
**Differs:** joining what is left by sliding 16-grams for coherence is left out: what cuts a document is the user's.
    Rounding is not told in the report.
**Fails when:** ids come from a hash that is too short, or from near duplicates that are no sentences.
**Cost:** O(T log T).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.core.errors import MixwellError
from mixwell.core.method import method


@dataclass(frozen=True, kw_only=True)
class Config:
    """How many stay; `ValueError` for a value out of range."""

    power: float = 0.5  # p: 0 keeps one copy, 1 keeps all

    def __post_init__(self) -> None:
        if not 0 <= self.power <= 1:
            raise ValueError(f"power is {self.power}; expected 0 to 1")


@method(title="Square root of the copies", year=2024, paper="360Zhinao Technical Report")
def sentence_copies(ids_T: Tensor, config: Config) -> Tensor:
    """Which sentences stay: [T] of booleans. Other than whole numbers in one row raise `MixwellError`."""
    if ids_T.ndim != 1 or ids_T.is_floating_point():
        raise MixwellError(f"ids are {ids_T.dtype} of shape {tuple(ids_T.shape)}; expected whole numbers in one row.")
    _, group_T, count_G = torch.unique(ids_T, return_inverse=True, return_counts=True)
    power_G = count_G.double() ** config.power
    kept_G = torch.floor(power_G + 1e-9)
    before_T = nth(group_T, count_G)
    return before_T < kept_G[group_T]


def nth(group_T: Tensor, count_G: Tensor) -> Tensor:
    """How many of its group came before: [T]."""
    order_T = torch.argsort(group_T, stable=True)
    start_G = torch.cumsum(count_G, 0) - count_G
    place_T = torch.arange(len(group_T))
    before_T = place_T - start_G[group_T[order_T]]
    found_T = torch.empty_like(before_T)
    found_T[order_T] = before_T
    return found_T


def example(generator: torch.Generator) -> dict[str, Any]:
    """Forty sentences, of which there are six."""
    ids_T = torch.randint(6, (40,), generator=generator)
    return {"ids_T": ids_T, "config": Config()}
