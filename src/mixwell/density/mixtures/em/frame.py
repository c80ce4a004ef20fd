"""Standardised coordinates for Gaussian components, from one look at the rows.

N rows, B rows of a part, D columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mixwell.density._gaussian import TINY
from mixwell.density.mixtures.em.rows import Rows

PART_ROWS = 1 << 16  # rows summed at a time; so many of a stream do for its frame
ROUNDING = 1e-14  # share of the mean square below which a variance is rounding alone


class Sums(NamedTuple):
    """Of the observed values of every column: their weight, and their weighted sums and squares."""

    count_D: Tensor
    first_D: Tensor
    second_D: Tensor

    @classmethod
    def of(cls, x_BD: Tensor, weight_B1: Tensor | None) -> Sums:
        """Of some rows."""
        weight_BD = torch.ones_like(x_BD[:, :1]) if weight_B1 is None else weight_B1
        if bool(torch.isnan(x_BD.sum())):
            seen_BD = ~torch.isnan(x_BD)
            x_BD = torch.where(seen_BD, x_BD, 0.0)
            weight_BD = seen_BD * weight_BD
        weighted_BD = x_BD if weight_B1 is None else x_BD * weight_BD  # missing values are zeros here
        squares_BD = weighted_BD * x_BD
        weight_D = weight_BD.sum(0)
        count_D = weight_D.expand(x_BD.shape[1])
        return cls(count_D, weighted_BD.sum(0), squares_BD.sum(0))

    def __add__(self, other: Sums) -> Sums:  # type: ignore[override]
        pairs = zip(self, other)
        return Sums(*(a + b for a, b in pairs))

    def mean(self) -> Tensor:
        """(D,)."""
        return self.first_D / self.count_D.clamp(min=TINY)

    def variance(self) -> Tensor:
        """(D,); zero where it is rounding alone."""
        square_D = self.second_D / self.count_D.clamp(min=TINY)
        mean_D = self.mean()
        variance_D = (square_D - mean_D**2).clamp(min=0)
        rounding_D = ROUNDING * square_D
        return torch.where(variance_D <= rounding_D, 0.0, variance_D)


class Frame(NamedTuple):
    """Standardised coordinates `z = (x - shift) * scale`; scales are powers of two, so that they round nothing."""

    shift_D: Tensor
    scale_D: Tensor
    variance_D: Tensor  # of the data, in their own units

    @classmethod
    def of(cls, rows: Rows, weights_N: Tensor | None, kind: str, floor: float, whole: bool = False) -> Frame:
        """Mean and spread of the observed values; one spread for all columns where components are spherical.

        Of a stream the first rows do, unless the `whole` is asked for or a column hardly varies in them: only the
        conditioning depends on it.
        """
        origin_D, sums = None, None
        for part_BD, weight_B1, last in _parts(rows, weights_N):
            x_BD = part_BD.double()
            if origin_D is None:
                mean_D = Sums.of(x_BD, weight_B1).mean()
                origin_D = rows.processes.first(mean_D)
            own = Sums.of(x_BD - origin_D, weight_B1)
            sums = own if sums is None else sums + own
            if last and rows.streamed and not whole and _enough(sums, floor):
                break
        assert origin_D is not None and sums is not None
        total = Sums(*rows.processes.total(sums))
        mean_D = total.mean() + origin_D
        return cls.from_moments(mean_D, total.variance(), kind, floor)

    @classmethod
    def from_moments(cls, mean_D: Tensor, variance_D: Tensor, kind: str, floor: float) -> Frame:
        """A frame from the data's mean and variance."""
        spread_D = variance_D
        if kind == "spherical":
            spread_D = variance_D.mean().expand_as(variance_D)
        above_zero_D = spread_D + max(floor, TINY)
        exponent_D = torch.round(0.5 * torch.log2(above_zero_D))
        short_D = mean_D.float().double()  # a short number, which differences with float32 rows keep exact
        shift_D = torch.where(short_D.isfinite(), short_D, mean_D)
        scale_D = torch.exp2(-exponent_D)
        return cls(shift_D, scale_D, variance_D)


def _parts(rows: Rows, weights_N: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None, bool]]:
    """Some rows at a time, their weights (B, 1), and whether they are the last of what is in memory."""
    for start, chunk in rows.chunks():
        stop = start + len(chunk)
        for part_BD in chunk.split(PART_ROWS):
            end = start + len(part_BD)
            weight_B1 = None if weights_N is None else weights_N[start:end, None]
            yield part_BD, weight_B1, end == stop
            start = end


def _enough(sums: Sums, floor: float) -> bool:
    """Whether every column was seen often and varies."""
    seldom = float(sums.count_D.min()) < PART_ROWS
    if seldom:
        return False
    varies_D = sums.variance() > floor
    return bool(varies_D.all())
