"""How evenly experts are used: entropy, largest share, dead experts, and heat maps by layer and by domain."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from mixwell.core import units
from mixwell.report import plots
from mixwell.report.records import RunRecord, StageRecord

DEAD = 0.25  # an expert with less than this part of an even share is called dead: most of its weights' cost is wasted
DOMINANT = 3.0  # an expert with more than this many even shares carries the layer

PREFERS = 1.3  # times its share of all text from which an expert is said to prefer a domain
MOST_WORDS = 5  # preferences put in words

Loads = dict[str, dict[str, list[float]]]  # layer -> domain -> share of each expert, summing to 1


def expert_load(run: RunRecord) -> list[dict[str, Any]]:
    """One entry for each stage whose evaluation recorded loads; those of trainings come first."""
    trained: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    for stage in run.stages:
        loads = read_loads(stage)
        if loads:
            views = trained if stage.trains else others
            views.append(_view(stage, loads))
    return trained + others


def read_loads(stage: StageRecord) -> Loads:
    """Loads as shares, whatever they sum to on disk (1, or k for k experts a token); layers without tokens left out."""
    loads: Loads = {}
    for layer, domains in stage.held_out.get("load", {}).items():
        for domain, shares in domains.items():
            total = math.fsum(shares)
            if total > 0:
                by_domain = loads.setdefault(layer, {})
                by_domain[domain] = [v / total for v in shares]
    return loads


def loads_of(stage: StageRecord) -> dict[str, list[float]]:
    """Layer -> share of each expert, every domain counting the same; empty without experts."""
    return _by_layer(read_loads(stage))


def _by_layer(loads: Loads) -> dict[str, list[float]]:
    return {layer: over_domains(by_domain) for layer, by_domain in loads.items()}


def dead_experts(shares: Sequence[float]) -> list[int]:
    """Experts with less than `DEAD` of an even share."""
    least = DEAD / len(shares)
    return [i for i, share in enumerate(shares) if share < least]


def over_domains(by_domain: Mapping[str, Sequence[float]]) -> list[float]:
    """The mean share of each expert, every domain counting the same."""
    rows = list(by_domain.values())
    return [math.fsum(column) / len(rows) for column in zip(*rows)]


def entropy(shares: Sequence[float]) -> float:
    """Entropy over its largest value: 1 = all experts used evenly, 0 = one expert takes everything."""
    if len(shares) < 2:
        return 1.0
    terms = [p * math.log(p) for p in shares if p > 0]
    nats = -math.fsum(terms)
    largest = math.log(len(shares))
    return max(0.0, nats / largest)


def warnings(layer: str, shares: Sequence[float]) -> list[str]:
    """Plain words on what is wrong with a layer's load; empty where nothing is."""
    found = []
    dead = dead_experts(shares)
    if dead:
        found.append(f"Layer {layer}: {_dead(dead)} dead (under {units.percent(DEAD, 0)} of an even share).")
    even = 1 / len(shares)
    largest = max(shares)
    top = shares.index(largest)
    if len(shares) > 1 and largest > min(DOMINANT * even, 0.9):
        found.append(f"Layer {layer}: expert {top} dominates with {units.percent(largest, 0)} of the load, "
                     f"{largest / even:.1f} times an even share.")
    return found


def _dead(experts: Sequence[int]) -> str:
    """`expert 3 is`, `experts 3, 5 are`"""
    if len(experts) == 1:
        return f"expert {experts[0]} is"
    return f"experts {', '.join(map(str, experts))} are"


def specialities(loads: Loads) -> list[str]:
    """What experts prefer, in words, the strongest first.

    An expert prefers a domain where it takes more than an even share of the domain, and `PREFERS` times what it takes
    of all text.
    """
    strong = [one for one in _preferences(loads) if one[0] >= PREFERS]
    strong.sort(reverse=True)
    if not strong and _several_domains(loads):
        return [f"No expert takes {PREFERS} times its share of all text from any domain: none has specialised."]
    words = []
    for ratio, layer, expert, domain, share in strong[:MOST_WORDS]:
        taken = f"{units.percent(share, 0)} of the routed tokens of {domain}"
        words.append(f"Expert {expert} of layer {layer} takes {taken}, {ratio:.1f} times its share of all text.")
    return words


def _preferences(loads: Loads) -> list[tuple[float, str, int, str, float]]:
    """(times its share of all text, layer, expert, domain, share), where that is more than an even share."""
    found = []
    for layer, by_domain in loads.items():
        means = over_domains(by_domain)
        for domain, shares in by_domain.items():
            even = 1 / len(shares)
            for expert, share in enumerate(shares):
                if share > even:
                    ratio = share / means[expert]
                    found.append((ratio, layer, expert, domain, share))
    return found


def _several_domains(loads: Loads) -> bool:
    counts = [len(by_domain) for by_domain in loads.values()]
    return max(counts, default=0) > 1


def _view(stage: StageRecord, loads: Loads) -> dict[str, Any]:
    by_layer = _by_layer(loads)
    found = []
    for layer, shares in by_layer.items():
        found += warnings(layer, shares)
    several = _several_domains(loads)
    return {
        "name": stage.id,
        "experts": max(len(shares) for shares in by_layer.values()),
        "words": specialities(loads),
        "warnings": found,
        "by_layer": load_map("layer", by_layer, _beside(by_layer)),
        "by_domain": [(layer, load_map("domain", loads[layer])) for layer in loads] if several else []}


def _beside(by_layer: Mapping[str, Sequence[float]]) -> dict[str, list[str]]:
    """What stands beside the shares of a layer."""
    rows = by_layer.values()
    return {
        "entropy": [units.fixed(entropy(shares), 3) for shares in rows],
        "largest": [units.percent(max(shares)) for shares in rows],
        "dead": [str(len(dead_experts(shares))) for shares in rows]}


def load_map(corner: str, loads: Mapping[str, Sequence[float]], beside: Mapping[str, Sequence[str]] | None = None, *,
             first: int = 0, decimals: int = 1) -> Markup:
    """Shares in per cent, an even one plain; rows with fewer experts than others are filled up.

    first: what the first column is called. decimals: of the figures.
    """
    count = max(len(row) for row in loads.values())
    padded = []
    for row in loads.values():
        absent = [math.nan] * (count - len(row))
        padded.append([*row, *absent])
    even = 1 / count
    top = max(min(1.0, DOMINANT / count), even)
    columns = [str(first + i) for i in range(count)]
    form = functools.partial(_per_cent, decimals=decimals)
    return plots.heat_map(padded, rows=list(loads), columns=columns, low=0.0, center=even, high=top, corner=corner,
                          form=form, beside=beside)


def _per_cent(share: float, decimals: int) -> str:
    return f"{100 * share:.{decimals}f}"
