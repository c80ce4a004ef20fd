"""What a rule may see of whole models before it merges pieces of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

Parts = tuple[Sequence[Tensor], Tensor | None]  # the models' pieces, and the base's
Pieces = Callable[[], Iterator[Parts]]  # called once for each pass over the models


def alone(tensors: Sequence[Tensor], base: Tensor | None) -> Pieces:
    """One tensor of each model as if it were all."""
    whole = list(tensors), base
    return lambda: iter([whole])
