"""Pieces on several cores: whole pieces side by side, each on one core.

Splitting every operation over the cores would make each of some ten short operations a piece wait for the slowest core,
which costs little on an idle machine and tenfold on a busy one. The results do not depend on the number of cores.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import TypeVar

import torch

from mixwell.density._rows import Piece

T = TypeVar("T")


def in_order(work: Callable[[Piece], T], pieces: Iterable[Piece]) -> Iterator[T]:
    """`map(work, pieces)`, on as many threads as torch may use; pieces are read only a few ahead."""
    pieces = iter(pieces)
    ahead = list(islice(pieces, 2))
    threads = torch.get_num_threads()
    if threads == 1 or len(ahead) < 2 or ahead[0].x_BD.device.type != "cpu":
        yield from map(work, chain(ahead, pieces))
        return
    waiting: deque[Future[T]] = deque()
    try:
        with ThreadPoolExecutor(threads, initializer=_alone) as pool:
            for piece in chain(ahead, pieces):
                waiting.append(pool.submit(work, piece))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    finally:
        torch.set_num_threads(threads)


def _alone() -> None:
    torch.get_num_threads()  # settles the thread's default first, or torch would overwrite the next line on first use
    torch.set_num_threads(1)
