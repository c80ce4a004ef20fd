"""Expert dropout: more dropout inside the experts makes fine-tuning on few examples better.

Paper: Switch Transformers: Scaling to Trillion Parameter Models with Simple and Efficient Sparsity.
Tried: a top-1 mixture of eight experts trained on regression in sixteen clusters, then fine-tuned for 200 steps on 128
noisy tokens of maps that have moved; hidden units dropped at 0.2, 0.4 or 0.6 in fine-tuning against none. Held-out
error on the new maps. Against it: an error that is no lower. The paper's smaller dropout in the dense layers has no
place here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mixwell.claims._judging import ERROR
from mixwell.claims._methods import call
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.claims.experts._synthetic import FINE, TOP1, Clusters, build, error, fit, fixed
from mixwell.claims.grids import RATES
from mixwell.core.rng import generator
from mixwell.core.routing import Context, combine, dispatch, plan
from mixwell.kernels.experts import swiglu


def moved(seed: int) -> Clusters:
    """The clusters of a seed with maps of which a fifth is new, and noisy targets."""
    problem = Clusters(seed, noise=0.5)
    maps = problem.maps_CDD
    drawn = torch.randn(maps.shape, generator=generator(seed, "moved"))
    fresh = drawn / maps.shape[1] ** 0.5
    kept = 0.8**0.5 * maps
    problem.maps_CDD = kept + 0.2**0.5 * fresh
    return problem


def forward(layer: Any, x_TD: Tensor, rate: float, draws: torch.Generator) -> Tensor:
    """The mixture's output with its hidden units dropped."""
    routing = layer.router(x_TD, Context())
    order = plan(routing.indices_TK, routing.num_experts)
    counts = order.counts_E.tolist()
    given = dispatch(x_TD, order).split(counts)
    hidden = torch.cat([swiglu(part @ up.T) for part, up in zip(given, layer.gate_up_proj)])
    context = Context(generator=draws)
    kept = call("experts.hidden_dropout", hidden, context=context, rate=rate)
    out_of = zip(kept.split(counts), layer.down_proj)
    rows = torch.cat([part @ down.T for part, down in out_of])
    return combine(rows, order, routing.weights_TK)


def measure(bench: Bench, seed: int, *, lr: float, rate: float) -> float:
    """Error on the new maps after fine-tuning with this rate."""
    before = Clusters(seed)
    layer = fit(build(seed, TOP1, problem=before), before, seed)
    problem, draws = moved(seed), generator(seed, "tune")
    few = fixed(problem, seed, 128)
    batch = few(128, draws)
    optimizer = torch.optim.Adam(layer.parameters(), lr=lr)
    for _ in range(200):
        y = forward(layer, batch.x_TD, rate, draws)
        optimizer.zero_grad()
        nn.functional.mse_loss(y, batch.y_TD).backward()
        optimizer.step()
    problem.noise = 0.0
    return error(layer, problem, seed)


WITH = {"lr": RATES, "rate": (0.2, 0.4, 0.6)}

CLAIM = Claim("Dropout inside the experts improves fine-tuning on few examples.", ERROR,
              sides={"method": Side(measure, {}, WITH), "baseline": Side(measure, {"rate": 0.0}, FINE)})
