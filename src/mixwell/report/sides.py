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
        means = {seed: figure(end.evaluation, "mean") for seed, end in self.ends.items()}
        return numbers_by_seed(means)

    @property
    def score(self) -> float:
        """Mean of the scores; not a number where nothing was evaluated."""
        values = list(self.scores.values())
        if not values:
            return math.nan
        return math.fsum(values) / len(values)

    @property
    def is_mixture(self) -> bool:
        """Whether a token uses a part of its parameters only."""
        result = self.first.result
        return figure(result, "active_parameters") < figure(result, "parameters")

    def builds_on(self, other: Side) -> bool:
        """Whether one of the other's models is a step on the way to this one's."""
        if self is other:
            return False
        return any(end.id in self.line for end in other.ends.values())

    def per_token(self, budget: str) -> float:
        """FLOPs or seconds of a training token, in the last training."""
        results = [end.result for end in self.ends.values()]
        spent = math.fsum(figure(result, budget) for result in results)
        tokens = math.fsum(figure(result, "tokens") for result in results)
        return spent / tokens if tokens > 0 else math.nan


def numbers_by_seed(values: Mapping[int, float]) -> dict[int, float]:
    """The finite ones."""
    found = {}
    for seed, value in values.items():
        if math.isfinite(value):
            found[seed] = value
    return found


def branch_ends(run: RunRecord) -> list[StageRecord]:
    """Training stages that no later training builds on."""
    training = [stage for stage in run.stages if stage.trains]
    inner: set[str] = set()
    for stage in training:
        line = {ancestor.id for ancestor in run.ancestors(stage)}
        inner |= line - {stage.id}
    return [stage for stage in training if stage.id not in inner]


def shared_line(run: RunRecord) -> list[StageRecord]:
    """The stages that every branch builds on, oldest first; of a single branch, all before its last training."""
    lines = []
    for end in branch_ends(run):
        line = {ancestor.id for ancestor in run.ancestors(end)}
        lines.append(line - {end.id})
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
    found = []
    for name, ends in zip(names, groups.values()):
        first = next(iter(ends.values()))
        unique = name if names.count(name) == 1 else first.id
        found.append(_side(run, unique, ends, shared))
    return found


def name_clashes(found: Sequence[Side]) -> list[str]:
    """Names that the recipe gives to several sides, which therefore are not one."""
    names = [_name(side.ends) for side in found]
    return sorted({name for name in names if names.count(name) > 1})


def _signature(run: RunRecord, stage: StageRecord, shared: set[str]) -> str:
    own = [s for s in run.ancestors(stage) if s.id not in shared]
    settings = [[s.kind, s.method, s.config] for s in own]
    return json.dumps(settings, sort_keys=True)


def _name(ends: Mapping[int, StageRecord]) -> str:
    first = next(iter(ends.values()))
    return first.side or first.id


def _side(run: RunRecord, name: str, ends: Mapping[int, StageRecord], shared: set[str]) -> Side:
    line: set[str] = set()
    trained = []  # a stage on which several seeds build counts once for each
    for end in ends.values():
        built_on = run.ancestors(end)
        line |= {s.id for s in built_on}
        trained += [s for s in built_on if s.trains and s.id not in shared]
    spent = {}
    for budget in BUDGETS:
        total = math.fsum(figure(s.result, budget) for s in trained)
        spent[budget] = total / len(ends)
    return Side(name=name, ends=ends, line=frozenset(line), spent=spent)


def last_training_loss(stage: StageRecord) -> float:
    """Mean training loss of the last tenth of the lines, nats per token."""
    losses = [figure(line, "loss_nats") for line in stage.metrics]
    if not losses:
        return math.nan
    count = max(1, round(TAIL * len(losses)))
    return math.fsum(losses[-count:]) / count


def held_out_gap(stage: StageRecord) -> float:
    """By how much held-out text costs more than the text trained on, nats per token, domains as they were drawn."""
    ledger = numbers(stage.result.get("ledger"))
    held_out = numbers(stage.evaluation.get("loss_nats"))
    drawn = {domain: ledger.get(domain, 0.0) for domain in held_out}
    total = math.fsum(drawn.values())
    if not total:
        return math.nan
    weighted = math.fsum(drawn[domain] * loss for domain, loss in held_out.items())
    return weighted / total - last_training_loss(stage)
