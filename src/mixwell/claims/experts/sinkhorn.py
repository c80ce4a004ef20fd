"""BlackMamba: Sinkhorn routing balances tokens without a loss, and its warm start needs fewer iterations.

Paper: BlackMamba: Mixture of Experts for State-Space Models.
Tried: regression in sixteen clusters of unequal frequency, one of eight experts; busiest expert's load over the last 50
training batches, against the Switch loss. Against it: a load that is no more even, an error more than 5 % higher, or a
warm start that takes no fewer iterations than a start from ones on the trained router's logits.
"""

from __future__ import annotations

import statistics

import torch

from mixwell.claims._judging import no_worse, provided
from mixwell.claims.bench import Bench
from mixwell.claims.experts._synthetic import TOP1, Clusters, build, error, fit, imbalance
from mixwell.core import registry
from mixwell.core.evidence import Evidence, weigh
from mixwell.core.rng import generator

STEPS = 500
PLAN = {"router": {"method": "sinkhorn"}, "balance": {}}


def measure(seed: int, spec: dict) -> tuple[float, float, object]:
    """(busiest load in training, error on fresh tokens, the layer)."""
    draw, loads = Clusters(seed, zipf=1.0), []

    def watch(step: int, mixed: object) -> None:
        if step >= STEPS - 50:
            loads.append(imbalance(mixed.routing.load_E()))  # type: ignore[attr-defined]

    layer = fit(build(seed, spec), draw, seed, steps=STEPS, watch=watch)
    return statistics.fmean(loads), error(layer, draw, seed), layer


@torch.no_grad()
def iterations(seed: int, layer: object, start: str) -> int:
    """Iterations until the plan over 512 fresh tokens rests."""
    module = registry.find("experts.routers.sinkhorn").module()
    x_TD = Clusters(seed, zipf=1.0)(512, generator(seed, "test")).x_TD
    return module.transport(layer.router.logits(x_TD), module.Config(start=start))[1]  # type: ignore[attr-defined]


def claim(bench: Bench) -> Evidence:
    """Busiest load under Sinkhorn against the Switch loss, and iterations of the two starts."""
    method, baseline = ([measure(seed, dict(spec)) for seed in bench.seeds] for spec in (PLAN, TOP1))
    warm, ones = ([float(iterations(seed, m[2], start)) for seed, m in zip(bench.seeds, method)]
                  for start in ("warm", "ones"))
    evidence = weigh("Sinkhorn routing balances without a loss, at no cost.",
                     "busiest expert's load over the mean load, in training",
                     [m[0] for m in method], [b[0] for b in baseline],
                     note="A plan of low sharpness is balanced in its mass and not in its largest entries: all tokens "
                          "of the largest cluster, 30 % of the batch, still prefer one expert. The warm start does "
                          "need fewer iterations.")
    ours, theirs = [m[1] for m in method], [b[1] for b in baseline]
    why = "Its error is more than 5 % higher." if not no_worse(ours, theirs, 0.05) else "The warm start is no quicker."
    return provided(evidence, no_worse(ours, theirs, 0.05) and sum(warm) < sum(ones), why, method_error=ours,
                    baseline_error=theirs, iterations_warm=warm, iterations_ones=ones)
