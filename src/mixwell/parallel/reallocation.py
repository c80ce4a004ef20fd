"""Layouts of several models' calls chosen together, with parameters moved between the layouts of a model's calls.

**Equation:** an iteration is a graph of calls (generate; reward, reference and critic judge; critic and actor train).
    Each call gets an option: a block of d t p devices and how its model lies there (data d, tensor t, pipeline p).
    Of a call of f FLOPs over b rows,  seconds = (p + m - 1) / m * f / (devices rate) + exchanges,  m = p micro-batches
    forward, 2 p in training; sums over t take 4 layers b / d of the model's width, gradients 2 w / (t p) over d.
    Simulated: of the calls whose inputs are there the one that can begin first does; a block waits for every block that
    shares a device with it; where a model's calls lie differently its weights w move first, as bytes over the link.
    Search: a Markov chain over one option at a time, a worse plan kept with probability exp(-beta (T' - T) / T).
**Shapes:** weights [L, O, D] of L layers, cut by p in layers and by t in rows O; copies by d.
**Reference:** Mei et al. 2024 (2406.14088), sections 4 to 6, and the released `csrc/search`.
**Differs:** costs by FLOPs, bytes and latency in the place of profiles; the released estimator sets communication to
    nothing, and its integer division keeps every small worsening. Generation reads all weights once a token. A plan
    over memory counts as infinitely long, where the code counts three times.
**Fails when:** one layout fills all devices in every call: there is nothing to choose.
**Cost:** a simulation of the graph a step of the chain; a reallocation sends each row that its new holder lacks once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.mixing import check_above, check_least
from mixwell.parallel.cluster import Cluster
from mixwell.parallel.wire import LEAVING, Wire, in_threads

Kind = Literal["generate", "judge", "train"]
KEPT = {"generate": 2.0, "judge": 2.0, "train": 18.0}  # bytes a weight while a call runs
PASSES = {"generate": 1.0, "judge": 1.0, "train": 3.0}  # forward passes that a call's work is worth
LARGEST_TENSOR = 8


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the search."""

    tries: int = 2000  # plans that are simulated
    beta: float = 20.0  # how seldom a worse plan is kept, for a relative worsening
    iterations: int = 3  # of the graph, simulated in a row

    def __post_init__(self) -> None:
        check_least(self, tries=1, iterations=1)
        check_above(self, beta=0)


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


class Chosen(NamedTuple):
    """The best plan found, the seconds of its iterations, and those of the best plan of one layout."""

    plan: Plan
    seconds: float


def best_uniform(problem: Problem, iterations: int) -> Chosen:
    """The best plan in which every call lies alike over all devices."""
    calls = problem.calls
    everywhere = range(problem.cluster.processes)
    options = [set(layouts(call, problem)) for call in calls]
    common = set.intersection(*options)
    best = Chosen((), math.inf)
    for layout in sorted(common):
        if layout.devices != everywhere:
            continue
        plan = (layout,) * len(calls)
        seconds = makespan(plan, problem, iterations)
        if seconds < best.seconds:
            best = Chosen(plan, seconds)
    return best


def search(problem: Problem, config: Config, generator: torch.Generator | None = None) -> Chosen:
    """The best plan that a Markov chain comes by, from the best plan of one layout or each call's own fastest.

    Raises `ValueError` for a call that no layout holds.
    """
    times = config.iterations
    options = [layouts(call, problem) for call in problem.calls]
    own = tuple(_fastest(call, there, problem) for call, there in zip(problem.calls, options))
    fastest = Chosen(own, makespan(own, problem, times))
    uniform = best_uniform(problem, times)
    now = best = min(fastest, uniform, key=lambda one: one.seconds)
    for _ in range(config.tries):
        plan = _changed(now.plan, options, generator)
        found = Chosen(plan, makespan(plan, problem, times))
        if _is_kept(found, now, config.beta, generator):
            now = found
        if found.seconds < best.seconds:
            best = found
    return best


def _changed(plan: Plan, options: Sequence[Sequence[Layout]], generator: torch.Generator | None) -> Plan:
    """The plan with another layout for one of its calls."""
    place = _draw(len(options), generator)
    there = options[place]
    layouts = list(plan)
    layouts[place] = there[_draw(len(there), generator)]
    return tuple(layouts)


def _is_kept(found: Chosen, now: Chosen, beta: float, generator: torch.Generator | None) -> bool:
    """Whether the chain goes on from what was found: always where it is better."""
    worse = max(0.0, found.seconds / now.seconds - 1)
    chance = math.exp(-beta * worse)
    drawn = torch.rand((), generator=generator)
    return float(drawn) < chance


def _draw(count: int, generator: torch.Generator | None) -> int:
    return int(torch.randint(count, (), generator=generator))


