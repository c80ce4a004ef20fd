"""Processes that torchrun started: who they are, and the groups that a layout makes of them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mixwell.core.errors import MixwellError
from mixwell.parallel.team import Layout, Team
from mixwell.parallel.wire import LostWorker, ProcessWire

NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # of the environment
WAITING = timedelta(days=7)  # for orders: the first process may do alone what takes it hours
LAYOUT, TOLD = "mixwell/layout", "mixwell/told"  # keys of the store that all processes see
SILENT = 2  # exit status of a process that ends after another has said why
LOOK_S = 0.1  # between two looks whether the first process has come


def processes() -> int:
    """How many processes torchrun started; 1 without it."""
    started = all(name in os.environ for name in NEEDED)
    return int(os.environ["WORLD_SIZE"]) if started else 1


class Crew:
    """The processes of a run: the first one does what a run does, and calls the others to train with it."""

    def __init__(self, team: Team, orders: Any, store: Any) -> None:
        self.team = team
        self._orders, self._store = orders, store
        self._free = False  # whether the first process has let this one go

    @property
    def leads(self) -> bool:
        """Whether this is the first process."""
        return self.team.leads

    def order(self, order: Mapping[str, Any] | None) -> None:
        """Tell the others what to do, as plain data; None lets them go."""
        text = json.dumps(order).encode()
        self._broadcast(torch.tensor([len(text)]))
        self._broadcast(torch.tensor(list(text), dtype=torch.uint8))

    def wait(self) -> dict[str, Any] | None:
        """The next order of the first process."""
        length = self._broadcast(torch.zeros(1, dtype=torch.int64))
        text = self._broadcast(torch.zeros(int(length), dtype=torch.uint8))
        order = json.loads(bytes(text.tolist()))
        self._free = order is None
        return order

    def part(self) -> None:
        """End together: the first process lets the others go, which wait for that."""
        if self.leads:
            self.order(None)
        elif not self._free:
            self.wait()

    def tells(self) -> bool:
        """Whether this process is the first to say why all end; of many that fail, one speaks."""
        own = str(self.team.rank)
        try:
            return self._store.compare_set(TOLD, "", own) == own.encode()
        except RuntimeError:  # the process that kept the store has ended
            return True

    def _broadcast(self, tensor: Tensor) -> Tensor:
        with self.team.world.told():
            dist.broadcast(tensor, src=0, group=self._orders)
        return tensor


@contextmanager
def crew(layout: Layout | None) -> Iterator[Crew | None]:
    """The processes of torchrun in that layout; None where there is one process.

    layout: None takes what the first process was given. Raises `MixwellError` where it does not fit their number, and
    `SystemExit` for what ends this process after another has said why.
    """
    if processes() == 1:
        if layout is not None:
            layout.over(1)
        yield None
        return
    settled = None if layout is None else layout.over(processes())
    store, settled = _met(settled)
    found = _joined(store, settled)
    try:
        yield found
        found.part()
    except KeyboardInterrupt as stop:
        if found.leads and found.tells():
            raise
        raise SystemExit(SILENT) from stop
    except Exception as error:
        if found.tells() or not isinstance(error, MixwellError):
            raise
        raise SystemExit(SILENT) from error
    finally:
        dist.destroy_process_group()


def _met(layout: Layout | None) -> tuple[Any, Layout]:
    """The store that all processes see, and the layout: this process's own, or that of the first."""
    longest = Layout().timeout_s if layout is None else layout.timeout_s
    try:
        meeting = dist.rendezvous("env://", timeout=timedelta(seconds=longest))
        store, rank, _ = next(meeting)
    except dist.DistStoreError as error:
        raise _absent(longest) from error
    if layout is None:
        told = _heard(store, longest)
        return store, Layout(**told)
    if rank == 0:
        store.set(LAYOUT, json.dumps(asdict(layout)))
    return store, layout


def _heard(store: Any, longest_s: float) -> dict[str, Any]:
    """The layout that the first process lays down. Looked for in turns, so that a signal ends the wait."""
    until = time.monotonic() + longest_s
    while not store.check([LAYOUT]):
        if time.monotonic() > until:
            raise _absent(longest_s)
        time.sleep(LOOK_S)
    return dict(json.loads(store.get(LAYOUT)))


def _joined(store: Any, layout: Layout) -> Crew:
    both = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    rank = int(os.environ["RANK"])
    try:
        dist.init_process_group(both, store=store, rank=rank, world_size=processes(),
                                timeout=timedelta(seconds=layout.timeout_s))
    except dist.DistStoreError as error:
        raise _absent(layout.timeout_s) from error
    return Crew(team_of(layout), dist.new_group(backend="gloo", timeout=WAITING), store)


def _absent(longest_s: float) -> LostWorker:
    return LostWorker(f"not all of {processes()} processes came within {longest_s:g} s; what another said tells why, "
                      "or parallel.timeout_s gives them longer.")


def team_of(layout: Layout) -> Team:
    """The team of this process: neighbours hold different experts, those `expert` apart the same."""
    if layout.shard:
        from mixwell.parallel.shards import Sharded  # which takes a second to load

        return Sharded(ProcessWire())
    size, expert = dist.get_world_size(), layout.expert
    blocks = [range(start, start + expert) for start in range(0, size, expert)]
    strides = [range(start, size, expert) for start in range(expert)]
    return Team(ProcessWire(), _own(blocks), _own(strides))


def _own(groups: Sequence[range]) -> ProcessWire:
    """The wire of the group that this process is in; every process must make all of them."""
    made = [(members, dist.new_group(list(members))) for members in groups]
    (own,) = [group for members, group in made if dist.get_rank() in members]
    return ProcessWire(own)


