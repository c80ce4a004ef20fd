"""What a training step takes in a layout on a described cluster: seconds, memory of a process and bytes that it sends.

The step is made of the objects that train: the ticks of `pipeline.step_seconds`, the calls of `Team` (experts' rows
there and back, gradients in buckets, routings for balance) and the bytes that leave a worker by `wire.LEAVING`. A call
takes its messages' latencies and its bytes over the link's rate; nothing is sent while something is computed, as in
training. A backward pass takes two forward passes, three where its inside is computed again.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from mixwell.parallel.cluster import Cluster, Device, Link
from mixwell.parallel.pipeline import step_seconds
from mixwell.parallel.team import BUCKET_BYTES
from mixwell.parallel.wire import LEAVING
from mixwell.parallel.workload import LayerWork, Spread, Work

MESSAGES = {"exchange": 1, "gather": 1, "total": 2}  # one after another, for each other worker of a call
UPDATE_BYTES = 36  # read and written for each parameter: its norm, then AdamW's step
SHARDING_BYTES = 24  # of each parameter that is gathered twice and whose gradient is scattered, to lay them in a row
PASS = "pass"  # rows to the next stage of a pipeline, all of which leave


class Call(NamedTuple):
    """A call that all processes of a group make."""

    kind: str
    size: int  # processes of the group
    link: Link
    nbytes: float  # of a process's tensor
    times: float = 1.0

    @property
    def sent(self) -> float:
        """Bytes that leave a process."""
        share = 1.0 if self.kind == PASS else LEAVING[self.kind](self.size)
        return self.times * share * self.nbytes

    @property
    def seconds(self) -> float:
        """Until it is done."""
        messages = 1 if self.kind == PASS else MESSAGES[self.kind] * (self.size - 1)
        waited = self.times * messages * self.link.latency_s
        return waited + self.sent / self.link.bytes_per_s


class Estimate(NamedTuple):
    """A step of one process, the busiest where they differ."""

    seconds: float
    computing_s: float
    sending_s: float
    idle_s: float  # waited for other stages
    memory_bytes: float
    sent_bytes: dict[str, float]  # by kind of call

    @property
    def sent(self) -> float:
        """Bytes of all kinds."""
        return sum(self.sent_bytes.values())


class Group(NamedTuple):
    """Processes that call each other."""

    size: int
    link: Link

    def call(self, kind: str, nbytes: float, times: float = 1.0) -> Iterator[Call]:
        """The call, where there is anybody to call."""
        if self.size > 1 and times > 0:
            yield Call(kind, self.size, self.link, nbytes, times)


class Groups(NamedTuple):
    """The groups of a process by what they share."""

    tensor: Group
    sequence: Group
    expert: Group
    copies: Group  # of the same expert
    same: Group  # that hold the same dense weights
    stages: Group


def groups(spread: Spread, cluster: Cluster) -> Groups:
    """The groups of a layout whose neighbours share a tensor group first."""
    sizes = (spread.tensor, spread.sequence, spread.expert, spread.data, spread.pipeline)
    reach = 1
    found = []
    for size in sizes:
        reach *= size
        found.append(Group(size, cluster.link(reach)))
    tensor, sequence, expert, data, stages = found
    copies = Group(spread.data * spread.sequence, data.link)
    same = Group(spread.readers * spread.sequence, data.link)
    return Groups(tensor, sequence, expert, copies, same, stages)


class Simulation:
    """One work in one layout on one cluster."""

    def __init__(self, work: Work, spread: Spread, cluster: Cluster) -> None:
        self.work, self.spread, self.device = work, spread, cluster.device
        self.groups = groups(spread, cluster)
        parts = spread.readers * spread.micro_batches * spread.sequence
        whole = work.rows * work.length
        token_bytes = work.dim * work.number_bytes
        self.tokens = whole / parts  # of a micro-batch, in one process
        self.row_bytes = self.tokens * token_bytes
        self.stages = _cut(work.layers, spread.pipeline)
        self.alike = list(map(Counter, self.stages))  # how often each layer comes in a stage

    def estimate(self) -> Estimate:
        """What a step takes."""
        numbers = range(len(self.stages))
        forward = [self._pass(number, backward=False) for number in numbers]
        backward = [self._pass(number, backward=True) for number in numbers]
        updates = [self._update(number) for number in numbers]
        times = self.spread.micro_batches
        there = step_seconds(_seconds(forward), times)
        back = step_seconds(_seconds(backward[::-1]), times)
        last = max(_seconds(updates))
        whole = there + back + last
        micro = [_joined(one, other) for one, other in zip(forward, backward)]
        steps = [_joined(_repeated(one, times), end) for one, end in zip(micro, updates)]
        busiest = max(steps, key=lambda one: one.seconds)
        idle = max(0.0, whole - busiest.seconds)
        memory = max(map(self._memory, numbers))
        sent = sent_by_kind(busiest.calls)
        return Estimate(whole, busiest.computing_s, busiest.sending_s, idle, memory, sent)

    def _pass(self, number: int, backward: bool) -> Part:
        """A micro-batch through a stage one way."""
        layers = self.stages[number]
        calls: list[Call] = []
        flops = 0.0
        for layer, count in self.alike[number].items():
            flops += count * layer.flops
            calls += _times(count, self._layer_calls(layer, backward))
        if number == len(self.stages) - 1:
            flops += self.work.head_flops
        calls += self._passed_on(number, backward)
        if self.spread.sharded:
            ends = self.work.number_bytes * self._ends(number) / self.spread.tensor
            calls += self.groups.same.call("gather", ends / self.groups.same.size)
        rate = self.device.flops_per_s * self.device.efficiency
        own_flops = self.tokens * flops / self.spread.tensor
        fixed_s = len(layers) * self.device.layer_s
        once = own_flops / rate + fixed_s
        times = self._backward_passes if backward else 1.0
        return Part(times * once, calls)

    @property
    def _backward_passes(self) -> float:
        """Forward passes that a backward pass is worth; a pipeline computes all but the last micro-batch again."""
        if self.work.checkpointing or self.spread.pipeline == 1:
            return self.work.passes - 1.0
        return 3.0 - 1.0 / self.spread.micro_batches

    def _passed_on(self, number: int, backward: bool) -> Iterator[Call]:
        edge = 0 if backward else len(self.stages) - 1
        if number != edge:
            yield from self.groups.stages.call(PASS, self.row_bytes)

    def _layer_calls(self, layer: LayerWork, backward: bool) -> Iterator[Call]:
        """What a micro-batch asks of other processes in a layer, one way."""
        repeated = 1.0 if backward and self.work.checkpointing else 0.0  # forward calls that are made again
        times = repeated if backward else 1.0
        ways = 1.0 + repeated
        yield from self._expert_calls(layer, ways, times)
        yield from self._balance_calls(layer, times)
        yield from self.groups.tensor.call("total", self.row_bytes, 2.0 * ways)
        yield from self._sequence_calls(ways)
        if self.spread.sharded:
            share = self._gathered_bytes(layer) / self.groups.same.size
            yield from self.groups.same.call("gather", share)

    def _expert_calls(self, layer: LayerWork, times: float, counted: float) -> Iterator[Call]:
        """Rows to their experts and back, and before them, forward, how many come."""
        if not layer.experts:
            return
        rows = self.row_bytes * layer.chosen / self.spread.tensor
        others = self.groups.expert
        yield from others.call("exchange", rows, 2.0 * times)
        yield from others.call("exchange", 8.0 * layer.experts, counted)
        if self.spread.expert > 1:  # the slices of a tensor group put its rows together, before and after
            yield from self.groups.tensor.call("gather", rows, 2.0 * times)

    def _balance_calls(self, layer: LayerWork, times: float) -> Iterator[Call]:
        """The routings of all, of which balance is asked."""
        if not layer.balanced:
            return
        yield from self._routing_calls(layer, times)
        yield from self.groups.same.call("gather", 8.0 * self.tokens, 3.0 * times)  # ids, positions, labels

    def _routing_calls(self, layer: LayerWork, times: float) -> Iterator[Call]:
        """Slots, indices, weights, and logits and scores of all experts."""
        slots = self.tokens * layer.chosen
        scores = 4.0 * self.tokens * layer.experts
        same = self.groups.same
        for nbytes in (8.0, 8.0 * slots, 4.0 * slots, scores, scores):
            yield from same.call("gather", nbytes, times)

    def _sequence_calls(self, times: float) -> Iterator[Call]:
        """Heads change hands as far as those of keys go, what is left goes round a ring."""
        work, group = self.work, self.groups.sequence
        if group.size == 1:
            return
        row = math.gcd(group.size, work.kv_heads)
        ring = group.size // row
        head_bytes = self.tokens * work.head_dim * work.number_bytes
        own_bytes = head_bytes / self.spread.tensor
        keys_values = 2.0 * work.kv_heads
        changed = keys_values + 2.0 * work.heads
        neighbours = Group(row, group.link)
        column = Group(ring, group.link)
        yield from neighbours.call("exchange", changed * own_bytes, times)
        yield from column.call(PASS, keys_values * own_bytes, times * (ring - 1))

    def _gathered_bytes(self, layer: LayerWork) -> float:
        """Weights of a layer that a process of a sharded layout gathers: its own experts and all else."""
        own = layer.dense_weights + layer.expert_weights / self.spread.expert
        return self.work.number_bytes * own / self.spread.tensor

    def _update(self, number: int) -> Part:
        """The end of a step: gradients summed, norms and figures told, the optimizer's pass."""
        shared, own = self._weights(number)
        held = shared + own
        calls: list[Call] = []
        calls += self._gradient_calls(shared, self.groups.same)
        calls += self._gradient_calls(own, self.groups.copies)
        calls += self._figure_calls(number)
        moved = UPDATE_BYTES * held
        if self.spread.sharded:
            moved = moved / self.groups.same.size + SHARDING_BYTES * held
        return Part(moved / self.device.memory_bytes_per_s, calls)

    def _weights(self, number: int) -> tuple[float, float]:
        """Of a stage in one process: those that all of its block share, and those of its own experts."""
        layers = self.stages[number]
        slices = self.spread.tensor
        dense = sum(layer.dense_weights for layer in layers)
        experts = sum(layer.expert_weights for layer in layers)
        shared = dense + self._ends(number)
        if self.spread.expert == 1:
            return (shared + experts) / slices, 0.0
        own = experts / self.spread.expert
        return shared / slices, own / slices

    def _ends(self, number: int) -> float:
        """Weights of embedding and head in a stage: the first holds the one, the last the other."""
        holders = {0, len(self.stages) - 1}
        return self.work.end_weights / len(holders) if number in holders else 0.0

    def _gradient_calls(self, weights: float, group: Group) -> Iterator[Call]:
        nbytes = 4.0 * weights
        kind = "exchange" if self.spread.sharded else "total"  # each keeps the sum of its own share alone
        buckets = max(1, math.ceil(nbytes / BUCKET_BYTES))
        if nbytes:
            yield from group.call(kind, nbytes / buckets, buckets)

    def _figure_calls(self, number: int) -> Iterator[Call]:
        """What every step tells all: targets, losses, which gradients there are, routings, time and wishes."""
        same = self.groups.same
        for nbytes in (8.0, 4.0 * 4, 4.0 * self.work.parameters):
            yield from same.call("total", nbytes)
        if self.work.experts:
            yield from self.groups.expert.call("total", 4.0)
        yield from same.call("gather", 8.0, 2.0)
        for layer, count in self.alike[number].items():
            if layer.experts:
                yield from self._routing_calls(layer, count * self.spread.micro_batches)

    def _memory(self, number: int) -> float:
        """Bytes of a stage in one process: weights with their state, what is kept of tokens, a bucket."""
        layers = self.stages[number]
        sharing = self.groups.same.size
        held = sum(self._weights(number))
        whole = self.work.state_bytes * held
        if self.spread.sharded:
            gathered = max(self._gathered_bytes(layer) for layer in layers)
            whole = whole / sharing + gathered
        kept = self.tokens * self._kept(number)
        training = kept * self.work.number_bytes
        if sharing > 1:
            training += 2.0 * min(BUCKET_BYTES, 4.0 * held)
        return whole + training

    def _kept(self, number: int) -> float:
        """Numbers that a token of a micro-batch leaves behind in a stage."""
        layers = self.stages[number]
        insides = [layer.kept / self.spread.tensor for layer in layers]
        kept = sum(insides)
        if self.work.checkpointing:
            kept = max(insides) + len(layers) * self.work.dim
        if self.spread.pipeline > 1:
            kept += self.spread.micro_batches * self.work.dim
        if number == len(self.stages) - 1:
            kept += 2.0 * self.work.vocab_size  # logits and their gradient
        return kept


