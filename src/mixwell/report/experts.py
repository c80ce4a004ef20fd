"""How evenly experts are used: entropy, largest share, dead experts, and heat maps by layer and by domain."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mixwell.core import units
from mixwell.report import plots
from mixwell.report.run_folder import Run, Stage

DEAD = 0.05  # an expert with less than this part of an even share gets no gradient to speak of
DOMINANT = 3.0  # an expert with more than this many even shares carries the layer

Loads = dict[str, dict[str, list[float]]]  # layer -> domain -> share of each expert, summing to 1


def expert_load(run: Run) -> list[dict[str, Any]]:
    """One entry for each stage whose evaluation recorded loads; the last trained one comes first."""
    views = [_view(stage, loads) for stage in run.stages if (loads := read_loads(stage))]
    trained = [s.id for s in run.stages if s.trains]
    return sorted(views, key=lambda view: view["name"] not in trained)


def read_loads(stage: Stage) -> Loads:
    """Loads as shares, whatever they sum to on disk (1, or k for k experts a token); layers without tokens left out."""
    raw = stage.evaluation.get("load")
    loads: Loads = {}
    for layer, domains in raw.items() if isinstance(raw, Mapping) else ():
        for domain, shares in domains.items() if isinstance(domains, Mapping) else (("all", domains),):
            if _are_shares(shares):
                loads.setdefault(str(layer), {})[str(domain)] = [v / sum(shares) for v in shares]
    return loads


def _are_shares(values: Any) -> bool:
    return isinstance(values, list) and all(units.is_number(v) and v >= 0 for v in values) and sum(values) > 0


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
    if dead := [str(i) for i, p in enumerate(shares) if p < DEAD * even]:
        found.append(f"Layer {layer}: {'expert' if len(dead) == 1 else 'experts'} {', '.join(dead)} "
                     f"{'is' if len(dead) == 1 else 'are'} dead (under {units.percent(DEAD, 0)} of an even share).")
    top = max(range(len(shares)), key=shares.__getitem__)
    if len(shares) > 1 and shares[top] > min(DOMINANT * even, 0.9):
        found.append(f"Layer {layer}: expert {top} dominates with {units.percent(shares[top], 0)} of the load, "
                     f"{shares[top] / even:.1f} times an even share.")
    return found


def _view(stage: Stage, loads: Loads) -> dict[str, Any]:
    means = {layer: over_domains(by_domain) for layer, by_domain in loads.items()}
    several = any(len(by_domain) > 1 for by_domain in loads.values())
    return {"name": stage.id, "experts": max(len(p) for p in means.values()),
            "warnings": [w for layer, p in means.items() for w in warnings(layer, p)], "by_layer": _map("layer", means),
            "by_domain": [(layer, _map("domain", by_domain)) for layer, by_domain in loads.items()] if several else []}


def _map(corner: str, loads: Mapping[str, Sequence[float]]) -> Any:
    """Shares in per cent; for layers with entropy, largest share and dead experts beside them."""
    count = max(len(row) for row in loads.values())
    padded = [[*row, *[math.nan] * (count - len(row))] for row in loads.values()]
    beside = {"entropy": [units.fixed(entropy(p), 3) for p in loads.values()],
              "largest": [units.percent(max(p)) for p in loads.values()],
              "dead": [str(sum(v < DEAD / len(p) for v in p)) for p in loads.values()]}
    top = max(min(1.0, DOMINANT / count), 1 / count)
    return plots.heat_map(padded, rows=list(loads), columns=[str(i) for i in range(count)], low=0.0, center=1 / count,
                          high=top, corner=corner, form=lambda v: f"{100 * v:.1f}",
                          beside=beside if corner == "layer" else None)
