"""How evenly experts are used: entropy, largest share, dead experts, and heat maps by layer and by domain."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mixwell.core import units
from mixwell.report import plots
from mixwell.report.records import RunRecord, StageRecord

DEAD = 0.25  # an expert with less than this part of an even share is called dead: most of its weights' cost is wasted
DOMINANT = 3.0  # an expert with more than this many even shares carries the layer

PREFERS = 1.3  # times its share of all text from which an expert is said to prefer a domain
MOST_WORDS = 5  # preferences told in words

Loads = dict[str, dict[str, list[float]]]  # layer -> domain -> share of each expert, summing to 1


def expert_load(run: RunRecord) -> list[dict[str, Any]]:
    """One entry for each stage whose evaluation recorded loads; the last trained one comes first."""
    views = [_view(stage, loads) for stage in run.stages if (loads := read_loads(stage))]
    trained = [s.id for s in run.stages if s.trains]
    return sorted(views, key=lambda view: view["name"] not in trained)


def read_loads(stage: StageRecord) -> Loads:
    """Loads as shares, whatever they sum to on disk (1, or k for k experts a token); layers without tokens left out."""
    loads: Loads = {}
    for layer, domains in stage.held_out.get("load", {}).items():
        for domain, shares in domains.items():
            if (total := math.fsum(shares)) > 0:
                loads.setdefault(layer, {})[domain] = [v / total for v in shares]
    return loads


def loads_of(stage: StageRecord) -> dict[str, list[float]]:
    """Layer -> share of each expert, every domain counting the same; empty without experts."""
    return {layer: over_domains(by_domain) for layer, by_domain in read_loads(stage).items()}


def dead_experts(shares: Sequence[float]) -> list[int]:
    """Experts with less than `DEAD` of an even share."""
    return [i for i, share in enumerate(shares) if share < DEAD / len(shares)]


def over_domains(by_domain: Mapping[str, Sequence[float]]) -> list[float]:
    """The mean share of each expert, every domain counting the same."""
    rows = list(by_domain.values())
    return [math.fsum(column) / len(rows) for column in zip(*rows)]


def entropy(shares: Sequence[float]) -> float:
    """Entropy over its largest value: 1 = all experts used evenly, 0 = one expert takes everything."""
    if len(shares) < 2:
        return 1.0
    return max(0.0, -math.fsum(p * math.log(p) for p in shares if p > 0) / math.log(len(shares)))


def warnings(layer: str, shares: Sequence[float]) -> list[str]:
    """Plain words on what is wrong with a layer's load; empty where nothing is."""
    even, found = 1 / len(shares), []
    if dead := dead_experts(shares):
        found.append(f"Layer {layer}: {'expert' if len(dead) == 1 else 'experts'} {', '.join(map(str, dead))} "
                     f"{'is' if len(dead) == 1 else 'are'} dead (under {units.percent(DEAD, 0)} of an even share).")
    top = max(range(len(shares)), key=shares.__getitem__)
    if len(shares) > 1 and shares[top] > min(DOMINANT * even, 0.9):
        found.append(f"Layer {layer}: expert {top} dominates with {units.percent(shares[top], 0)} of the load, "
                     f"{shares[top] / even:.1f} times an even share.")
    return found


def specialities(loads: Loads) -> list[str]:
    """What experts prefer, in words, the strongest first.

    An expert prefers a domain where it takes more than an even share of the domain, and `PREFERS` times what it takes
    of all text.
    """
    found = []
    for layer, by_domain in loads.items():
        means = over_domains(by_domain)
        for domain, shares in by_domain.items():
            found += [(share / mean, layer, expert, domain, share) for expert, (share, mean)
                      in enumerate(zip(shares, means)) if share > 1 / len(shares)]
    strong = sorted((one for one in found if one[0] >= PREFERS), reverse=True)
    if not strong and any(len(by_domain) > 1 for by_domain in loads.values()):
        return [f"No expert takes {PREFERS} times its share of all text from any domain: none has specialised."]
    return [f"Expert {expert} of layer {layer} takes {units.percent(share, 0)} of the routed tokens of {domain}, "
            f"{ratio:.1f} times its share of all text." for ratio, layer, expert, domain, share in strong[:MOST_WORDS]]


def _view(stage: StageRecord, loads: Loads) -> dict[str, Any]:
    means = {layer: over_domains(by_domain) for layer, by_domain in loads.items()}
    several = any(len(by_domain) > 1 for by_domain in loads.values())
    return {"name": stage.id, "experts": max(len(p) for p in means.values()), "words": specialities(loads),
            "warnings": [w for layer, p in means.items() for w in warnings(layer, p)], "by_layer": _map("layer", means),
            "by_domain": [(layer, _map("domain", by_domain)) for layer, by_domain in loads.items()] if several else []}


def _map(corner: str, loads: Mapping[str, Sequence[float]]) -> Any:
    """Shares in per cent; for layers with entropy, largest share and dead experts beside them."""
    count = max(len(row) for row in loads.values())
    padded = [[*row, *[math.nan] * (count - len(row))] for row in loads.values()]
    beside = {"entropy": [units.fixed(entropy(p), 3) for p in loads.values()],
              "largest": [units.percent(max(p)) for p in loads.values()],
              "dead": [str(len(dead_experts(p))) for p in loads.values()]}
    top = max(min(1.0, DOMINANT / count), 1 / count)
    return plots.heat_map(padded, rows=list(loads), columns=[str(i) for i in range(count)], low=0.0, center=1 / count,
                          high=top, corner=corner, form=lambda v: f"{100 * v:.1f}",
                          beside=beside if corner == "layer" else None)
