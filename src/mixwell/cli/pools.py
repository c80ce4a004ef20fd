"""`--ray`: where the tasks of a command run."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import typer
from rich.console import Console

if TYPE_CHECKING:
    from mixwell.parallel.pools import RayPool

RAY = typer.Option(metavar="ADDRESS", help="Run on a Ray cluster (mixwell[ray]): local, auto, or ray://host:10001.  "
                                           "[default: this machine's processes]")


def pool_of(address: str | None, console: Console, threads: int | None = 1) -> AbstractContextManager[RayPool | None]:
    """The cluster at that address, none where none is named; what it loses is told on the console.

    threads: of a task; None for as many as this process computes with.
    """
    if address is None:
        return nullcontext(None)
    import torch

    from mixwell.parallel.pools import ray_pool

    def tell(words: str) -> None:
        console.print(words, style="yellow", markup=False, soft_wrap=True)

    return ray_pool(address, threads or torch.get_num_threads(), tell)
