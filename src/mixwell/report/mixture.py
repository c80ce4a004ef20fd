"""What a stage of mixing chose, what it predicted, and what the trainings on its mixtures came to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from mixwell.core import units
from mixwell.report.records import RunRecord, StageRecord, numbers

SAME = 0.005  # how far two mixtures' weights may be from each other to be one
NAMES = {"chosen": "the choice", "natural": "the text's own shares", "equal": "equal shares"}


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
    return {"id": stage.id, "sentence": sentence, "table": result.get("table"), "weights": _weights(result, ranks),
            "losses": _losses(run, stage)}


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


def _losses(run: RunRecord, stage: StageRecord) -> list[list[str]]:
    """Each mixture's mean bits per byte, predicted of a proxy and reached by trainings, and both against own shares."""
    told = stage.result["predicted"]
    predicted = {name: fmean(one["losses"].values()) for name, one in told.items()}
    text = _text(run, stage)
    trainings = [one for one in run.stages if one.kind == "train" and _text(run, one) == text]
    achieved = {}
    for name, one in told.items():
        achieved[name] = _reached(trainings, name, one["weights"])
    rows = []
    for name, expected in predicted.items():
        reached = achieved[name]
        ids = ", ".join(reached) or units.ABSENT
        row = [NAMES[name], units.fixed(expected, 3), _less(expected, predicted["natural"])]
        rows.append([*row, ids, _mean(reached), _less_of(reached, achieved["natural"])])
    return rows


def _text(run: RunRecord, stage: StageRecord) -> list[str]:
    """The stages of tokens that it reads: other text has shares of its own under the same names of domains."""
    known = run.inputs(stage)
    return [one.id for one in known if one.kind == "tokens"]


def _reached(trainings: Sequence[StageRecord], name: str, weights: Mapping[str, float]) -> dict[str, float]:
    """Mean bits per byte of each training that read the domains by these weights, by id."""
    found = {}
    for stage in trainings:
        mean = stage.evaluation.get("mean")
        if units.is_number(mean) and _is_of(stage, name, weights):
            found[stage.id] = mean
    return found


def _is_of(stage: StageRecord, name: str, weights: Mapping[str, float]) -> bool:
    planned = numbers(stage.result.get("weights"))
    if not planned:
        return name == "natural"
    total = sum(planned.values())
    apart = [abs(planned.get(domain, 0.0) / total - weight) for domain, weight in weights.items()]
    return max(apart) < SAME


def _mean(reached: Mapping[str, float]) -> str:
    if not reached:
        return units.ABSENT
    mean = fmean(reached.values())
    return units.fixed(mean, 3)


def _less_of(reached: Mapping[str, float], natural: Mapping[str, float]) -> str:
    if not reached or not natural:
        return units.ABSENT
    return _less(fmean(reached.values()), fmean(natural.values()))


def _less(value: float, natural: float) -> str:
    """The change against the text's own shares, signed."""
    change = 100 * (value / natural - 1)
    sign = "+" if change > 0 else "−" if change < 0 else ""
    return f"{sign}{units.fixed(abs(change), 1)} %"
