"""Entries of vectors that are sent in the place of all: the largest, or some by chance."""

from __future__ import annotations

import torch
from torch import Tensor


def top_k(rows_CD: Tensor, keep: int) -> Tensor:
    """Each row's `keep` largest entries by size, the others 0: [C, D]."""
    _check(rows_CD, keep)
    places_CK = rows_CD.abs().topk(keep, dim=1).indices
    return _only(rows_CD, places_CK)


def rand_k(rows_CD: Tensor, keep: int, generator: torch.Generator | None = None) -> Tensor:
    """`keep` entries of each row by chance, D / keep times as large, the others 0: right on average [C, D]."""
    _check(rows_CD, keep)
    draws_CD = torch.rand(rows_CD.shape, generator=generator)
    places_CK = draws_CD.topk(keep, dim=1).indices
    width = rows_CD.shape[1]
    return width / keep * _only(rows_CD, places_CK)


def _only(rows_CD: Tensor, places_CK: Tensor) -> Tensor:
    kept_CK = rows_CD.gather(1, places_CK)
    return torch.zeros_like(rows_CD).scatter(1, places_CK, kept_CK)


def _check(rows_CD: Tensor, keep: int) -> None:
    width = rows_CD.shape[1]
    if not 1 <= keep <= width:
        raise ValueError(f"keep is {keep} of {width} entries; expected 1 to {width}")
