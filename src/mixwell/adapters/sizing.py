"""How large an adapter is made: the rank at which it trains about as many numbers as are wanted."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

from torch import nn

from mixwell.adapters.attached import attach
from mixwell.core.errors import MixwellError

GROWING = ("rank", "rank_in", "rank_out", "parallel", "sequential")  # options that a size sets, all to one number
BUDGET = "budget"  # option of methods whose rank costs nothing
MOST = 4096  # rank


def sized(method: Any, model: nn.Module, targets: Sequence[str] | str | None, config: Any, wanted: int,
          trained: Sequence[str] = ()) -> Any:
    """`config` with the rank at which the adapter comes nearest to `wanted` trained parameters.

    trained: patterns of parameters that are trained as they are and count as well, see `attached.attach`. Methods
    without a rank, or with a budget of their own beside it, have one size; where that is another by more than a tenth,
    and where rank 1 is too large by as much, `MixwellError` says how many there would be.
    """
    def count(config: Any) -> int:
        return _count(method, model, targets, config, trained)

    options = [option.name for option in fields(config)]
    names = [name for name in options if name in GROWING]
    if not names or BUDGET in options:
        why = f"is as large as its {BUDGET} says" if names else "has one size only"
        _check_near(count(config), wanted, why)
        return config
    tried = functools.cache(lambda rank: _tried(count, config, names, rank))  # each is a look at the whole model
    low, high = 1, MOST
    while low < high:  # the smallest rank that has as many or more
        middle = (low + high) // 2
        there = tried(middle)
        if there is None or there >= wanted:
            high = middle
        else:
            low = middle + 1
    near = [rank for rank in (low - 1, low) if rank >= 1]
    counts = {rank: tried(rank) for rank in near}
    possible = {rank: size for rank, size in counts.items() if size is not None}
    best = min(possible, key=lambda rank: abs(possible[rank] - wanted), default=None)
    if best is None:
        raise MixwellError(f"parameters: {wanted} are more than this adapter's largest rank gives.")
    _check_near(possible[best], wanted, f"has rank {best} at the nearest")
    return _of_rank(config, names, best)


def _check_near(count: int, wanted: int, why: str) -> None:
    if abs(count - wanted) > 0.1 * wanted:
        raise MixwellError(f"parameters: {wanted} came; this adapter {why}, which trains {count}. Change its targets, "
                           "or the number.")


def _of_rank(config: Any, names: Sequence[str], rank: int) -> Any:
    return replace(config, **dict.fromkeys(names, rank))


def _tried(count: Callable[[Any], int], config: Any, names: Sequence[str], rank: int) -> int | None:
    """Trained numbers at a rank; None where the model's matrices have no such rank."""
    try:
        return count(_of_rank(config, names, rank))
    except MixwellError:
        if rank == 1:
            raise
        return None


def _count(method: Any, model: nn.Module, targets: Sequence[str] | str | None, config: Any,
           trained: Sequence[str]) -> int:
    there = attach(method, model, targets, config, trained=trained, begin=False)
    count = there.num_parameters
    there.detach()
    return count
