"""Calls of several models on one cluster: where each may lie, how long it takes there, and how long all of them do.

The costs are stated in the card of `parallel.reallocation`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from mixwell.parallel.cluster import Cluster
from mixwell.parallel.wire import LEAVING

Kind = Literal["generate", "judge", "train"]
KEPT = {"generate": 2.0, "judge": 2.0, "train": 18.0}  # bytes a weight while a call runs
PASSES = {"generate": 1.0, "judge": 1.0, "train": 3.0}  # forward passes that a call's work is worth
LARGEST_TENSOR = 8


class Layout(NamedTuple):
    """How a model lies: its first device, and over how many it goes in each way."""

    first: int
    data: int
    tensor: int
    pipeline: int

    @property
    def devices(self) -> range:
        """Those of the block."""
        count = self.data * self.tensor * self.pipeline
        return range(self.first, self.first + count)


class Call(NamedTuple):
    """What one model does in an iteration."""

    name: str
    model: str
    kind: Kind
    after: tuple[str, ...]  # calls of the same iteration whose results it reads
    rows: int
    length: int  # tokens of a row
    new: int = 0  # of them written, one after another


class Model(NamedTuple):
    """A model's size."""

    weights: float
    layers: int
    width: int


class Problem(NamedTuple):
    """What is to be planned."""

    calls: tuple[Call, ...]
    models: Mapping[str, Model]
    cluster: Cluster


Plan = tuple[Layout, ...]  # one for each call


def layouts(call: Call, problem: Problem) -> list[Layout]:
    """The options of a call: aligned blocks of powers of two, tensors within a node, rows enough for all copies."""
    return list(_layouts(call, problem))


def _layouts(call: Call, problem: Problem) -> Iterator[Layout]:
    cluster = problem.cluster
    model = problem.models[call.model]
    for size in _powers(cluster.processes):
        for tensor in _powers(min(size, cluster.devices, LARGEST_TENSOR)):
            rest = size // tensor
            for pipeline in _powers(rest):
                parts = rest * _micro(call)
                if call.rows % parts or model.layers < pipeline:
                    continue
                for first in range(0, cluster.processes, size):
                    yield Layout(first, rest // pipeline, tensor, pipeline)


def _micro(call: Call) -> int:
    """Micro-batches of each stage of a pipeline."""
    return 2 if call.kind == "train" else 1


def _powers(most: int) -> Iterator[int]:
    """Powers of two up to `most`."""
    power = 1
    while power <= most:
        yield power
        power *= 2


def call_s(call: Call, layout: Layout, problem: Problem) -> float:
    """Seconds of a call in a layout; infinite where its memory does not hold it."""
    cluster, model = problem.cluster, problem.models[call.model]
    device = cluster.device
    held = model.weights / (layout.tensor * layout.pipeline)
    if KEPT[call.kind] * held > device.memory_bytes:
        return math.inf
    if call.kind == "generate":
        return _generation_s(call, layout, problem)
    size = len(layout.devices)
    rate = size * device.flops_per_s * device.efficiency
    tokens = call.rows * call.length
    forward_s = 2.0 * tokens * model.weights / rate + _sums_s(call, call.length, layout, problem)
    micro = layout.pipeline * _micro(call)
    waiting = (layout.pipeline + micro - 1) / micro
    seconds = waiting * PASSES[call.kind] * forward_s
    if call.kind == "train":
        sent = LEAVING["total"](layout.data) * 4.0 * held
        seconds += sent / cluster.link(size).bytes_per_s
    return seconds


def _sums_s(call: Call, tokens: float, layout: Layout, problem: Problem) -> float:
    """Seconds of the sums over a tensor group in one pass over so many tokens of each row: two a layer."""
    if layout.tensor == 1:
        return 0.0
    model = problem.models[call.model]
    link = problem.cluster.link(layout.tensor)
    places = tokens * call.rows / layout.data
    sent = LEAVING["total"](layout.tensor) * 2.0 * places * model.width
    messages = 2.0 * (layout.tensor - 1)
    one = sent / link.bytes_per_s + messages * link.latency_s
    return 2.0 * model.layers * one


def _generation_s(call: Call, layout: Layout, problem: Problem) -> float:
    """Reading the prompt, then a pass over the weights for every token; stages follow each other."""
    device, model = problem.cluster.device, problem.models[call.model]
    held = model.weights / layout.tensor
    rows = call.rows / layout.data
    rate = device.flops_per_s * device.efficiency
    prompt = call.length - call.new
    products = 2.0 * held * rows / rate  # of one token of each row
    weights = 2.0 * held / device.memory_bytes_per_s
    reading = prompt * products + _sums_s(call, prompt, layout, problem)
    writing = max(products, weights) + _sums_s(call, 1.0, layout, problem)
    return reading + call.new * writing


def move_s(model: Model, before: Layout, after: Layout, cluster: Cluster) -> float:
    """Seconds of a model's weights from one layout to another: those that a device lacks, over the slower link."""
    if before == after:
        return 0.0
    both = {*before.devices, *after.devices}
    nodes = {device // cluster.devices for device in both}
    far = cluster.between if len(nodes) > 1 else None
    link = far or cluster.inside
    slices = after.tensor * after.pipeline
    held = 2.0 * model.weights / slices
    return held / link.bytes_per_s + link.latency_s


def makespan(plan: Plan, problem: Problem, iterations: int) -> float:
    """Seconds of the graph so many times in a row; a model's training comes before its next call of any kind."""
    calls = problem.calls
    lasts = [call_s(call, layout, problem) for call, layout in zip(calls, plan)]
    if math.inf in lasts:
        return math.inf
    ends: dict[tuple[int, str], float] = {}
    free = [0.0] * problem.cluster.processes
    lies: dict[str, Layout] = {}
    trained: dict[str, float] = {}
    waiting = [(number, place) for number in range(iterations) for place in range(len(calls))]
    while waiting:
        ready = [one for one in waiting if _is_ready(one, calls, ends, waiting)]
        begins = {one: _begin(one, plan, problem, ends, free, trained) for one in ready}
        chosen = min(ready, key=lambda one: (begins[one], one))
        number, place = chosen
        call, layout = calls[place], plan[place]
        before = lies.get(call.model, layout)
        moved = move_s(problem.models[call.model], before, layout, problem.cluster)
        end = begins[chosen] + moved + lasts[place]
        for device in layout.devices:
            free[device] = end
        ends[number, call.name] = end
        lies[call.model] = layout
        if call.kind == "train":
            trained[call.model] = end
        waiting.remove(chosen)
    return max(ends.values())


def _is_ready(one: tuple[int, int], calls: Sequence[Call], ends: Mapping[tuple[int, str], float],
              waiting: Sequence[tuple[int, int]]) -> bool:
    """Whether all that a call reads is there, and its model has no earlier call left."""
    number, place = one
    call = calls[place]
    if any((number, name) not in ends for name in call.after):
        return False
    return not any(earlier < number and calls[other].model == call.model for earlier, other in waiting)


def _begin(one: tuple[int, int], plan: Plan, problem: Problem, ends: Mapping[tuple[int, str], float],
           free: Sequence[float], trained: Mapping[str, float]) -> float:
    """When a call can begin: its inputs are there, its model is trained, and its block is free."""
    number, place = one
    call = problem.calls[place]
    devices = plan[place].devices
    freed = [free[device] for device in devices]
    read = [ends[number, name] for name in call.after]
    learned = trained.get(call.model, 0.0)
    return max(*freed, *read, learned)
