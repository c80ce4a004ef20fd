"""Families side by side over blocks of columns that are independent within a component.

A block is anything with a `kind` and `columns`. B rows of a piece, S starts, K components.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mixwell.density.mixtures.em.loop import Family, Params, Tally
from mixwell.density.mixtures.em.rows import Piece


class Part:
    """Sufficient statistics of one block, with the arithmetic of a tensor field by field."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def _with(self, fields: Iterable[Tensor]) -> Part:
        return Part(type(self.value)(*fields))

    def __add__(self, other: Part) -> Part:
        pairs = zip(self.value, other.value)
        return self._with(a + b for a, b in pairs)

    def __rmul__(self, factor: float) -> Part:
        return self._with(factor * a for a in self.value)

    def __truediv__(self, divisor: Tensor) -> Part:
        return self._with(a / divisor for a in self.value)


class Sums(tuple):
    """Sufficient statistics of all blocks."""

    def __new__(cls, *parts: Part) -> Sums:
        return super().__new__(cls, parts)

    def __getnewargs__(self) -> tuple[Part, ...]:  # for copies and pickles
        return tuple(self)


class Product(Family):
    """Families side by side; a level of them all is one of each."""

    def __init__(self, blocks: Sequence[Any], families: Sequence[Family]) -> None:
        self.blocks = blocks
        self.families = families

    def part(self, params: Params | None, i: int) -> Params | None:
        """Parameters of block i; the weights count in the first block only."""
        if params is None:
            return None
        weights = params["weights"]
        own = {"weights": weights if i == 0 else torch.ones_like(weights)}
        for name, value in params.items():
            block, _, own_name = name.partition(".")
            if block == str(i):
                own[own_name] = value
        return own

    def levels(self, params: Params | None) -> tuple[Any, ...]:
        ladders = [family.levels(self.part(params, i)) for i, family in enumerate(self.families)]
        longest = max(len(ladder) for ladder in ladders)
        padded = [_padded(ladder, longest) for ladder in ladders]
        return tuple(zip(*padded))

    def online_level(self) -> Any:
        return tuple(family.online_level() for family in self.families)

    def trusts(self, params: Params, level: Any) -> bool:
        return self._distrusting(params, level) is None

    def _distrusting(self, params: Params, level: Any) -> int | None:
        """The first block whose parameters are no use."""
        for i, family in enumerate(self.families):
            own = self.part(params, i)
            assert own is not None
            if not family.trusts(own, level[i]):
                return i
        return None

    def refuse(self, params: Params) -> None:
        most_careful = self.levels(params)[-1]
        i = self._distrusting(params, most_careful)
        assert i is not None
        own = self.part(params, i)
        assert own is not None
        self.families[i].refuse(own)

    def kernel(self, params: Params | None, level: Any) -> ProductKernel:
        kernels = []
        for i, family in enumerate(self.families):
            own = self.part(params, i)
            kernels.append(family.kernel(own, level[i]))
        return ProductKernel(self.blocks, kernels)

    def maximise(self, tally: Tally, params: Params | None, level: Any) -> Params:
        new: Params = {}
        for i, part in enumerate(tally.statistics):
            sums = Tally(part.value, tally.log_likelihood_S, tally.weight)
            own = self.part(params, i)
            found = self.families[i].maximise(sums, own, level[i])
            weights = found.pop("weights")
            if i == 0:
                new["weights"] = weights
            new |= {f"{i}.{name}": value for name, value in found.items()}
        return new


class ProductKernel:
    """Log densities of all blocks added up."""

    def __init__(self, blocks: Sequence[Any], kernels: Sequence[Any]) -> None:
        self.blocks, self.kernels = blocks, kernels
        self.patterned = _places_of_numbers(blocks)

    def rows(self, starts_times_components: int) -> int:
        """Rows of a piece."""
        return min(kernel.rows(starts_times_components) for kernel in self.kernels)

    def _pieces(self, piece: Piece) -> Iterator[tuple[Any, Piece]]:
        for block, kernel, places in zip(self.blocks, self.kernels, self.patterned):
            observed = piece.observed_PD if block.kind == "numeric" else None
            if observed is not None:
                observed = observed[:, places]
            own_BD = piece.x_BD[:, list(block.columns)]
            yield kernel, Piece(own_BD, piece.index, observed)

    def state(self, piece: Piece) -> list[Any]:
        """What `tally` needs of a piece when the responsibilities are given."""
        pairs = self._pieces(piece)
        return [kernel.state(own) for kernel, own in pairs]

    def joint(self, piece: Piece) -> tuple[list[Any], Tensor]:
        """States, and log weight plus log density (S, K, B)."""
        states, logs = [], []
        for kernel, own in self._pieces(piece):
            state, log_SKB = kernel.joint(own)
            states.append(state)
            logs.append(log_SKB)
        return states, torch.stack(logs).sum(0)

    def tally(self, states: list[Any], resp_SKB: Tensor) -> Sums:
        """Every block's sums under the shared responsibilities."""
        pairs = zip(self.kernels, states)
        parts = [Part(kernel.tally(state, resp_SKB)) for kernel, state in pairs]
        return Sums(*parts)


def _padded(ladder: tuple[Any, ...], length: int) -> tuple[Any, ...]:
    """A ladder whose last way stands as often as it takes."""
    missing = length - len(ladder)
    return ladder + ladder[-1:] * missing


def _places_of_numbers(blocks: Sequence[Any]) -> list[slice]:
    """Where the columns of numeric blocks stand among all numeric columns."""
    places, first = [], 0
    for block in blocks:
        width = len(block.columns) if block.kind == "numeric" else 0
        places.append(slice(first, first + width))
        first += width
    return places
