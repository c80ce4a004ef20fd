"""BlackMamba: Sinkhorn routing balances tokens without a loss, and its warm start needs fewer iterations.

Paper: BlackMamba: Mixture of Experts for State-Space Models.
Tried: regression in sixteen clusters of unequal frequency, one of eight experts; busiest expert's load over the last 50
training batches, against the Switch loss. Against it: a load that is no more even, an error more than 5 % higher, or a
warm start that takes no fewer iterations than a start from ones on the trained router's logits.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

import torch

from mixwell.claims._judging import no_worse, provided
from mixwell.claims._series import series
from mixwell.claims.bench import Bench
from mixwell.claims.experts._synthetic import TOP1, Clusters, build, error, fit, imbalance
from mixwell.core import registry
from mixwell.core.evidence import Evidence, weigh
from mixwell.core.rng import generator

STEPS = 500
PLAN = {"router": {"method": "sinkhorn"}, "balance": {}}


def measure(seed: int, spec: Mapping[str, Any]) -> tuple[float, float, Any]:
    """(busiest load in training, error on fresh tokens, the layer)."""
    draw = Clusters(seed, zipf=1.0)
    loads: list[float] = []

    def watch(step: int, mixed: Any) -> None:
        if step >= STEPS - 50:
            load_E = mixed.routing.load_E()
            loads.append(imbalance(load_E))

    layer = build(seed, spec)
    fit(layer, draw, seed, steps=STEPS, watch=watch)
    return statistics.fmean(loads), error(layer, draw, seed), layer


@torch.no_grad()
def iterations(seed: int, layer: Any, start: str) -> float:
    """Iterations until the plan over 512 fresh tokens rests."""
    module = registry.find("experts.routers.sinkhorn").module()
    draw = Clusters(seed, zipf=1.0)
    batch = draw(512, generator(seed, "test"))
    logits_TE = layer.router.logits(batch.x_TD)
    config = module.Config(start=start)
    _, count = module.transport(logits_TE, config)
    return float(count)


def claim(bench: Bench) -> Evidence:
    """Busiest load under Sinkhorn against the Switch loss, and iterations of the two starts."""
    method, ours, layers = series(bench, measure, PLAN)
    baseline, theirs, _ = series(bench, measure, TOP1)
    trained = dict(zip(bench.seeds, layers))
    warm = [iterations(seed, layer, "warm") for seed, layer in trained.items()]
    ones = [iterations(seed, layer, "ones") for seed, layer in trained.items()]
    evidence = weigh("Sinkhorn routing balances without a loss, at no cost.",
                     "busiest expert's load over the mean load, in training", method, baseline,
                     note="A plan of low sharpness is balanced in its mass and not in its largest entries: all tokens "
                          "of the largest cluster, 30 % of the batch, still prefer one expert. The warm start does "
                          "need fewer iterations.")
    quicker = sum(warm) < sum(ones)
    as_good = no_worse(ours, theirs, 0.05)
    why_not = "The warm start is no quicker." if as_good else "Its error is more than 5 % higher."
    return provided(evidence, as_good and quicker, why_not, method_error=ours, baseline_error=theirs,
                    iterations_warm=warm, iterations_ones=ones)
