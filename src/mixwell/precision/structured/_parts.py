"""What structured matrices share: factors of low rank, even factors of a size, and ranks of a layer's matrices.

Legend: O rows, I columns, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from mixwell.core.rng import normal
from mixwell.mixing import Structured


def halves(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(U S^1/2 [..., O, R], S^1/2 V^T [..., R, I]) of the leading singular parts, in the weight's type."""
    U, S, Vh = torch.linalg.svd(weight, full_matrices=False)
    leading = S[..., :rank]
    roots = leading.sqrt()
    left = U[..., :rank]
    right = Vh[..., :rank, :]
    return left * roots.unsqueeze(-2), roots.unsqueeze(-1) * right


def drawn_halves(rows: int, columns: int, rank: int, std: float,
                 generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """`halves` of a matrix of normal draws."""
    whole = normal((rows, columns), std, generator)
    if whole.is_meta:  # a shape without values has no singular ones
        return whole.new_empty(rows, rank), whole.new_empty(rank, columns)
    left, right = halves(whole, rank)
    return left.contiguous(), right.contiguous()


def uniform(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """Draws between 0 and 1, on the generator's device."""
    device = torch.get_default_device() if generator is None else generator.device
    if device.type == "meta":  # as in `normal`
        return torch.empty(shape, device=device)
    return torch.rand(shape, generator=generator, device=device)


def check_rank(rank: int, rows: int, columns: int) -> None:
    """Raise `ValueError` for a rank that no matrix of this shape has."""
    most = min(rows, columns)
    if not 1 <= rank <= most:
        raise ValueError(f"rank is {rank} for a matrix of {rows} x {columns}; expected 1 to {most}")


def each_rank(ranks: Sequence[int] | None, rank: int, count: int) -> list[int]:
    """The rank of each matrix of a layer; raises `ValueError` where the list is of another length."""
    if ranks is None:
        return [rank] * count
    if len(ranks) != count:
        raise ValueError(f"ranks lists {len(ranks)} for {count} matrices of a layer; give one for each, or rank alone")
    return list(ranks)


class Ranked(Structured):
    """A matrix whose config has its `rank`, and `ranks` for those of a layer in turn."""

    @classmethod
    def build(cls, shapes: Sequence[tuple[int, int]], config: Any, generator: torch.Generator | None,
              std: float | None) -> list[Self]:
        """The matrices of one layer, each with its rank."""
        ranks = each_rank(config.ranks, config.rank, len(shapes))
        made = []
        for (rows, columns), rank in zip(shapes, ranks):
            own = replace(config, rank=rank, ranks=None)
            made.append(cls(rows, columns, own, generator, std))
        return made


def in_blocks(weight: Tensor, count: int) -> Tensor:
    """The blocks [n, n, p, q] of a matrix [n p, n q]."""
    rows, columns = weight.shape
    grid = weight.view(count, rows // count, count, columns // count)
    return grid.transpose(1, 2)


def even_factors(size: int) -> tuple[int, int]:
    """The two factors of `size` that are nearest to each other, the smaller one first."""
    roots = range(math.isqrt(size), 0, -1)
    small = next(root for root in roots if size % root == 0)
    return small, size // small


def parameter(value: Tensor) -> nn.Parameter:
    """A trainable tensor that shares no memory with others."""
    return nn.Parameter(value.detach().clone())


def structured_example(generator: torch.Generator, config: Any, rows: int = 8, columns: int = 12) -> dict[str, Any]:
    """Five rows of inputs for a matrix."""
    x = torch.randn(5, columns, generator=generator)
    return {"rows": rows, "columns": columns, "config": config, "x": x}
