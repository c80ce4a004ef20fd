"""SparseMixer: its router gradient is nearer to that of the expected loss than Switch's, at one expert's cost.

Paper: Sparse Backpropagation for MoE Training.
Tried: one token, four experts, cross-entropy over eight classes of their output; mean gradient over 10,000 draws
against the exact one by enumeration, for 20 problems a seed; the baseline is the gradient through the weight alone.
Against it: a distance to the exact gradient that is no smaller. Speed of convergence is not tried.
"""

from __future__ import annotations

import statistics

import torch
from torch import Tensor
from torch.nn import functional as F

from mixwell.claims._series import columns
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.core import registry
from mixwell.core.rng import generator

DRAWS, EXPERTS, CLASSES = 10_000, 4, 8


def loss(weights_N: Tensor, outputs_NC: Tensor) -> Tensor:
    """Cross-entropy of class 0 for each weighted output."""
    scores_NC = weights_N.unsqueeze(1) * outputs_NC
    first_N = torch.zeros(len(weights_N), dtype=torch.int64)
    return F.cross_entropy(scores_NC, first_N, reduction="none")


def distances(draws: torch.Generator) -> tuple[float, float]:
    """Relative distance to the exact gradient of SparseMixer and of the plain estimate."""
    module = registry.find("experts.routers.sparse_mixer").module()
    config = module.Config(jitter=float("inf"))
    logits = torch.randn(EXPERTS, generator=draws).requires_grad_()
    outputs = 2 * torch.randn(EXPERTS, CLASSES, generator=draws)

    def gradient(value: Tensor) -> Tensor:
        return torch.autograd.grad(value, logits)[0]

    pi = logits.softmax(0)
    expected = (pi * loss(pi, outputs)).sum()
    exact = gradient(expected)
    routing = module.route(logits.expand(DRAWS, EXPERTS), config, draws)
    chosen, weights = routing.indices_TK[:, 0], routing.weights_TK[:, 0]
    mixed = gradient(loss(weights, outputs[chosen]).mean())
    drawn = torch.multinomial(pi.detach(), DRAWS, replacement=True, generator=draws)
    through_weight = logits.softmax(0)[drawn]
    plain = gradient(loss(through_weight, outputs[drawn]).mean())
    return apart(mixed, exact), apart(plain, exact)


def apart(found: Tensor, exact: Tensor) -> float:
    """Distance relative to the exact one's norm."""
    return float((found - exact).norm() / exact.norm())


CLAIM = Claim("SparseMixer's gradient is nearer to the exact one than Switch's.",
              "distance to the exact router gradient, relative to its norm, median over problems")


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Both distances, median over twenty problems."""
    draws = generator(seed, "sparse_mixer")
    problems = [distances(draws) for _ in range(20)]
    mixed, plain = columns(problems)
    ours = statistics.median(mixed)
    theirs = statistics.median(plain)
    return {"method": ours, "baseline": theirs}
