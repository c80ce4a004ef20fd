"""FLIQS: a policy over formats for each matrix, trained with the weights, one draw a step; integers or floats.

**Equation:** pi_u = softmax(theta_u) over widths. Each step: b_u ~ pi_u; one step of the weights W at Q_b(W), gradients
    straight through; r = -L(batch) - penalty |cost / target - 1|, cost the mean bits a weight; theta rises along
    (r - baseline) grad log pi(b) + h_t grad H(pi), baseline a moving mean of r, h_t = entropy cos(pi t) from start
    (explore) to end (settle). In the first `warmup` of the steps theta rests. Last: the most probable widths.
**Shapes:** theta [U, B]; W_u [O, I].
**Reference:** Dotzel et al. 2023 (2308.03290), sections 3 and 4; no training code was found, constants are ours.
**Differs:** the most probable widths *within the budget*, by an integer program over -log pi: those of the argmax
    wherever it keeps the budget, which the penalty alone does not promise. Weights alone are rounded; norms, embeddings
    and routers stay as they were. Every expert has a policy of its own. A language model's quality is -L in nats.
**Fails when:** few steps: one reward for all matrices says little of each, and less the more matrices there are.
**Cost:** a training of `steps`; bits as budgeted, with 16 / G for scales (floats: a table of 2^b numbers a matrix).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mixwell.core.checkpoint import Checkpoint
from mixwell.core.method import method
from mixwell.mixing import check_above, check_least, check_not_negative
from mixwell.mixing.calibration import Inputs, Needs
from mixwell.precision import bits
from mixwell.precision._allocation import allocate, check_budget
from mixwell.precision._float_formats import SPLIT, nearest_float
from mixwell.precision._parts import Coded, joined, matrices, named, nearest, quantised_example, with_codes
from mixwell.precision._statistics import calibrated
from mixwell.precision.bits import Budget, Place, by_weight, names_of, part, places_of


@dataclass(frozen=True, kw_only=True)
class Config(Budget):
    """Options of FLIQS."""

    kind: Literal["integer", "float"] = "integer"  # of the formats, at each of `widths`; floats have 3 bits at least
    steps: int = 200  # of training
    rows: int = 8  # windows of text of a step
    lr: float = 1e-4  # of the weights, by Adam, 0 or more
    policy_lr: float = 0.05  # of theta, by Adam
    penalty: float = 1.0  # nats for a cost of twice the target, 0 or more
    entropy: float = 0.01  # h at the start, -h at the end; nats of reward for a nat of entropy, 0 or more
    warmup: float = 0.25  # share of the steps before theta moves, 0 to below 1
    memory: float = 0.9  # of the baseline, 0 to below 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, steps=1, rows=1)
        check_above(self, policy_lr=0)
        check_not_negative(self, "lr", "penalty", "entropy", "warmup", "memory")
        most = max(self.warmup, self.memory)
        if not most < 1:
            raise ValueError(f"warmup is {self.warmup} and memory {self.memory}; expected below 1")
        least = min(SPLIT)
        if self.kind == "float" and min(self.widths) < least:
            raise ValueError(f"widths is {self.widths}; floats have {least} bits at least")


def needs(config: Config) -> Needs:
    """Text, to train on."""
    return Needs(tokens=config.tokens)


def promises(config: Config) -> dict[str, float]:
    """What the receipt must show."""
    return {"kl_nats": config.max_kl_nats}


def encode(weight: Tensor, width: int, config: Config) -> Coded:
    """A matrix in the format of that width."""
    if config.kind == "float":
        return nearest_float(weight, width, config.group_size)
    return nearest(weight, width, config.group_size, True)


def reward(nats: float, cost: float, target: float, config: Config) -> float:
    """r of a step."""
    off = abs(cost / target - 1)
    return -nats - config.penalty * off


def policy_slope(theta_UB: Tensor, drawn_U: Tensor, advantage: float, entropy: float) -> Tensor:
    """Gradient [U, B] of advantage log pi(drawn) + entropy H(pi), summed over matrices."""
    log_UB = theta_UB.log_softmax(-1)
    pi_UB = log_UB.exp()
    widths = theta_UB.shape[-1]
    one_UB = F.one_hot(drawn_U, widths)
    of_draw = one_UB - pi_UB
    below_UB = pi_UB * log_UB
    mean_U1 = below_UB.sum(-1, keepdim=True)
    of_entropy = pi_UB * mean_U1 - below_UB
    return advantage * of_draw + entropy * of_entropy


def entropy_at(step: int, config: Config) -> float:
    """h of a step: a half cosine from `entropy` down to its negative, over the steps behind the warm-up."""
    first = _rests(config)
    last = config.steps - 1
    left = max(last - first, 1)
    share = (step - first) / left
    angle = math.pi * share
    return config.entropy * math.cos(angle)


def _rests(config: Config) -> int:
    """Steps before theta moves."""
    return int(config.warmup * config.steps)


class _Search:
    """Weights and policy as they are trained."""

    def __init__(self, checkpoint: Checkpoint, config: Config, generator: torch.Generator) -> None:
        self.checkpoint, self.config, self.draws = checkpoint, config, generator
        self.places = places_of(checkpoint, config)
        self.room = room(checkpoint, self.places, config)
        names = names_of(self.places)
        self.masters = {name: _trained(checkpoint.tensors[name]) for name in names}
        self.size_UB = bits.sizes(checkpoint, self.places, config.widths)
        self.theta_UB = torch.zeros_like(self.size_UB)
        self.baseline: float | None = None
        self._weights = torch.optim.Adam(self.masters.values(), config.lr)
        self._policy = torch.optim.Adam([self.theta_UB], config.policy_lr, maximize=True)

    def step(self, number: int, tokens_NS: Tensor, calibration: Inputs) -> float:
        """One draw: the weights move at its formats, the policy behind the warm-up. Gives the reward."""
        pi_UB = self.theta_UB.softmax(-1)
        drawn_U = torch.multinomial(pi_UB, 1, generator=self.draws).squeeze(-1)
        nats = self._move_weights(drawn_U, tokens_NS, calibration)
        units = range(len(self.places))
        taken = float(self.size_UB[units, drawn_U].sum())
        found = reward(nats, taken, self.room, self.config)
        before = found if self.baseline is None else self.baseline
        if number >= _rests(self.config):
            self._move_policy(number, drawn_U, found - before)
        memory = self.config.memory
        self.baseline = memory * before + (1 - memory) * found
        return found

    def _move_policy(self, number: int, drawn_U: Tensor, advantage: float) -> None:
        entropy = entropy_at(number, self.config)
        self.theta_UB.grad = policy_slope(self.theta_UB, drawn_U, advantage, entropy)
        self._policy.step()

    def _move_weights(self, drawn_U: Tensor, tokens_NS: Tensor, calibration: Inputs) -> float:
        """One step of the weights at the formats drawn; gives the loss in nats before it."""
        moved = self._rounded(drawn_U)
        logits_BSV = calibration.logits(self.checkpoint, tokens_NS, moved)
        before_TV = logits_BSV[:, :-1].flatten(0, 1)
        targets_T = tokens_NS[:, 1:].flatten()
        nats = F.cross_entropy(before_TV, targets_T)
        slopes = torch.autograd.grad(nats, list(moved.values()))
        for master, slope in zip(self.masters.values(), slopes):
            master.grad = slope
        self._weights.step()
        return float(nats.detach())

    def _rounded(self, drawn_U: Tensor) -> dict[str, Tensor]:
        """Every weight at the formats drawn, with a gradient."""
        found = {name: value.clone() for name, value in self.masters.items()}
        for place, column in zip(self.places, drawn_U.tolist()):
            width = self.config.widths[column]
            own = part(found, place)
            made = encode(own, width, self.config).weight()
            own.copy_(made.dequantised(torch.float32))
        for value in found.values():
            value.requires_grad_()
        return found


def _trained(weight: Tensor) -> Tensor:
    """A copy that training moves."""
    return weight.detach().clone().float()


def room(checkpoint: Checkpoint, places: Sequence[Place], config: Config) -> float:
    """Bits that the codes may take in all, beside the tables of floats; a budget too small raises `MixwellError`."""
    there = bits.room(checkpoint, places, config)
    if config.max_bytes and config.kind == "float":
        longest = 2 ** max(config.widths)
        there -= len(places) * longest * torch.float32.itemsize * bits.BYTE
    size_UB = bits.sizes(checkpoint, places, config.widths)
    named(bits.limiting(config), check_budget, size_UB, there)
    return there


def _windows(calibration: Inputs, rows: int) -> Iterator[Tensor]:
    """So many windows of the text at a time, round and round."""
    tokens_NS = torch.cat(list(calibration.batches))
    while True:
        yield from tokens_NS.split(rows)


def most_probable(theta_UB: Tensor, size_UB: Tensor, budget: float) -> list[int]:
    """Places in B [U]: the most probable mix of those within the budget."""
    unlikely_UB = -theta_UB.log_softmax(-1)
    return allocate(unlikely_UB, size_UB, budget)


def in_formats(checkpoint: Checkpoint, masters: Mapping[str, Tensor], places: Sequence[Place],
               widths: Sequence[int], config: Config, record: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint with these weights in the formats of these widths [U]."""
    made = {}
    for name, own in by_weight(places, widths).items():
        weight = masters[name]
        each = zip(matrices(weight), own)
        parts = [encode(matrix, width, config) for (_, matrix), width in each]
        made[name] = joined(weight, _alike(parts))
    return with_codes(checkpoint, made, record=record)


