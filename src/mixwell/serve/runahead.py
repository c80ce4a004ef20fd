"""Prompts read by a chain of processes: each reads its piece as soon as the keys and values before it are there.

**Equation:** boundaries 0 = c_0 < .. < c_p = C. At layer l process i computes queries, keys and values of its rows
    c_i..c_{i+1}, is given those of rows before c_i by process i - 1, sends all up to c_{i+1} on, and attends under
    the causal mask. With R = c_{i+1} - c_i rows it begins and is done with the layer at
        s_{i,l} = max(t_{i,l-1} + a' R, s_{i-1,l} + kappa c_i / W)
        t_{i,l} = s_{i,l} + (a - a') R + b R (c_i + c_{i+1} + 1) / 2,
    kappa the bytes of a position's keys and values, W the link's bytes a second, a' the part of a row's work that makes
    them. The last process alone has all and tells the first token. The boundaries are searched: from even ones, one at
    a time moved by a stride that is halved around the best.
**Shapes:** hidden [C, D]; boundaries p + 1 numbers.
**Reference:** Cho et al. 2024, KV-Runahead (2405.05329), from its summary.
**Differs:** formulas as recalled: no code is public. Work counts the causal triangle alone. The search moves one
    boundary at a time, where the paper tries a grid of all. Transfers overlap with the attention of the sender.
**Fails when:** the prompt is short or the link slow beside the work: then one process is as fast.
**Cost:** traffic of sum_i c_i positions a layer (C (p - 1) / 2 for even pieces; to gather all by all is twice that).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mixwell.core.method import method
from mixwell.mixing import check_above, check_least
from mixwell.parallel.wire import Wire


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the chain, times in any one unit."""

    processes: int = 4  # p
    layers: int = 32
    row_time: float = 1.0  # a: of a row in a layer, without its attention
    project_time: float = 0.1  # a': the part of it that makes keys and values
    pair_time: float = 1e-4  # b: of a row and a position that it looks back on
    position_time: float = 0.05  # kappa / W: to send one position's keys and values on

    def __post_init__(self) -> None:
        check_least(self, processes=1, layers=1, project_time=0, pair_time=0, position_time=0)
        check_above(self, row_time=0)
        if self.project_time > self.row_time:
            raise ValueError(f"project_time is {self.project_time}; expected at most row_time, {self.row_time}")


def even(length: int, processes: int) -> list[int]:
    """Boundaries of even pieces."""
    places = range(processes + 1)
    return [length * place // processes for place in places]


def finish(bounds: Sequence[int], config: Config) -> float:
    """When the last process is done with the last layer."""
    done = [0.0] * config.processes  # of each process with the layer before
    for _ in range(config.layers):
        start = 0.0  # of the process before
        for i, (first, last) in enumerate(itertools.pairwise(bounds)):
            rows = last - first
            own = done[i] + config.project_time * rows
            given = start + config.position_time * first if i else 0.0
            start = max(own, given)
            done[i] = start + _rest(first, last, config)
    return done[-1]


def _rest(first: int, last: int, config: Config) -> float:
    """Time of the rows first..last behind their keys and values: each looks back on all before it and on itself."""
    rows = last - first
    pairs = rows * (first + last + 1) / 2
    return (config.row_time - config.project_time) * rows + config.pair_time * pairs


@method(title="Key-value runahead", paper="KV-Runahead: Scalable Causal LLM Inference by Parallel Key-Value Cache "
        "Generation", year=2024)
def runahead(length: int, config: Config) -> list[int]:
    """Boundaries [p + 1] of a prompt's pieces at which the last process is done soonest, as far as the search finds.

    Raises `ValueError` for a prompt with fewer tokens than processes.
    """
    if length < config.processes:
        raise ValueError(f"{length} tokens for {config.processes} processes; expected one for each")
    bounds, stride = even(length, config.processes), max(1, length // (2 * config.processes))
    best = finish(bounds, config)
    while stride:
        moved = min(_moves(bounds, stride), key=lambda each: finish(each, config), default=bounds)
        time = finish(moved, config)
        if time < best:
            bounds, best = moved, time
        else:
            stride //= 2
    return bounds


def _moves(bounds: Sequence[int], stride: int) -> list[list[int]]:
    """The boundaries with one of the inner ones moved by a stride, where they stay in order."""
    found = []
    for place in range(1, len(bounds) - 1):
        for step in (-stride, stride):
            moved = list(bounds)
            moved[place] += step
            if moved[place - 1] < moved[place] < moved[place + 1]:
                found.append(moved)
    return found


def passed_on(own_RHD: Tensor, bounds: Sequence[int], wire: Wire) -> Tensor:
    """Keys or values of all rows up to the worker's last: what came from the worker before, then its own."""
    have = own_RHD
    for turn in range(wire.size - 1):
        sent, received = [0] * wire.size, [0] * wire.size
        if wire.rank == turn:
            sent[turn + 1] = len(have)
        if wire.rank == turn + 1:
            received[turn] = bounds[turn + 1]
        leaving = have if wire.rank == turn else have[:0]
        came = wire.exchange(leaving, sent, received)
        have = torch.cat([came, have]) if wire.rank == turn + 1 else have
    return have


def attention(query_RHD: Tensor, key_RHD: Tensor, value_RHD: Tensor, bounds: Sequence[int], wire: Wire) -> Tensor:
    """A layer's causal attention [R, H, D] for the worker's rows bounds[rank]..bounds[rank + 1]."""
    keys_CHD = passed_on(key_RHD, bounds, wire)
    values_CHD = passed_on(value_RHD, bounds, wire)
    rows_R1 = torch.arange(bounds[wire.rank], bounds[wire.rank + 1]).unsqueeze(1)
    seen_RC = torch.arange(len(keys_CHD)) <= rows_R1
    query, keys, values = (part.transpose(0, 1) for part in (query_RHD, keys_CHD, values_CHD))
    mixed_HRD = F.scaled_dot_product_attention(query, keys, values, attn_mask=seen_RC)
    return mixed_HRD.transpose(0, 1)


def example(generator: torch.Generator) -> dict[str, Any]:
    """A prompt for three processes."""
    length = int(torch.randint(200, 400, (1,), generator=generator))
    return {"length": length, "config": Config(processes=3, layers=4)}
