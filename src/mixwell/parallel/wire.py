"""Wires between workers that compute together: threads of this process, or processes under torchrun.

Every worker of a wire must make the same calls in the same order. `sent` counts the bytes that leave a worker, as the
usual algorithms send them (`LEAVING`), `calls` how often it was asked.

Legend: N rows to send, M rows that come.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mixwell.core.errors import MixwellError

Result = TypeVar("Result")
LONGEST_S = 300.0  # that a thread waits for the others
# kind of call -> times the bytes of a worker's tensor that leave it, for so many workers; of an exchange, where each
# worker gets an equal part
LEAVING: dict[str, Callable[[int], float]] = {
    "exchange": lambda size: (size - 1) / size,
    "gather": lambda size: size - 1,
    "total": lambda size: 2 * (size - 1) / size,
}


class LostWorker(MixwellError):
    """A worker does not answer any more."""


class Wire(ABC):
    """One worker's end: its number `rank` among `size`."""

    rank: int
    size: int
    sent: Counter[str]  # bytes by kind of call
    calls: Counter[str]  # calls by kind

    def exchange(self, rows: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        """Rows [N, ...], `sent[r]` of them for each worker r in turn, for the rows [M, ...] that come back likewise."""
        away = rows.shape[0] - sent[self.rank]
        self._count("exchange", rows, away / max(rows.shape[0], 1))
        return self._exchange(rows.contiguous(), sent, received)

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all workers, of one shape, in their order."""
        self._count("gather", tensor, LEAVING["gather"](self.size))
        return self._gather(tensor.contiguous())

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over the workers."""
        self._count("total", tensor, LEAVING["total"](self.size))
        return self._total(tensor)

    @contextmanager
    def told(self) -> Iterator[None]:
        """A block in which a lost connection is told as `LostWorker`."""
        yield

    def _count(self, kind: str, tensor: Tensor, times: float) -> None:
        size = tensor.numel() * tensor.element_size()
        self.sent[kind] += round(size * times)
        self.calls[kind] += 1

    @abstractmethod
    def _exchange(self, rows: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor: ...

    @abstractmethod
    def _gather(self, tensor: Tensor) -> list[Tensor]: ...

    @abstractmethod
    def _total(self, tensor: Tensor) -> Tensor: ...


class ProcessWire(Wire):
    """Processes of a torch.distributed group (None: all of them)."""

    def __init__(self, group: Any = None) -> None:
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.sent, self.calls = Counter(), Counter()

    def _exchange(self, rows: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        came = rows.new_empty(sum(received), *rows.shape[1:])
        with self.told():
            dist.all_to_all_single(came, rows, list(received), list(sent), group=self.group)
        return came

    def _gather(self, tensor: Tensor) -> list[Tensor]:
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        with self.told():
            dist.all_gather(parts, tensor, group=self.group)
        return parts

    def _total(self, tensor: Tensor) -> Tensor:
        summed = tensor.clone(memory_format=torch.contiguous_format)
        with self.told():
            dist.all_reduce(summed, group=self.group)
        return summed

    @contextmanager
    def told(self) -> Iterator[None]:
        """A block in which a lost connection is told as `LostWorker`."""
        try:
            yield
        except RuntimeError as error:
            cause = str(error).splitlines()[0].partition(". ")[0]
            raise LostWorker(f"process {self.rank} of {self.size} got no answer from another, which has ended or fell "
                             f"silent; what that one said before tells why ({cause}).") from error


class _Table:
    """Where threads lay down what the others read."""

    def __init__(self, size: int) -> None:
        self.places: list[Any] = [None] * size
        self.barrier = threading.Barrier(size)

    def laid(self, rank: int, value: Any) -> list[Any]:
        """What every thread laid down."""
        self.places[rank] = value
        self.barrier.wait(LONGEST_S)
        found = list(self.places)
        self.barrier.wait(LONGEST_S)  # nobody lays down the next thing before all have read
        return found


class ThreadWire(Wire):
    """Threads of this process."""

    def __init__(self, table: _Table, rank: int) -> None:
        self._table = table
        self.rank, self.size = rank, len(table.places)
        self.sent, self.calls = Counter(), Counter()

    def _exchange(self, rows: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        parts = rows.split(list(sent))
        laid = self._table.laid(self.rank, parts)
        came = [parts[self.rank] for parts in laid]
        counts = [len(part) for part in came]
        assert counts == list(received), f"{counts} rows came, {received} were expected"
        return torch.cat(came)

    def _gather(self, tensor: Tensor) -> list[Tensor]:
        laid = self._table.laid(self.rank, tensor)
        return [part.clone() for part in laid]

    def _total(self, tensor: Tensor) -> Tensor:
        laid = self._table.laid(self.rank, tensor)
        return torch.stack(laid).sum(0)

    def sub(self, members: Sequence[int]) -> ThreadWire:
        """A wire between some of the workers; each of them must call this with the same `members`, the others, too."""
        first, size = members[0], len(members)
        made = _Table(size) if self.rank == first else None
        tables = self._table.laid(self.rank, made)
        own = list(members).index(self.rank)
        return ThreadWire(tables[first], own)


def in_threads(size: int, work: Callable[[ThreadWire], Result]) -> list[Result]:
    """What `work` returns for each of `size` workers that run at once, in their order.

    Where one raises, the others stop waiting for it, and its error is raised.
    """
    table = _Table(size)
    results: list[Any] = [None] * size
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            results[rank] = work(ThreadWire(table, rank))
        except threading.BrokenBarrierError as error:
            errors.append(error)
        except BaseException as error:
            errors.insert(0, error)
            table.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results