def _alike(parts: list[Coded]) -> list[Coded]:
    """The parts with tables of one length, the longest; what is added is never meant by a code."""
    tables = [own.table for own in parts if own.table is not None]
    if not tables:
        return parts
    longest = max(map(len, tables))
    found = []
    for own, table in zip(parts, tables):
        missing = longest - len(table)
        added = table[-1:].expand(missing)
        longer = torch.cat([table, added])
        found.append(replace(own, table=longer))
    return found


@method(
    title="FLIQS: formats by a policy trained with the weights",
    paper="FLIQS: One-Shot Mixed-Precision Floating-Point and Integer Quantization Search",
    year=2023,
    tags={"codes", "calibrated", "budgeted"},
)
def fliqs(checkpoint: Checkpoint, config: Config, generator: torch.Generator, calibration: Inputs) -> Checkpoint:
    """A checkpoint whose matrices were trained in formats that a policy found. `generator` draws the formats.

    Raises `MixwellError` as `precision.integers`, and where the budget is too small.
    """
    search = _Search(checkpoint, config, generator)
    windows = _windows(calibration, config.rows)
    found = 0.0
    for number in range(config.steps):
        found = search.step(number, next(windows), calibration)
    where = bits.limiting(config)
    choice = named(where, most_probable, search.theta_UB, search.size_UB, search.room)
    widths = [config.widths[place] for place in choice]
    record = calibrated(checkpoint, calibration)
    record["bits"] = by_weight(search.places, widths)
    record["policy"] = {"reward": found, "entropy_nats": mean_entropy(search.theta_UB)}
    return in_formats(checkpoint, search.masters, search.places, widths, config, record)


def mean_entropy(theta_UB: Tensor) -> float:
    """Mean entropy of the policies in nats: near 0 where they have settled."""
    log_UB = theta_UB.log_softmax(-1)
    below_UB = log_UB.exp() * log_UB
    entropy_U = -below_UB.sum(-1)
    return float(entropy_U.mean())


def example(generator: torch.Generator) -> dict[str, Any]:
    """One layer's mixture."""
    config = Config(group_size=8, tokens=72, steps=4)
    return {"checkpoint": quantised_example(generator), "config": config, "generator": generator}
