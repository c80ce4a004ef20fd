"""STGC: sending tokens away whose gradients oppose those of their expert makes experts agree and lowers the loss.

Paper: Solving Token Gradient Conflict in Mixture-of-Experts for Large Vision-Language Model.
Tried: regression in eight clusters, of which every two have opposite maps; one of four experts, Switch loss at 0.01;
the conflict loss at 0.03, 0.1 or 0.3 on the gradients of the experts' second matrix, against none; mean cosine of a
token's gradient to its expert's mean, on fresh tokens. Against it: a cosine that is no higher, or an error that is no
lower.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Comparison, Side
from mixwell.claims.experts._synthetic import TOP1, Batch, Clusters, build
from mixwell.claims.grids import RATES, finer
from mixwell.core import registry
from mixwell.core.rng import generator
from mixwell.core.routing import Context, combine, dispatch, plan
from mixwell.kernels.experts import swiglu

EXPERTS, STEPS = 4, 400


class Opposed(Clusters):
    """Eight clusters; cluster c + 4 has minus the map of cluster c."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed, clusters=8)
        first = self.maps_CDD[:4]
        self.maps_CDD = torch.cat([first, -first])


def forward(layer: Any, batch: Batch) -> tuple[Any, Tensor, Tensor, Tensor]:
    """(routing, loss, cosine of each token's gradient to its expert's mean [T, 1], balance loss)."""
    conflict = registry.find("experts.balance.token_gradient_conflict").module()
    context = Context()
    routing = layer.router(batch.x_TD, context)
    order = plan(routing.indices_TK, EXPERTS)
    counts = order.counts_E.tolist()
    into = zip(dispatch(batch.x_TD, order).split(counts), layer.gate_up_proj)
    hidden = torch.cat([swiglu(part @ up.T) for part, up in into])
    out_of = zip(hidden.split(counts), layer.down_proj)
    rows = torch.cat([part @ down.T for part, down in out_of])
    y_TD = combine(rows, order, routing.weights_TK)
    loss = nn.functional.mse_loss(y_TD, batch.y_TD)
    outputs = torch.autograd.grad(loss, rows, retain_graph=True)[0]
    experts = torch.arange(EXPERTS).repeat_interleave(order.counts_E)
    cosines = conflict.factor_cosines(outputs, hidden.detach(), experts, EXPERTS)
    return routing, loss, cosines[order.rows_TK], layer.balance[0](routing, context)


def measure(bench: Bench, seed: int, *, lr: float, coefficient: float) -> dict[str, float]:
    """Mean cosine and error on fresh tokens after training."""
    draw = Opposed(seed)
    draws = generator(seed, "fit")
    layer = build(seed, TOP1, num_experts=EXPERTS, problem=draw)
    optimizer = torch.optim.Adam(layer.parameters(), lr=lr)
    for _ in range(STEPS):
        batch = draw(512, draws)
        routing, loss, cosines, balance = forward(layer, batch)
        away = conflict_loss(routing, cosines)
        total = loss + 0.01 * balance + coefficient * away
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    fresh = draw(4096, generator(seed, "test"))
    _, loss, cosines, _ = forward(layer, fresh)
    agreement = float(cosines.mean())
    error = float(loss.detach())
    return {"cosine": agreement, "error": error}


def conflict_loss(routing: Any, cosines: Tensor) -> Tensor:
    """The rule on what a step found."""
    rule = registry.find("experts.balance.token_gradient_conflict")
    config = rule.module().Config()
    return rule.load()(routing, config, Context(), cosines)


WITH = {"lr": RATES, "coefficient": (0.03, 0.1, 0.3)}

CLAIM = Claim(
    "Solving token gradient conflicts makes experts' gradients agree and lowers the loss.",
    "mean cosine of a token's gradient to its expert's mean", quantity="cosine", lower_is_better=False,
    provided=(Comparison(quantity="error"),), tuned_by="error",
    sides={"method": Side(measure, {}, WITH),
           "baseline": Side(measure, {"coefficient": 0.0}, {"lr": finer(RATES, 9)})})
