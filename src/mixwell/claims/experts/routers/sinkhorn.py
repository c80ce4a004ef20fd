"""BlackMamba: Sinkhorn routing balances tokens without a loss, and its warm start needs fewer iterations.

Paper: BlackMamba: Mixture of Experts for State-Space Models.
Tried: regression in sixteen equally frequent clusters in families of unequal size, which an even load fits; one of
eight experts, the plan at three sharpnesses; busiest expert's load over the last 50 training batches, against the
Switch loss. Against it: a load that is no more even, an error more than 5 % higher, or a warm start that takes no fewer
iterations than a start from ones on the trained router's logits.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Comparison, Side, no_worse
from mixwell.claims.experts._synthetic import BALANCED, TOP1, Families, build, error, fit, imbalance
from mixwell.claims.grids import RATES, variants
from mixwell.core import registry
from mixwell.core.rng import generator

STEPS = 500


def measure(bench: Bench, seed: int, *, lr: float, **spec: Any) -> dict[str, float]:
    """Busiest load in training, error on fresh tokens, and the iterations of both starts on the trained logits."""
    draw = Families(seed)
    loads: list[float] = []

    def watch(step: int, mixed: Any) -> None:
        if step >= STEPS - 50:
            load_E = mixed.routing.load_E()
            loads.append(imbalance(load_E))

    layer = build(seed, spec, problem=draw)
    fit(layer, draw, seed, steps=STEPS, lr=lr, watch=watch)
    found = {"load": statistics.fmean(loads)}
    found["error"] = error(layer, draw, seed)
    for start in ("warm", "ones"):
        found[start] = iterations(seed, layer, start)
    return found


@torch.no_grad()
def iterations(seed: int, layer: Any, start: str) -> float:
    """Iterations until the plan over 512 fresh tokens rests."""
    module = registry.find("experts.routers.sinkhorn").module()
    draw = Families(seed)
    batch = draw(512, generator(seed, "test"))
    logits_TE = layer.router.logits(batch.x_TD)
    config = module.Config(start=start)
    _, count = module.transport(logits_TE, config)
    return float(count)


ROUTERS = variants({"method": "sinkhorn"}, sharpness=(2.0, 6.0, 20.0))
QUICKER = Comparison(method="method warm", baseline="method ones")

CLAIM = Claim(
    "Sinkhorn routing balances without a loss, at no cost, and its warm start is quicker.",
    "busiest expert's load over the mean load, in training", quantity="load", tuned_by="error",
    provided=(no_worse("error", 0.05), QUICKER),
    sides={"method": Side(measure, {"balance": {}}, {"lr": RATES, "router": ROUTERS}),
           "baseline": Side(measure, TOP1, BALANCED)})
