"""Many clients' numbers into one, where some may lie: pure functions of rows.

Legend: C clients, P numbers of each, f clients that may lie.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mixwell.core.errors import MixwellError

Rule = Literal["mean", "median", "trimmed_mean", "krum", "geometric_median"]
STEPS = 100  # of Weiszfeld's iteration, at most
NEAR = 1e-10  # of the rows' spread: a move below it ends the iteration


class TooFew(MixwellError):
    """Fewer answers came than it takes to tell lies from the truth."""


@dataclass(frozen=True, kw_only=True)
class Aggregation:
    """How a server makes one answer of many."""

    rule: Rule = "mean"  # the mean is weighted by rows; the others count clients alike, since weights may be lies, too
    faulty: int = 0  # f, clients that may lie, as the server believes
    mixing: bool = False  # first each answer becomes the mean of the n - f nearest to it

    def __post_init__(self) -> None:
        if self.faulty < 0:
            raise ValueError(f"faulty is {self.faulty}; expected 0 or more clients")
        if self.rule == "mean" and self.faulty and not self.mixing:
            raise ValueError(f"faulty is {self.faulty} and rule is 'mean', which takes every answer as it is; choose "
                             f"another rule ({', '.join(RULES)}), or set mixing")


def combined(rows_CP: Tensor, weights_C: Tensor, config: Aggregation) -> Tensor:
    """One row [P] of the clients' rows [C, P], as the config says.

    Raises `TooFew` where so many may lie that the rule cannot tell.
    """
    faulty = config.faulty
    if config.mixing:
        rows_CP = nearest_mixing(rows_CP, faulty)
    if config.rule == "mean":
        return mean(rows_CP, weights_C)
    return RULES[config.rule](rows_CP, faulty)


def mean(rows_CP: Tensor, weights_C: Tensor) -> Tensor:
    """The mean [P], clients weighted."""
    share_C = weights_C / weights_C.sum()
    return share_C.to(rows_CP.dtype) @ rows_CP


def median(rows_CP: Tensor, faulty: int = 0) -> Tensor:
    """The median of each number; of two in the middle their mean."""
    require(rows_CP, 2 * faulty + 1, faulty)
    sorted_CP = rows_CP.sort(0).values
    below = (len(rows_CP) - 1) // 2
    above = len(rows_CP) // 2
    lower_P, upper_P = sorted_CP[below], sorted_CP[above]
    both_P = lower_P + upper_P
    return both_P / 2


def trimmed_mean(rows_CP: Tensor, faulty: int) -> Tensor:
    """The mean of each number without its f smallest and f largest."""
    require(rows_CP, 2 * faulty + 1, faulty)
    last = len(rows_CP) - faulty
    sorted_CP = rows_CP.sort(0).values
    kept_CP = sorted_CP[faulty:last]
    return kept_CP.mean(0)


def krum(rows_CP: Tensor, faulty: int) -> Tensor:
    """The row whose n - f - 2 nearest others lie nearest, by the sum of squared distances.

    Of fewer than 2 f + 3 rows f equal lies would be nearest to each other. A row that is not finite is never chosen.
    """
    require(rows_CP, 2 * faulty + 3, faulty)
    square_CC = distances(rows_CP).square()
    nearest_CC = square_CC.sort(1).values
    kept = len(rows_CP) - faulty - 1  # itself, at distance 0, among them
    score_C = nearest_CC[:, :kept].sum(1).nan_to_num(nan=torch.inf)
    best = score_C.argmin()
    return rows_CP[best]


def geometric_median(rows_CP: Tensor, faulty: int = 0) -> Tensor:
    """The point whose distances to the rows have the smallest sum (Weiszfeld's iteration); rows not finite are lies."""
    require(rows_CP, 2 * faulty + 1, faulty)
    finite_C = rows_CP.isfinite().all(1)
    rows_CP = rows_CP[finite_C]
    require(rows_CP, faulty + 1, faulty)
    point_P = median(rows_CP)
    spread = float(distances(rows_CP).max())
    near = max(NEAR * spread, torch.finfo(rows_CP.dtype).tiny)
    for _ in range(STEPS):
        away_C = (rows_CP - point_P).norm(dim=1)
        pull_C = 1 / away_C.clamp_min(near)
        moved_P = mean(rows_CP, pull_C)
        step = float((moved_P - point_P).norm())
        point_P = moved_P
        if step <= near:
            break
    return point_P


def nearest_mean(own_P: Tensor, rows_CP: Tensor, kept: int) -> Tensor:
    """The mean of the `kept` rows nearest to a point, of equally far ones the first."""
    away_C = (rows_CP - own_P).norm(dim=1)
    order_C = away_C.sort(stable=True).indices
    return rows_CP[order_C[:kept]].mean(0)


def nearest_mixing(rows_CP: Tensor, faulty: int) -> Tensor:
    """Each row [C, P] made the mean of the n - f rows nearest to it, itself among them."""
    require(rows_CP, faulty + 1, faulty)
    kept = len(rows_CP) - faulty
    mixed = [nearest_mean(row_P, rows_CP, kept) for row_P in rows_CP]
    return torch.stack(mixed)


def distances(rows_CP: Tensor) -> Tensor:
    """Distances [C, C] between rows, by differences: squares of large numbers would lose what is small."""
    away = [(rows_CP - row_P).norm(dim=1) for row_P in rows_CP]
    return torch.stack(away)


def require(rows_CP: Tensor, least: int, faulty: int) -> None:
    """Raise `TooFew` for fewer rows than `least`."""
    count = len(rows_CP)
    if count < least:
        raise TooFew(f"{count} answers came where {faulty} may be lies; expected at least {least}.")


RULES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "median": median, "trimmed_mean": trimmed_mean, "krum": krum, "geometric_median": geometric_median}
