"""How large an adapter is made: the rank at which it trains about as many numbers as are wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from torch import nn

from mixwell.adapters.attached import attach
from mixwell.core.errors import MixwellError

GROWING = ("rank", "rank_in", "rank_out", "parallel", "sequential")  # options that a size sets, all to one number
MOST = 4096  # rank


def sized(method: Any, model: nn.Module, targets: Sequence[str] | str | None, config: Any, wanted: int) -> Any:
    """`config` with the rank at which the adapter comes nearest to `wanted` trained parameters.

    Methods without a rank have one size; where that is another by more than a tenth, and where rank 1 is too large by
    as much, `MixwellError` says how many there would be.
    """
    names = [option.name for option in fields(config) if option.name in GROWING]
    if not names:
        _check_near(_count(method, model, targets, config), wanted, "has one size only")
        return config
    low, high = 1, MOST
    while low < high:  # the smallest rank that has as many or more
        middle = (low + high) // 2
        count = _tried(method, model, targets, config, names, middle)
        if count is None or count >= wanted:
            high = middle
        else:
            low = middle + 1
    near = [rank for rank in (low - 1, low) if rank >= 1]
    counts = {rank: _tried(method, model, targets, config, names, rank) for rank in near}
    there = {rank: count for rank, count in counts.items() if count is not None}
    best = min(there, key=lambda rank: abs(there[rank] - wanted), default=None)
    if best is None:
        raise MixwellError(f"parameters: {wanted} are more than this adapter's largest rank gives.")
    _check_near(there[best], wanted, f"has rank {best} at the nearest")
    return _of_rank(config, names, best)


def _check_near(count: int, wanted: int, why: str) -> None:
    if abs(count - wanted) > 0.1 * wanted:
        raise MixwellError(f"parameters: {wanted} came; this adapter {why}, which trains {count}. Change its targets, "
                           "or the number.")


def _of_rank(config: Any, names: Sequence[str], rank: int) -> Any:
    return replace(config, **dict.fromkeys(names, rank))


def _tried(method: Any, model: nn.Module, targets: Sequence[str] | str | None, config: Any, names: Sequence[str],
           rank: int) -> int | None:
    """Trained numbers at a rank; None where the model's matrices have no such rank."""
    try:
        return _count(method, model, targets, _of_rank(config, names, rank))
    except MixwellError as error:
        if rank == 1:
            raise
        assert error
        return None


def _count(method: Any, model: nn.Module, targets: Sequence[str] | str | None, config: Any) -> int:
    there = attach(method, model, targets, config, begin=False)
    count = there.num_parameters
    there.detach()
    return count