def _fastest(call: Call, options: Sequence[Layout], problem: Problem) -> Layout:
    """The layout in which a call alone takes least."""
    times = [call_s(call, one, problem) for one in options]
    least = min(times, default=math.inf)
    if least == math.inf:
        raise ValueError(f"{call.name}: no layout over {problem.cluster.processes} devices holds {call.model}'s "
                         "weights; expected more devices, or devices of more memory")
    fastest = times.index(least)
    return options[fastest]


def rows_of(rank: int, layout: Layout, layers: int, outputs: int) -> Tensor:
    """Rows (layer * O + row) that a device holds in a layout; none outside its block."""
    if rank not in layout.devices:
        return torch.zeros(0, dtype=torch.int64)
    own = rank - layout.first
    stage = own // (layout.data * layout.tensor)
    part = own % layout.tensor
    rows_LO = torch.arange(layers * outputs).view(layers, outputs)
    in_stage = rows_LO.tensor_split(layout.pipeline)[stage]
    slices = in_stage.tensor_split(layout.tensor, dim=1)
    return slices[part].flatten().contiguous()


def reallocated(held_ND: Tensor, before: Layout, after: Layout, shape: tuple[int, int], wire: Wire) -> Tensor:
    """The rows that this worker holds in the new layout, from those [N, D] that all hold in the old one.

    What a worker has it keeps; the rest comes from one holder, holders taking turns by the receiver's number.
    """
    ranks = range(wire.size)
    have = [rows_of(rank, before, *shape) for rank in ranks]
    want = [rows_of(rank, after, *shape) for rank in ranks]
    sources = [_sources(rank, want[rank], have) for rank in ranks]
    leaving = [rows[source == wire.rank] for rows, source in zip(want, sources)]
    sent = [len(part) for part in leaving]
    leaving_N = torch.cat(leaving)
    places_N = torch.searchsorted(have[wire.rank], leaving_N)  # rows rise in every layout
    mine_M = sources[wire.rank]
    received = torch.bincount(mine_M, minlength=wire.size)
    came_MD = wire.exchange(held_ND[places_N], sent, received.tolist())
    order_M = mine_M.argsort(stable=True)
    return came_MD[order_M.argsort()]


def _sources(rank: int, wanted: Tensor, have: Sequence[Tensor]) -> Tensor:
    """The worker that each wanted row comes from."""
    found = torch.full_like(wanted, rank)
    missing = ~torch.isin(wanted, have[rank])
    holds_WM = torch.stack([torch.isin(wanted, rows) for rows in have])
    for place in missing.nonzero().flatten().tolist():
        holders = holds_WM[:, place].nonzero().flatten()
        turn = rank % len(holders)
        found[place] = holders[turn]
    return found


class Moved(NamedTuple):
    """The weights as the workers of the new layout hold them, put together, and the bytes that each worker sent."""

    weight_LOD: Tensor
    sent_W: Tensor


@method(
    title="Parameters moved between the layouts of a model's calls",
    paper="ReaLHF: Optimized RLHF Training for Large Language Models through Parameter Reallocation",
    year=2024,
)
def reallocation(weight_LOD: Tensor, before: Layout, after: Layout, config: Config) -> Moved:
    """Weights [L, O, D] cut as in `before`, moved and put together as they lie in `after`, with workers as threads.

    `search` chooses layouts; `config` is its own. Every copy of a row must be the same bits, else `ValueError`.
    """
    layers, outputs, width = weight_LOD.shape
    shape = (layers, outputs)
    flat_ND = weight_LOD.reshape(-1, width)
    size = max(before.devices.stop, after.devices.stop)

    def work(wire: Wire) -> tuple[Tensor, int]:
        held = flat_ND[rows_of(wire.rank, before, *shape)].clone()
        came = reallocated(held, before, after, shape, wire)
        return came, wire.sent["exchange"]

    found = in_threads(size, work)
    whole_ND = torch.empty_like(flat_ND)
    for rank, (rows, _) in enumerate(found):
        whole_ND[rows_of(rank, after, *shape)] = rows
    for rank, (rows, _) in enumerate(found):
        if not torch.equal(whole_ND[rows_of(rank, after, *shape)], rows):
            raise ValueError(f"worker {rank} holds other bits than another copy; expected copies to be alike")
    sent_W = torch.tensor([sent for _, sent in found])
    return Moved(whole_ND.view_as(weight_LOD), sent_W)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Four layers of six rows from two stages in two slices to four copies in two slices of half the devices."""
    weight = torch.randn(4, 6, 3, generator=generator)
    before = Layout(0, 1, 2, 2)
    after = Layout(2, 2, 1, 1)
    return {"weight_LOD": weight, "before": before, "after": after, "config": Config()}