class Part(NamedTuple):
    """A part of a step."""

    computing_s: float
    calls: list[Call]

    @property
    def sending_s(self) -> float:
        """All its calls, one after the other."""
        return sum(call.seconds for call in self.calls)

    @property
    def seconds(self) -> float:
        """Computing and sending, one after the other."""
        return self.computing_s + self.sending_s


def _seconds(parts: Sequence[Part]) -> list[float]:
    return [part.seconds for part in parts]


def _joined(one: Part, other: Part) -> Part:
    computing_s = one.computing_s + other.computing_s
    calls = one.calls + other.calls
    return Part(computing_s, calls)


def _repeated(one: Part, times: int) -> Part:
    return Part(times * one.computing_s, _times(times, one.calls))


def _times(count: int, calls: Iterable[Call]) -> list[Call]:
    """Calls that are made so often."""
    return [call._replace(times=count * call.times) for call in calls]


def _cut(layers: Sequence[LayerWork], stages: int) -> list[tuple[LayerWork, ...]]:
    """The layers in stages of as even a number as can be, the first ones longer: the last has the head."""
    size, longer = divmod(len(layers), stages)
    found = []
    first = 0
    for stage in range(stages):
        end = first + size + (stage < longer)
        found.append(tuple(layers[first:end]))
        first = end
    return found


def sent_by_kind(calls: Sequence[Call]) -> dict[str, float]:
    """Bytes that leave a process, by kind of call."""
    found: Counter[str] = Counter()
    for call in calls:
        found[call.kind] += call.sent  # type: ignore[assignment]  # bytes of a mean need not be whole
    return dict(found)


def estimate(work: Work, spread: Spread, cluster: Cluster) -> Estimate:
    """What a step of `work` takes in the layout."""
    return Simulation(work, spread, cluster).estimate()


def fits(found: Estimate, device: Device) -> bool:
    """Whether a process's memory holds it."""
    return found.memory_bytes <= device.memory_bytes
