"""`--ray`: where the tasks of a command run."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from mixwell.parallel.pools import RayPool


def pool_of(address: str | None, console: Console, threads: int = 1) -> AbstractContextManager[RayPool | None]:
    """The cluster at that address, none where none is named; what it loses is told on the console."""
    if address is None:
        return nullcontext(None)
    from mixwell.parallel.pools import ray_pool

    def tell(words: str) -> None:
        console.print(words, style="yellow", markup=False, soft_wrap=True)

    return ray_pool(address, threads, tell)
