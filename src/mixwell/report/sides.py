"""The sides of a run: its trained models since their branches parted, with all seeds of one setting together."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mixwell.report.records import RunRecord, StageRecord, figure, numbers

BUDGETS = ("tokens", "flops", "seconds")
TAIL = 0.1  # share of a training, at its end, over which its last loss is averaged


@dataclass(frozen=True, kw_only=True)
class Side:
    """What was trained in one way, once for each seed. Every training of a finished run ended its schedule."""

    name: str
    ends: Mapping[int, StageRecord]  # seed -> the training that ends here
    line: frozenset[str]  # ids of the stages that the ends build on, themselves included
    spent: Mapping[str, float]  # budget -> what training took since the branches parted, mean over seeds

    @property
    def first(self) -> StageRecord:
        """The end of the first seed."""
        return next(iter(self.ends.values()))

    @property
    def scores(self) -> dict[int, float]:
        """Seed -> bits per byte of held-out text, every domain counting the same; seeds without are left out."""
        return numbers_by_seed({seed: figure(end.evaluation, "mean") for seed, end in self.ends.items()})

    @property
    def score(self) -> float:
        """Mean of the scores; not a number where nothing was evaluated."""
        values = list(self.scores.values())
        return math.fsum(values) / len(values) if values else math.nan

    @property
    def is_mixture(self) -> bool:
        """Whether a token uses a part of its parameters only."""
        return figure(self.first.result, "active_parameters") < figure(self.first.result, "parameters")

    def builds_on(self, other: Side) -> bool:
        """Whether one of the other's models is a step on the way to this one's."""
        return any(end.id in self.line for end in other.ends.values()) and self is not other

    def per_token(self, budget: str) -> float:
        """FLOPs or seconds of a training token, in the last training."""
        totals = [figure(end.result, name) for name in (budget, "tokens") for end in self.ends.values()]
        count = len(self.ends)
        tokens = math.fsum(totals[count:])
        return math.fsum(totals[:count]) / tokens if tokens > 0 else math.nan


def numbers_by_seed(values: Mapping[int, float]) -> dict[int, float]:
    """The finite ones."""
    return {seed: value for seed, value in values.items() if math.isfinite(value)}


def branch_ends(run: RunRecord) -> list[StageRecord]:
    """Training stages that no later training builds on."""
    training = [s for s in run.stages if s.trains]
    inner = {a.id for s in training for a in run.ancestors(s) if a.id != s.id}
    return [s for s in training if s.id not in inner]


def shared_line(run: RunRecord) -> list[StageRecord]:
    """The stages that every branch builds on, oldest first; of a single branch, all before its last training."""
    ends = branch_ends(run)
    lines = [{a.id for a in run.ancestors(end)} - {end.id} for end in ends]
    shared = set.intersection(*lines) if lines else set()
    return [s for s in run.stages if s.id in shared]


def sides(run: RunRecord) -> list[Side]:
    """The sides, in the order of the recipe: trainings that not every branch shares, grouped over seeds.

    Trainings whose own lines have equal methods and configs and differ in their seed are one side, named by the
    recipe (`side:`, else the id without `-s<seed>`). Where two sides would bear one name, they bear their ids.
    """
    shared = {s.id for s in shared_line(run)}
    groups: dict[str, dict[int, StageRecord]] = {}
    for stage in run.stages:
        if stage.trains and stage.id not in shared:
            signature = _signature(run, stage, shared)
            while stage.seed in groups.get(signature, {}):  # the same thing twice: a side of its own
                signature += "'"
            groups.setdefault(signature, {})[stage.seed] = stage
    names = [_name(ends) for ends in groups.values()]
    return [_side(run, name if names.count(name) == 1 else next(iter(ends.values())).id, ends, shared)
            for name, ends in zip(names, groups.values())]


def name_clashes(found: Sequence[Side]) -> list[str]:
    """Names that the recipe gives to several sides, which therefore are not one."""
    names = [_name(side.ends) for side in found]
    return sorted({name for name in names if names.count(name) > 1})


def _signature(run: RunRecord, stage: StageRecord, shared: set[str]) -> str:
    own = [s for s in run.ancestors(stage) if s.id not in shared]
    return json.dumps([[s.kind, s.method, s.config] for s in own], sort_keys=True)


def _name(ends: Mapping[int, StageRecord]) -> str:
    first = next(iter(ends.values()))
    return first.side or first.id


def _side(run: RunRecord, name: str, ends: Mapping[int, StageRecord], shared: set[str]) -> Side:
    lines = [run.ancestors(end) for end in ends.values()]
    trained = [[s for s in line if s.trains and s.id not in shared] for line in lines]
    spent = {b: math.fsum(figure(s.result, b) for line in trained for s in line) / len(ends) for b in BUDGETS}
    return Side(name=name, ends=ends, line=frozenset(s.id for line in lines for s in line), spent=spent)


def last_training_loss(stage: StageRecord) -> float:
    """Mean training loss of the last tenth of the lines, nats per token."""
    losses = [figure(line, "loss_nats") for line in stage.metrics]
    last = losses[-max(1, round(TAIL * len(losses))):]
    return math.fsum(last) / len(last) if last else math.nan


def held_out_gap(stage: StageRecord) -> float:
    """By how much held-out text costs more than the text trained on, nats per token, domains as they were drawn."""
    drawn, held = numbers(stage.result.get("ledger")), numbers(stage.evaluation.get("loss_nats"))
    total = math.fsum(drawn.get(domain, 0.0) for domain in held)
    if not total:
        return math.nan
    return math.fsum(drawn.get(d, 0.0) * loss for d, loss in held.items()) / total - last_training_loss(stage)
