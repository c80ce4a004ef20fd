"""Adaptive smoothing: the probabilities of an accurate and of a robust classifier, mixed by one number an input.

**Equation:** out = log((1 - a) softmax(g(x)) + a softmax(h(x))); a constant, or sigmoid(gamma(x)). Robust where h keeps
    a margin of probabilities of at least (1 - a) / a in the ball around x. Loss of gamma: BCE(gamma, attacked) + 0.5 CE
    + 0.1 BCE CE, clean inputs counted twice.
**Shapes:** logits [B, C], gamma [B], features [B, D].
**Reference:** Bai, Anderson, Kim and Sojoudi 2023 (2301.12554), equations 5 and 9, theorem 1, and the authors' code.
**Differs:** gamma comes from a hidden layer on features of both nets, with a batch norm without gains, instead of
    from a convolutional net; the squeeze of a in evaluation is an option (`least`, `most`).
**Fails when:** a is below 1/2: nothing is certified.
**Cost:** both nets and O(D H) an input.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

from mixwell.core.method import method


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of adaptive smoothing."""

    hidden_dim: int = 32  # H of the net that gives gamma
    least: float = 0.0  # a is squeezed into [least, most]
    most: float = 1.0

    def __post_init__(self) -> None:
        if self.hidden_dim < 1 or not 0 <= self.least <= self.most <= 1:
            raise ValueError(f"hidden_dim is {self.hidden_dim}, a from {self.least} to {self.most}; expected 1 or "
                             "more, and 0 <= least <= most <= 1")


def mixed(accurate_BC: Tensor, robust_BC: Tensor, alpha: Tensor | float) -> Tensor:
    """Log probabilities of the mixture [B, C]; alpha, 0 to 1, of the robust net, one number or one an input."""
    share = torch.as_tensor(alpha, dtype=accurate_BC.dtype)
    if share.ndim:
        share = share.unsqueeze(-1)
    accurate = accurate_BC.log_softmax(-1)
    robust = robust_BC.log_softmax(-1)
    first = accurate + torch.log1p(-share)
    second = robust + share.log()
    return torch.logaddexp(first, second)


def margin(logits_BC: Tensor) -> Tensor:
    """Probability of the best class minus that of the next [B]."""
    shares_BC = logits_BC.softmax(-1)
    best = shares_BC.topk(2, dim=-1).values
    first, second = best.unbind(-1)
    return first - second


def needed_margin(alpha: float) -> float:
    """The robust net's margin from which no net beside it can change the class; infinite below a = 1/2."""
    if alpha < 0.5:
        return math.inf
    return (1 - alpha) / alpha


def gate_loss(gamma_B: Tensor, attacked_B: Tensor, mixed_BC: Tensor, labels_B: Tensor) -> Tensor:
    """The loss of the net that gives gamma; attacked 0 or 1."""
    told = F.binary_cross_entropy_with_logits(gamma_B, attacked_B, reduction="none")
    missed = F.nll_loss(mixed_BC, labels_B, reduction="none")
    weights = 2 - attacked_B
    each = told + 0.5 * missed + 0.1 * told * missed
    return (weights * each).mean()


@method(title="Adaptive smoothing",
        paper="Improving the Accuracy-Robustness Trade-Off of Classifiers via Adaptive Smoothing", year=2023)
class AdaptiveSmoothing(nn.Module):
    """gamma from features of both nets, and the mixture."""

    def __init__(self, dim: int, config: Config, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.into = skip_init(nn.Linear, dim, config.hidden_dim)
        self.out = skip_init(nn.Linear, config.hidden_dim, 1)
        self.norm = nn.BatchNorm1d(1, affine=False, momentum=0.01)
        with torch.no_grad():
            for layer in (self.into, self.out):
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * layer.in_features**-0.5)
                layer.bias.zero_()

    def gamma(self, features_BD: Tensor) -> Tensor:
        """How much an input looks attacked [B]; no gradient reaches the nets that the features come from."""
        hidden = F.relu(self.into(features_BD.detach()))
        return self.norm(self.out(hidden)).squeeze(-1)

    def alpha(self, features_BD: Tensor) -> Tensor:
        """The share of the robust net [B]."""
        width = self.config.most - self.config.least
        return self.config.least + width * self.gamma(features_BD).sigmoid()

    def forward(self, accurate_BC: Tensor, robust_BC: Tensor, features_BD: Tensor) -> Tensor:
        """Log probabilities [B, C]."""
        return mixed(accurate_BC, robust_BC, self.alpha(features_BD))


def example(generator: torch.Generator) -> dict[str, Any]:
    """A net on five features."""
    return {"dim": 5, "config": Config(hidden_dim=4), "generator": generator}
