"""A weight with a change beside it: what goes into its product and what comes out are mapped, the product stays.

The product itself is the one that the bare weight gets, so that a change that does nothing leaves every bit as it was.

Legend: N rows, D width, M outputs, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F


class Change(Protocol):
    """What is done around the product with a weight [M, D], or around those with a stack's experts [E, M, D]."""

    maps_input: bool  # whether `before` does anything

    @property
    def requires_grad(self) -> bool:
        """Whether something of it is trained."""

    def before(self, x: Tensor) -> Tensor:
        """What the product is taken of: [..., D] -> [..., D]."""

    def after(self, x: Tensor, y: Tensor, weight: Any) -> Tensor:
        """The adapted result [..., M] of what came in, x, and what the product gave, y."""

    def bias(self, bias: Tensor, weight: Any) -> Tensor:
        """The bias [M] that is added behind."""

    def __getitem__(self, expert: int | None) -> Change:
        """The change of one expert of a stack; with None that of a stack of one."""

    def unbind(self) -> Sequence[Change]:
        """The changes of a stack's experts, their gradients gathered once."""


@dataclass(frozen=True, eq=False)
class AdaptedWeight:
    """A weight in any form with a change beside it; it stands where a weight stands."""

    base: Any  # the form to compute with: plain, packed, int8
    own: Any  # the numbers that changes may read: plain or int8
    change: Change

    @property
    def shape(self) -> torch.Size:
        """Shape of the weight."""
        shape: torch.Size = self.base.shape
        return shape

    @property
    def requires_grad(self) -> bool:
        """Whether a gradient is asked for by the weight or by its change."""
        of_base = isinstance(self.base, Tensor) and bool(self.base.requires_grad)
        return of_base or self.change.requires_grad

    def __getitem__(self, expert: Any) -> AdaptedWeight:
        change = self.change[expert]
        return self._of(expert, change)

    def unbind(self) -> list[AdaptedWeight]:
        """The experts of a stack."""
        changes = self.change.unbind()
        return [self._of(expert, change) for expert, change in enumerate(changes)]

    def _of(self, expert: Any, change: Change) -> AdaptedWeight:
        base = self.base[expert]
        own = self.own[expert]
        return AdaptedWeight(base, own, change)

    def around(self, x: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
        """The adapted result of x [..., D], `product` being the bare weight's."""
        y = product(self.change.before(x))
        return self.change.after(x, y, self.own)

    def around_experts(self, x_ND: Tensor, counts: Sequence[int], product: Callable[[Tensor], Tensor]) -> Tensor:
        """As `around` for rows sorted by expert; `product` takes them all through the bare stack."""
        changes = self.change.unbind()
        sizes = list(counts)
        parts = x_ND.split(sizes)
        mapped_ND = x_ND
        if self.change.maps_input:
            mapped = [change.before(part) for change, part in zip(changes, parts)]
            mapped_ND = torch.cat(mapped)
        y_NM = product(mapped_ND)
        done = []
        for expert, y in enumerate(y_NM.split(sizes)):
            change, own = changes[expert], self.own[expert]
            done.append(_after(change, parts[expert], y, own))
        return torch.cat(done)


def _after(change: Change, x_ND: Tensor, y_NM: Tensor, own: Any) -> Tensor:
    """What an expert's change makes of its rows.

    Products in bfloat16 are compiled for their number of rows, which is another at each step: rows of zeros make it a
    power of two, so that a few are compiled and used again.
    """
    rows = len(x_ND)
    if not rows or not x_ND.is_cpu or x_ND.dtype != torch.bfloat16:
        return change.after(x_ND, y_NM, own)
    missing = (1 << (rows - 1).bit_length()) - rows
    whole_x, whole_y = (F.pad(part, (0, 0, 0, missing)) for part in (x_ND, y_NM))
    return change.after(whole_x, whole_y, own)[:rows]


def bare(weight: Any) -> Any:
    """The weight without its change."""
    return weight.base if isinstance(weight, AdaptedWeight) else weight
