"""OHQ: bits by what masked rounding does to the model's own text, under size and time measured on this machine.

**Equation:** Omega_ub = mean KL(M(x) || M_ub(x)), M_ub the model with a random share of the numbers of matrix u in b
    bits; t_ub seconds of its product, timed here, times the chance that a pass needs it; both divided by their largest.
    min sum alpha Omega_ub + beta t_ub, sum of bits within the budget, sum of t within `max_time` of that with the
    widest everywhere, by an integer program.
**Shapes:** W_u [O, I]; Omega and t [U, B]; x [N, S] tokens.
**Reference:** Huang et al. 2023 (2309.01945); no code was found, constants are ours.
**Differs:** theirs makes images from batch norm's statistics, which a language model has not: here it writes text
    itself. What is timed is this library's own product with packed codes, which are made plain at each use: fewer bits
    are smaller, not faster, so that no time is bent to fall with bits; the least of several runs is taken.
**Fails when:** the machine is busy as it is timed, or another one will serve the model: two runs may choose differently
    where beta or max_time is above 0. A weak model's own text is like no other.
**Cost:** as many passes as matrices times widths times masks, over `tokens`; bits as budgeted, with 16 / G for scales.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mixwell.core.checkpoint import Checkpoint
from mixwell.core.method import method
from mixwell.kernels.codes import CodedWeight
from mixwell.mixing import check_least, check_not_negative
from mixwell.mixing.calibration import Inputs, Needs
from mixwell.precision import bits
from mixwell.precision._allocation import Limit, allocate
from mixwell.precision._divergence import Changed, divergences, own_text, tokens_of
from mixwell.precision._parts import named, nearest, quantised_example
from mixwell.precision._statistics import calibrated
from mixwell.precision.bits import Budget, Place, Sensitivities, at_width, part, places_of

RUNS = 7  # of a product, the first of which is for the caches


@dataclass(frozen=True, kw_only=True)
class Config(Budget):
    """Options of OHQ."""

    tokens: int = 1024  # that the model writes
    alpha: float = 1.0  # of the sensitivity, 0 or more
    beta: float = 0.1  # of the time, 0 or more; 0 with max_time 0 times nothing
    max_time: float = 0.0  # of all products, as a share of that with the widest width everywhere; 0: any
    rows: int = 1  # tokens of a timed pass: 1 for an answer's next token
    share: float = 0.5  # of a matrix's numbers that a mask rounds, above 0, to 1
    masks: int = 1  # that are averaged

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(self, "alpha", "beta", "max_time")
        check_least(self, rows=1, masks=1)
        if not 0 < self.share <= 1:
            raise ValueError(f"share is {self.share}; expected above 0, to 1")


def needs(config: Config) -> Needs:
    """No text: the model writes its own."""
    return Needs()


def promises(config: Config) -> dict[str, float]:
    """What the receipt must show."""
    return {"kl_nats": config.max_kl_nats}


def masked(weight: Tensor, rounded: Tensor, share: float, seed: int) -> Tensor:
    """The weight with a share of its numbers, drawn by the seed, as they are in `rounded`."""
    draws = torch.Generator().manual_seed(seed)
    chance = torch.rand(weight.shape, generator=draws)
    return torch.where(chance < share, rounded, weight.double())


@dataclass(frozen=True, eq=False, kw_only=True)
class Measured(Sensitivities):
    """What each width does to each matrix, and how long its products take."""

    time_UB: Tensor  # expected seconds of a pass, float64; 0 where nothing was timed


def sensitivities(checkpoint: Checkpoint, config: Config, generator: torch.Generator,
                  calibration: Inputs) -> Measured:
    """Omega and t of every matrix and width."""
    places = places_of(checkpoint, config)
    written = own_text(checkpoint, config.tokens, calibration, generator)
    total_UB = torch.zeros(len(places), len(config.widths), dtype=torch.float64)
    for _ in range(config.masks):
        drawn_U = torch.randint(0, 2**31, (len(places),), generator=generator)
        seeds = dict(zip(places, drawn_U.tolist()))
        changed = _masked_at(checkpoint, seeds, config)
        own_UB = divergences(checkpoint, places, config.widths, changed, written)
        total_UB += own_UB
    time_UB = torch.zeros_like(total_UB)
    if config.beta or config.max_time:
        time_UB = times(checkpoint, places, config, written)
    record = calibrated(checkpoint, written)
    mean_UB = total_UB / config.masks
    return Measured(places=places, harm_UB=mean_UB, record=record, time_UB=time_UB)


def _masked_at(checkpoint: Checkpoint, seeds: Mapping[Place, int], config: Config) -> Changed:
    """What makes a matrix of which a mask is rounded, the same mask at every width."""

    def changed(place: Place, width: int) -> Tensor:
        weight = part(checkpoint.tensors, place)
        rounded = at_width(weight, width, config)
        return masked(weight, rounded, config.share, seeds[place])

    return changed


def seconds(weight: CodedWeight, rows: int) -> float:
    """The least time of a product with `rows` inputs, of several runs."""
    x = torch.ones(rows, weight.shape[-1])
    taken = []
    for _ in range(RUNS):
        start = time.perf_counter()
        weight.linear(x)
        taken.append(time.perf_counter() - start)
    return min(taken[1:])


def times(checkpoint: Checkpoint, places: Sequence[Place], config: Config, calibration: Inputs) -> Tensor:
    """Expected seconds [U, B] of a pass of `rows` tokens, float64; each shape is timed once."""
    known: dict[torch.Size, Tensor] = {}
    rows = []
    for place in places:
        weight = part(checkpoint.tensors, place).float()
        if weight.shape not in known:
            known[weight.shape] = _timed(weight, config)
        rows.append(known[weight.shape])
    time_UB = torch.stack(rows)
    chance_U = chances(checkpoint, places, config.rows, calibration)
    return time_UB * chance_U[:, None]


def _timed(weight: Tensor, config: Config) -> Tensor:
    """Seconds [B] of a matrix's product at each width."""
    found = []
    for width in config.widths:
        coded = nearest(weight, width, config.group_size, True)
        taken = seconds(coded.weight(), config.rows)
        found.append(taken)
    return torch.tensor(found, dtype=torch.float64)


