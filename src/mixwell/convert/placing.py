"""Where a conversion's new tensors go as they are placed: settled from outside, for it is no part of any method."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor

from mixwell.convert._parts import Rewrite

Keep = Callable[[Tensor], Tensor]  # a new tensor -> one of the same numbers that is kept in its place


@contextmanager
def placing(keep: Keep | None) -> Iterator[None]:
    """A context in which `Rewrite.put` keeps what `keep` gives; None: tensors as they are. For one thread at a time."""
    if keep is None:
        yield
        return
    put = Rewrite.put

    def put_kept(work: Rewrite, layer: int, name: str, tensor: Tensor) -> None:
        put(work, layer, name, keep(tensor))

    Rewrite.put = put_kept  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        Rewrite.put = put  # type: ignore[method-assign]
