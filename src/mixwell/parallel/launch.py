"""Processes that torchrun started: who they are, and the groups that a layout makes of them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mixwell.parallel.team import Layout, Team
from mixwell.parallel.wire import LostWorker, ProcessWire

NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # of the environment
WAITING = timedelta(days=7)  # for orders: the first process may do alone what takes it hours


def processes() -> int:
    """How many processes torchrun started; 1 without it."""
    started = all(name in os.environ for name in NEEDED)
    return int(os.environ["WORLD_SIZE"]) if started else 1


class Crew:
    """The processes of a run: the first one does what a run does, and calls the others to train with it."""

    def __init__(self, team: Team, orders: Any) -> None:
        self.team = team
        self._orders = orders

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
        return json.loads(bytes(text.tolist()))

    def _broadcast(self, tensor: Tensor) -> Tensor:
        with self.team.world.told():
            dist.broadcast(tensor, src=0, group=self._orders)
        return tensor


@contextmanager
def crew(layout: Layout) -> Iterator[Crew | None]:
    """The processes of torchrun in that layout; None where there is one process.

    Raises `MixwellError` where the layout does not fit their number.
    """
    settled = layout.over(processes())
    if processes() == 1:
        yield None
        return
    both = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        dist.init_process_group(both, timeout=timedelta(seconds=layout.timeout_s))
    except dist.DistStoreError as error:
        raise LostWorker(f"not all of {processes()} processes came within {layout.timeout_s:g} s; what another said "
                         "tells why, or parallel.timeout_s gives them longer.") from error
    try:
        found = Crew(team_of(settled), dist.new_group(backend="gloo", timeout=WAITING))
        yield found
        if found.leads:
            found.order(None)
    finally:
        dist.destroy_process_group()


def team_of(layout: Layout) -> Team:
    """The team of this process: neighbours hold different experts, those `expert` apart the same."""
    size, expert = dist.get_world_size(), layout.expert
    blocks = [range(start, start + expert) for start in range(0, size, expert)]
    strides = [range(start, size, expert) for start in range(expert)]
    return Team(ProcessWire(), _own(blocks), _own(strides))


def _own(groups: Sequence[range]) -> ProcessWire:
    """The wire of the group that this process is in; every process must make all of them."""
    made = [(members, dist.new_group(list(members))) for members in groups]
    (own,) = [group for members, group in made if dist.get_rank() in members]
    return ProcessWire(own)


