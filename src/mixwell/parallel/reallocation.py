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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.mixing import check_above, check_least
from mixwell.parallel.calls import Call, Layout, Plan, Problem, call_s, layouts, makespan
from mixwell.parallel.wire import Wire, in_threads


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the search."""

    tries: int = 2000  # plans that are simulated
    beta: float = 20.0  # how seldom a worse plan is kept, for a relative worsening
    iterations: int = 3  # of the graph, simulated in a row

    def __post_init__(self) -> None:
        check_least(self, tries=1, iterations=1)
        check_above(self, beta=0)


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
    changed = list(plan)
    changed[place] = there[_draw(len(there), generator)]
    return tuple(changed)


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