def chances(checkpoint: Checkpoint, places: Sequence[Place], rows: int, calibration: Inputs) -> Tensor:
    """How probable it is that a pass of `rows` tokens needs each matrix [U]: 1 but for routed experts."""
    tokens = tokens_of(calibration)
    routed = calibration.routed(checkpoint)
    found = []
    for place in places:
        share = _visits(checkpoint, place, routed, tokens) / tokens
        missed = max(1 - share, 0.0)
        found.append(1 - missed**rows)
    return torch.tensor(found, dtype=torch.float64)


def _visits(checkpoint: Checkpoint, place: Place, routed: Mapping[int, Tensor], tokens: int) -> float:
    """How many of the tokens a matrix is multiplied with."""
    name, expert = place
    layer = int(name.split(".")[1])
    counts_E = routed.get(layer)
    if expert is None or counts_E is None or len(counts_E) != len(checkpoint.tensors[name]):
        return tokens
    return float(counts_E[expert])


def solved(omega_UB: Tensor, time_UB: Tensor, size_UB: Tensor, budget: float, config: Config) -> list[int]:
    """The places in B [U] of the program, of sensitivities, seconds and sizes."""
    harm_UB, slow_UB = _normed(omega_UB), _normed(time_UB)
    cost_UB = config.alpha * harm_UB + config.beta * slow_UB
    also: list[Limit] = []
    if config.max_time:
        widest = config.widths.index(max(config.widths))
        slowest = float(time_UB[:, widest].sum())
        also.append((time_UB, config.max_time * slowest))
    return allocate(cost_UB, size_UB, budget, also)


def _normed(value_UB: Tensor) -> Tensor:
    """The table in 0 to 1."""
    most = float(value_UB.max())
    return value_UB / most if most else value_UB


def settle(checkpoint: Checkpoint, found: Measured, config: Config) -> Checkpoint:
    """The checkpoint with the bits of the program; the lineage says how long a pass should then take."""
    size_UB = bits.sizes(checkpoint, found.places, config.widths)
    budget = bits.room(checkpoint, found.places, config)
    where = bits.limiting(config)
    choice = named(where, solved, found.harm_UB, found.time_UB, size_UB, budget, config)
    widths = [config.widths[place] for place in choice]
    units = range(len(choice))
    taken_U = found.time_UB[units, choice]
    seconds = {"expected_seconds": float(taken_U.sum())}
    told = replace(found, record={**found.record, **seconds})
    return bits.in_widths(checkpoint, told, widths, config)


@method(
    title="OHQ: bits under size and measured time",
    paper="OHQ: On-chip Hardware-aware Quantization",
    year=2023,
    tags={"codes", "calibrated", "budgeted"},
)
def ohq(checkpoint: Checkpoint, config: Config, generator: torch.Generator, calibration: Inputs) -> Checkpoint:
    """A checkpoint whose matrices have bits by sensitivity and time. `generator` draws the text and the masks.

    Raises `MixwellError` as `precision.integers`, and where no widths keep both limits.
    """
    found = sensitivities(checkpoint, config, generator, calibration)
    return settle(checkpoint, found, config)


def example(generator: torch.Generator) -> dict[str, Any]:
    """One layer's mixture, untimed."""
    config = Config(group_size=8, tokens=72, widths=(2, 4, 8), beta=0)
    return {"checkpoint": quantised_example(generator), "config": config, "generator": generator}
