"""What a stage of mixing chose, what it predicted, and what the trainings on its mixtures came to."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from mixwell.core import units
from mixwell.report.records import RunRecord, StageRecord, numbers
from mixwell.report.statistics import Interval, interval

SAME = 0.005  # how far two mixtures' weights may be from each other to be one
SEED = re.compile(r"-s\d+$")  # ends the name of one of a stage's seeds
NAMES = {"chosen": "the choice", "natural": "the text's own shares", "equal": "equal shares"}
Setting = tuple[Any, int]  # parameters of a model, and which of the trainings of one seed it is


def mixtures(run: RunRecord) -> list[dict[str, Any]]:
    """Tables of each stage that chose a mixture."""
    chose = [stage for stage in run.stages if stage.kind == "mix"]
    return [_one(run, stage) for stage in chose]


def _one(run: RunRecord, stage: StageRecord) -> dict[str, Any]:
    result = stage.result
    ranks = numbers(result.get("rank_correlations"))
    tokens = units.si(result.get("tokens"))
    sentence = (f"{result.get('proxies')} small trainings, {tokens} tokens together, each on other shares of the "
                f"domains. Of trainings that it did not see, the predictor ({stage.config.get('method')}) orders the "
                f"losses with a rank correlation of {_range(list(ranks.values()))}.")
    reached = achieved(run, stage)
    return {"id": stage.id, "sentence": sentence, "table": result.get("table"), "weights": _weights(result, ranks),
            "losses": _losses(stage, reached), "domains": _domains(stage, reached), "judged": judged(reached)}


def _range(values: Sequence[float]) -> str:
    if not values:
        return units.ABSENT
    low, high = units.fixed(min(values), 2), units.fixed(max(values), 2)
    return low if low == high else f"{low} to {high}"


def _weights(result: Mapping[str, Any], ranks: Mapping[str, float]) -> list[list[str]]:
    """Domain, own share, chosen share, the most it may have, bits per byte predicted, rank correlation."""
    chosen = result["predicted"]["chosen"]
    natural = result["predicted"]["natural"]
    rows = []
    for name, weight in chosen["weights"].items():
        share = units.percent(weight)
        own = units.percent(natural["weights"][name])
        cap = units.percent(min(1.0, result["caps"][name]))
        expected = _between(chosen, name)
        rows.append([name, own, share, cap, _between(natural, name), expected, units.fixed(ranks.get(name), 2)])
    return rows


def _between(predicted: Mapping[str, Any], name: str) -> str:
    """`2.314 (2.280 to 2.349)`"""
    middle = predicted["losses"][name]
    low = predicted["low"][name]
    high = predicted["high"][name]
    reach = f"{units.fixed(low, 3)} to {units.fixed(high, 3)}"
    return f"{units.fixed(middle, 3)} ({reach})"


def achieved(run: RunRecord, stage: StageRecord) -> dict[str, list[StageRecord]]:
    """The trainings on each mixture of which losses were predicted, by the mixture's name."""
    text = _text(run, stage)
    trainings = [one for one in run.stages if one.kind == "train" and _text(run, one) == text]
    found = {}
    for name, one in stage.result["predicted"].items():
        found[name] = _reached(trainings, name, one["weights"])
    return found


def _losses(stage: StageRecord, reached: Mapping[str, Sequence[StageRecord]]) -> list[list[str]]:
    """Each mixture's mean bits per byte, predicted of a proxy and reached by trainings, and both against own shares."""
    told = stage.result["predicted"]
    predicted = {name: fmean(one["losses"].values()) for name, one in told.items()}
    means = {name: _means(trained) for name, trained in reached.items()}
    rows = []
    for name, expected in predicted.items():
        trainings = ", ".join(_named(reached[name])) or units.ABSENT
        told_by = units.fixed(expected, 3)
        told_less = _less(expected, predicted["natural"])
        own = means[name]
        less = _less_of(own, means["natural"])
        rows.append([NAMES[name], told_by, told_less, trainings, _mean(own), less])
    return rows


def _named(trained: Sequence[StageRecord]) -> list[str]:
    """Names of trainings, those of one stage's seeds once."""
    names = [SEED.sub("", one.id) for one in trained]
    return list(dict.fromkeys(names))


def _means(trained: Sequence[StageRecord]) -> list[float]:
    """Mean bits per byte of each training."""
    return [one.evaluation["mean"] for one in trained]


