"""Dense training, sparse inference: every expert works while training, the best few once the model serves.

**Equation:** p = softmax(W x);  training: y = sum_e p_e E_e(x);
    inference: I = top-k of p, or the e with p_e > t (the best one at least);  y = sum_{e in I} p_e E_e(x).
**Shapes:** x [T, D], W [E, D], scores [T, E], indices and weights [T, K] with K = E in training.
**Reference:** Pan et al. 2024, DS-MoE (2404.05567), section 3; its loss is `experts.balance.entropy` with the rule
    mutual_information, its attention `sequence.mixture_of_attention_heads`.
**Differs:** from memory of the paper. The kept gates are used as they are; `renormalise` scales them to sum to 1. W
    starts normal with std 0.02.
**Fails when:** trained without the mutual-information loss: flat gates make what inference leaves out be missed.
    Training costs what a dense model of all the experts costs.
**Cost:** O(T E D) for the logits; E experts a token in training, k or as many as pass the threshold at inference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.core.routing import Context, Routing
from mixwell.experts.routers._parts import LinearRouter
from mixwell.mixing import check_k, check_least, normalised, select, to_slots


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of dense training."""

    k: int = 2  # experts per token at inference, 1 to E; not used where there is a threshold
    threshold: float | None = None  # t, 0 up to 1: at inference every expert above it works; 0 is dense
    renormalise: bool = False  # at inference a token's weights sum to 1

    def __post_init__(self) -> None:
        check_least(self, k=1)
        t = self.threshold
        if t is not None and not 0 <= t < 1:
            raise ValueError(f"threshold is {t}; expected 0 up to 1, or none for top-k")


def sparse(logits_TE: Tensor, config: Config) -> Routing:
    """The routing of inference."""
    scores = logits_TE.softmax(-1)
    if config.threshold is None:
        indices, weights = select(scores, config.k)
    else:
        above = scores > config.threshold
        best = scores.argmax(-1, keepdim=True)
        indices, weights = to_slots(above.scatter(-1, best, True), scores)
    if config.renormalise:
        weights = normalised(weights)
    return Routing(indices, weights, scores, logits_TE)


def dense(logits_TE: Tensor) -> Routing:
    """The routing of training: every expert, weighted by its gate."""
    scores = logits_TE.softmax(-1)
    indices = torch.arange(scores.shape[1], device=scores.device).expand(scores.shape)
    return Routing(indices, scores, scores, logits_TE)


@method(
    title="Dense training, sparse inference",
    paper="Dense Training, Sparse Inference: Rethinking Training of Mixture-of-Experts Language Models",
    year=2024,
    tags={"token-choice", "batch-invariant", "exact-k", "dense-at-full-k"},
)
class DenseTrain(LinearRouter):
    """Router that is dense in training and sparse at inference; see the module's card."""

    config: Config

    def __init__(self, dim: int, num_experts: int, config: Config | None = None,
                 generator: torch.Generator | None = None) -> None:
        config = config or Config()
        check_k(config.k, num_experts)
        super().__init__(dim, num_experts, config, generator)

    @property
    def experts_per_token(self) -> float:
        """At inference: k, or E where a threshold may let all pass; training visits all E."""
        if self.config.threshold is None:
            return float(self.config.k)
        return float(self.num_experts)

    def forward(self, x_TD: Tensor, context: Context) -> Routing:
        """Route the tokens [T, D]."""
        logits = self.logits(x_TD)
        return dense(logits) if self.training else sparse(logits, self.config)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens of width six, four experts."""
    x_TD = torch.randn(8, 6, generator=generator)
    return {"dim": 6, "num_experts": 4, "config": Config(), "x_TD": x_TD}
