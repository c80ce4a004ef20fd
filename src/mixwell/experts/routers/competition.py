"""Competition: experts that respond most strongly win the token; a cheap router learns to foresee who would win.

**Equation:** competition step:  s_i = |E_i(x)|_2;  I = top-k of s;  w = softmax of s over I;
    losses["distill"] = alpha mean (softmax(W x) - w)^2, w as target with zeros outside I ("mse"), or
    alpha mean KL(w, softmax(W x)) ("kl").  Any other step, and inference: I = top-k of W x, w = softmax over I.
    Each training step is a competition with chance `rate`.
**Shapes:** x [T, D], W [E, D], responses s [T, E], indices and weights [T, K], scores [T, E].
**Reference:** Pham et al. 2024, CompeteSMoE (2402.02526), section 3 and algorithm 1, with its authors' code.
**Differs:** the target is a constant of the distillation, which trains the router alone (in the code it also moves the
    experts). The code's averaging of responses with router logits is not here. The default `rate` is ours. k = 1 keeps
    the full softmax as the weight, since a softmax over one gives no gradient. On a competition step `scores` are the
    softmax of all responses, so that balance rules act on what chose. W starts normal with std 0.02.
**Fails when:** experts' output norms drift apart for reasons other than fit: the loudest expert then wins everywhere.
**Cost:** as top-k; a competition step runs all E experts on every token, so 1 + rate (E / K - 1) on average.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.core.routing import Context, Routing
from mixwell.experts.routers._parts import LinearRouter, draws
from mixwell.mixing import check_k, check_least, check_not_negative, select


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of competition."""

    k: int = 2  # experts per token, 1 to E
    rate: float = 0.05  # lambda, chance that a training step is a competition, 0 to 1
    distill: float = 1.0  # alpha, coefficient of the distillation loss, 0 or more
    measure: Literal["mse", "kl"] = "mse"  # distance between the router's policy and the competition's

    def __post_init__(self) -> None:
        check_least(self, k=1)
        if not 0 <= self.rate <= 1:
            raise ValueError(f"rate is {self.rate}; expected 0 to 1")
        check_not_negative(self, "distill")


def choose(strength_TE: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """(indices_TK, weights_TK, scores_TE) by logits or by responses: softmax over the k largest."""
    scores = strength_TE.softmax(-1)
    return *select(scores, k, renormalise=k > 1), scores


def distillation(logits_TE: Tensor, target_TE: Tensor, config: Config, mask_T: Tensor | None = None) -> Tensor:
    """Mean distance of the router's policy from the target policy over real tokens, before alpha."""
    if mask_T is not None:
        logits_TE = logits_TE[mask_T]
        target_TE = target_TE[mask_T]
    target = target_TE.detach()
    if config.measure == "mse":
        error = logits_TE.softmax(-1) - target
        return error.square().sum() / max(target.numel(), 1)
    log_policy = logits_TE.log_softmax(-1)
    entropy = torch.special.xlogy(target, target)
    divergence = entropy - target * log_policy
    return divergence.sum() / max(len(target), 1)


@method(
    title="Competition by response norm",
    paper="CompeteSMoE -- Effective Training of Sparse Mixture of Experts via Competition",
    year=2024,
    tags={"token-choice", "batch-invariant", "exact-k", "simplex", "dense-at-full-k"},
)
class Competition(LinearRouter):
    """Router distilled from competitions between experts; see the module's card."""

    config: Config
    needs_responses: ClassVar[bool] = True  # a layer that holds such a router calls `bind` once

    def __init__(self, dim: int, num_experts: int, config: Config | None = None,
                 generator: torch.Generator | None = None) -> None:
        config = config or Config()
        check_k(config.k, num_experts)
        super().__init__(dim, num_experts, config, generator)
        self._responses: Callable[[Tensor], Tensor] | None = None

    def bind(self, responses: Callable[[Tensor], Tensor]) -> None:
        """Hand in the layer's experts: a differentiable function from tokens [T, D] to output norms [T, E]."""
        self._responses = responses

    def forward(self, x_TD: Tensor, context: Context) -> Routing:
        """Route the tokens [T, D]; while training, by competition on a share of the steps.

        Raises `MixwellError` where a competition finds no experts bound.
        """
        logits = self.logits(x_TD)
        if not self._competes(context):
            indices, weights, scores = choose(logits, self.config.k)
            return Routing(indices, weights, scores, logits)
        if self._responses is None:
            raise MixwellError("Competition needs its experts' responses; use a layer that binds them, call "
                               "bind(responses), or set rate: 0.")
        responses = self._responses(x_TD).to(logits.dtype)
        indices, weights, scores = choose(responses, self.config.k)
        routing = Routing(indices, weights, scores, logits)
        target = routing.dense_TE()
        loss = distillation(logits, target, self.config, context.mask_T)
        return routing.with_loss("distill", self.config.distill * loss)

    def _competes(self, context: Context) -> bool:
        """Whether this pass is a competition: some training passes are, drawn by chance."""
        if not (self.training and self.config.rate):
            return False
        generator = draws(context, self)
        draw = torch.rand((), generator=generator, device=generator.device)
        return bool(draw < self.config.rate)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens of width six, four linear experts of which every training step asks the responses."""
    experts = torch.randn(4, 6, 6, generator=generator)
    x_TD = torch.randn(8, 6, generator=generator)

    def responses(x: Tensor) -> Tensor:
        answers = torch.einsum("edc,tc->ted", experts.to(x.dtype), x)
        return answers.norm(dim=-1)

    config = Config(rate=1.0)
    return {"dim": 6, "num_experts": 4, "config": config, "x_TD": x_TD, "responses": responses}
