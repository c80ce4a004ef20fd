"""Pieces on several cores: whole pieces side by side, each on one core.

Splitting every operation over the cores would make each of some ten short operations a piece wait for the slowest core,
which costs little on an idle machine and tenfold on a busy one. The results do not depend on the number of cores.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import TypeVar

import torch
from torch import Tensor

from mixwell.density.mixtures.em.rows import Piece

T = TypeVar("T")


class Workers:
    """Threads for the pieces of many passes; one operation runs on one core while they are open."""

    def __init__(self, device: torch.device) -> None:
        self.threads = torch.get_num_threads() if device.type == "cpu" else 1
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Workers:
        if self.threads > 1:
            torch.set_num_threads(1)  # here and in threads that start from now on
            self._pool = ThreadPoolExecutor(self.threads)
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()
            torch.set_num_threads(self.threads)

    def map(self, work: Callable[[Piece], T], pieces: Iterable[Piece]) -> Iterator[T]:
        """`map(work, pieces)` in order; pieces are read only a few ahead."""
        pieces = iter(pieces)
        ahead = list(islice(pieces, 2))
        if self._pool is None or len(ahead) < 2:
            yield from map(work, chain(ahead, pieces))
            return
        waiting: deque[Future[T]] = deque()
        for piece in chain(ahead, pieces):
            waiting.append(self._pool.submit(work, piece))
            if len(waiting) > 2 * self.threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class Scratch(threading.local):
    """Memory that one thread uses again for every piece: fresh pages cost more than the arithmetic done in them."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def empty(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """An uninitialised tensor, valid until this thread asks for `name` again."""
        size = math.prod(shape)
        flat = self._kept.get(name)
        if flat is None or not _serves(flat, size, like):
            flat = torch.empty(size, dtype=like.dtype, device=like.device)
            self._kept[name] = flat
        return flat[:size].view(shape)


def _serves(flat: Tensor, size: int, like: Tensor) -> bool:
    """Whether memory is large enough, of a type and on a device."""
    alike = flat.dtype == like.dtype and flat.device == like.device
    return alike and len(flat) >= size