def judged(reached: Mapping[str, Sequence[StageRecord]]) -> list[str]:
    """Whether trainings on the choice beat those on the other mixtures, paired by seed, a sentence each.

    Models of several sizes are judged each by itself, and named.
    """
    own = _settings(reached["chosen"])
    said = []
    for name in ("natural", "equal"):
        if reached[name] and reached[name] == reached["chosen"]:
            said.append(f"The choice is {NAMES[name]}: there is nothing to judge.")
            continue
        others = _settings(reached[name])
        for setting, trained in own.items():
            gains = _gains(trained, others.get(setting, {}))
            if gains:
                first = next(iter(trained.values()))
                which = f" ({first.id})" if len(own) > 1 else ""
                said.append(_verdict(f"{NAMES[name]}{which}", interval(gains)))
    return said


def _settings(trained: Sequence[StageRecord]) -> dict[Setting, dict[int, StageRecord]]:
    """Seed -> training, for each size of model; what one seed trains more often at a size stands apart, by its order.
    """
    found: dict[Setting, dict[int, StageRecord]] = {}
    for one in trained:
        size = one.result.get("parameters")
        turn = 0
        while one.seed in found.get((size, turn), {}):
            turn += 1
        found.setdefault((size, turn), {})[one.seed] = one
    return found


def _gains(own: Mapping[int, StageRecord], other: Mapping[int, StageRecord]) -> list[float]:
    """By how many percent bits per byte change, of each seed that both have."""
    found = []
    for seed in own:
        if seed in other:
            ours, theirs = _means([own[seed], other[seed]])
            found.append(100 * (ours / theirs - 1))
    return found


def _verdict(against: str, gain: Interval) -> str:
    """`The choice against equal shares: -0.8 % bits per byte (-1.1 to -0.5 over 3 seeds): better.`"""
    seeds = units.counted(gain.count, "seed")
    middle = _signed(gain.mean, 2)
    sentence = f"The choice against {against}: {middle} % bits per byte"
    if math.isnan(gain.half):
        return f"{sentence} from {seeds}, which says nothing of its scatter."
    low = _signed(gain.low, 2)
    high = _signed(gain.high, 2)
    outcome = "the seeds do not tell"
    if gain.high < 0:
        outcome = "better"
    if gain.low > 0:
        outcome = "worse"
    return f"{sentence} ({low} to {high}, paired over {seeds}): {outcome}."


def _signed(value: float, decimals: int) -> str:
    sign = "+" if value > 0 else "−" if value < 0 else ""
    size = units.fixed(abs(value), decimals)
    return f"{sign}{size}"


def _domains(stage: StageRecord, reached: Mapping[str, Sequence[StageRecord]]) -> list[list[str]]:
    """Each domain's bits per byte on the choice against the other mixtures: predicted of proxies, and achieved."""
    told = stage.result["predicted"]
    rows = []
    for domain in told["chosen"]["losses"]:
        row = [domain]
        for other in ("natural", "equal"):
            expected = _less(told["chosen"]["losses"][domain], told[other]["losses"][domain])
            own = _of_domain(reached["chosen"], domain)
            row += [expected, _less_of(own, _of_domain(reached[other], domain))]
        rows.append(row)
    return rows


def _of_domain(trained: Sequence[StageRecord], domain: str) -> list[float]:
    """Bits per byte of a domain, of each training."""
    return [one.evaluation["bits_per_byte"][domain] for one in trained]


def _text(run: RunRecord, stage: StageRecord) -> list[str]:
    """The stages of tokens that it reads: other text has shares of its own under the same names of domains."""
    known = run.inputs(stage)
    return [one.id for one in known if one.kind == "tokens"]


def _reached(trainings: Sequence[StageRecord], name: str, weights: Mapping[str, float]) -> list[StageRecord]:
    """The trainings that read the domains by these weights, and were evaluated."""
    found = []
    for stage in trainings:
        known = units.is_number(stage.evaluation.get("mean"))
        if known and _is_of(stage, name, weights):
            found.append(stage)
    return found


def _is_of(stage: StageRecord, name: str, weights: Mapping[str, float]) -> bool:
    planned = numbers(stage.result.get("weights"))
    if not planned:
        return name == "natural"
    total = sum(planned.values())
    apart = [abs(planned.get(domain, 0.0) / total - weight) for domain, weight in weights.items()]
    return max(apart) < SAME


def _mean(reached: Sequence[float]) -> str:
    if not reached:
        return units.ABSENT
    mean = fmean(reached)
    return units.fixed(mean, 3)


def _less_of(reached: Sequence[float], natural: Sequence[float]) -> str:
    if not reached or not natural:
        return units.ABSENT
    return _less(fmean(reached), fmean(natural))


def _less(value: float, natural: float) -> str:
    """The change against the text's own shares, signed."""
    change = 100 * (value / natural - 1)
    return f"{_signed(change, 1)} %"
