"""The vector of a text: what a model's head is given, over its tokens, brought to length 1.

Legend: N tokens, D width.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Pooling = Literal["mean", "last"]


class Pooled:
    """A prompt's vector in the making: of all its tokens' states the mean, or the last token's."""

    def __init__(self, pooling: Pooling) -> None:
        self.pooling = pooling
        self.total_D: Tensor | None = None

    def clear(self) -> None:
        """Begin anew."""
        self.total_D = None

    def add(self, states_ND: Tensor) -> None:
        """Take in the states of the tokens that come next."""
        wide_ND = states_ND.double()
        if self.pooling == "last":
            self.total_D = wide_ND[-1]
            return
        sum_D = wide_ND.sum(0)
        self.total_D = sum_D if self.total_D is None else self.total_D + sum_D

    def vector(self) -> tuple[float, ...]:
        """The vector; a mean points where its sum does. Zeros stay zeros."""
        assert self.total_D is not None
        length = self.total_D.norm()
        unit_D = self.total_D / length if float(length) else self.total_D
        return tuple(unit_D.tolist())
