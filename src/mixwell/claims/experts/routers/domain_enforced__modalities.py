"""Uni-MoE: experts first trained on one modality each and then joined by a router serve the weaker modality better.

Paper: Uni-MoE: Scaling Unified Multimodal LLMs with Mixture of Experts; on the method domain_enforced.
Tried: ten classes of three prototypes each, shown in two modalities by different random maps, the second one noisier
and a fifth of the examples. Three stages of 300 steps (connectors and head; experts on their own modality, routing
enforced; a top-2 router and everything on the mix) against 900 steps of a dense block of equal computation on the mix.
Accuracy on the weaker modality. Against it: an accuracy that is no higher.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mixwell.claims import _methods
from mixwell.claims._methods import with_aux
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.claims.experts._digits import share_right
from mixwell.claims.experts._synthetic import DIM, SIZE, build, mapped
from mixwell.claims.grids import RATES
from mixwell.claims.starts import level
from mixwell.core.rng import generator
from mixwell.core.routing import Context

CLASSES, PROTOTYPES, INPUTS, STEPS = 10, 3, 24, 300
NOISE = torch.tensor([0.5, 1.0])  # of the two modalities
ENFORCED = {"router": {"method": "domain_enforced", "k": 2, "domains": ((0, 1), (2, 3))}, "balance": {},
            "num_experts": 4}


class Senses:
    """Classes seen through two modalities."""

    def __init__(self, seed: int) -> None:
        draws = generator(seed, "senses")
        self.prototypes = torch.randn(CLASSES * PROTOTYPES, DIM, generator=draws)
        self.maps = torch.randn(2, INPUTS, DIM, generator=draws) / DIM**0.5

    def draw(self, count: int, second: float, draws: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """(inputs [N, 24], modalities [N], classes [N]) with a share `second` of the second modality."""
        kinds = torch.randint(CLASSES * PROTOTYPES, (count,), generator=draws)
        of_second = torch.rand(count, generator=draws) < second
        modality = of_second.long()
        noise = NOISE[modality, None] * torch.randn(count, DIM, generator=draws)
        latent = self.prototypes[kinds] + noise
        inputs = mapped(self.maps, modality, latent).tanh()
        return inputs, modality, kinds % CLASSES


class Model(nn.Module):
    """A connector for each modality, a residual block, a head."""

    def __init__(self, seed: int, layer: Any) -> None:
        super().__init__()
        draws = generator(seed, "connectors")
        connectors = torch.randn(2, DIM, INPUTS, generator=draws)
        head = torch.randn(CLASSES, DIM, generator=draws)
        self.connectors = nn.Parameter(connectors / INPUTS**0.5)
        self.head = nn.Parameter(head / DIM**0.5)
        self.layer = layer

    def forward(self, inputs: Tensor, modality: Tensor) -> tuple[Tensor, Tensor | None]:
        """(scores [N, 10], auxiliary loss)."""
        h = mapped(self.connectors, modality, inputs)
        mixed = self.layer(h, Context(labels_T=modality))
        return (h + mixed.y_TD) @ self.head.T, mixed.aux


def started(seed: int, layer: Any, senses: Senses) -> Model:
    """A model whose block starts at the common size."""
    model = Model(seed, layer)
    inputs, modality, _ = senses.draw(512, 0.5, generator(seed, "start"))
    h = mapped(model.connectors, modality, inputs)
    level(layer, (h, Context(labels_T=modality)), SIZE)
    return model


def train(model: Model, senses: Senses, steps: int, parameters: Iterable[Tensor], draws: torch.Generator,
          lr: float) -> None:
    """Cross-entropy on the mix, moving the given parameters only."""
    optimizer = torch.optim.Adam(list(parameters), lr=lr)
    for _ in range(steps):
        inputs, modality, classes = senses.draw(256, 0.2, draws)
        scores, aux = model(inputs, modality)
        loss = nn.functional.cross_entropy(scores, classes)
        model.zero_grad()
        with_aux(loss, aux).backward()
        optimizer.step()


@torch.no_grad()
def weaker(model: Model, senses: Senses, seed: int) -> float:
    """The lower of the accuracies on the two modalities."""
    inputs, modality, classes = senses.draw(8192, 0.5, generator(seed, "test"))
    scores, _ = model(inputs, modality)
    shares = []
    for m in (0, 1):
        own = modality == m
        shares.append(share_right(scores[own], classes[own]))
    return min(shares)


def staged(bench: Bench, seed: int, *, lr: float) -> float:
    """Accuracy after the three stages."""
    senses = Senses(seed)
    draws = generator(seed, "staged")
    layer = build(seed, ENFORCED)
    model = started(seed, layer, senses)
    train(model, senses, STEPS, [model.connectors, model.head], draws, lr)
    train(model, senses, STEPS, model.layer.parameters(), draws, lr)
    fresh = generator(seed, "router")
    router = _methods.build("experts.routers.top_k", DIM, 4, generator=fresh, k=2)
    model.layer.router = router
    everything = model.parameters()
    train(model, senses, STEPS, everything, draws, lr)
    return weaker(model, senses, seed)


def joint(bench: Bench, seed: int, *, lr: float) -> float:
    """Accuracy of the dense block trained on everything from the start."""
    senses = Senses(seed)
    draws = generator(seed, "joint")
    block = build(seed, {"hidden_dim": 64}, method="swiglu")
    model = started(seed, block, senses)
    train(model, senses, 3 * STEPS, model.parameters(), draws, lr)
    return weaker(model, senses, seed)


CLAIM = Claim(
    "Experts trained on one modality each and then joined serve the weaker modality better.",
    "accuracy on the weaker modality", lower_is_better=False,
    sides={"method": Side(staged, {}, {"lr": RATES}), "baseline": Side(joint, {}, {"lr": RATES})})
