"""Noisy top-k gating: tunable Gaussian noise on the logits before the choice, and the smooth load estimate it allows.

**Equation:** H_i = (W_g x)_i + n_i softplus((W_noise x)_i), n ~ N(0, 1);  G = softmax(KeepTopK(H, k));
    P(x, i) = Phi(((W_g x)_i - kth_excluding(H, k, i)) / softplus((W_noise x)_i));
    Load_i = sum_x P(x, i);  losses["load"] = w_load CV(Load)^2, with CV the standard deviation over the mean.
**Shapes:** x [T, D], W_g and W_noise [E, D], indices and weights [T, K], scores [T, E].
**Reference:** Shazeer et al. 2017 (1701.06538), eq. 3-5 and 8-11 (appendix A).
**Differs:** W_g starts at small normal values (the paper: zero), so that an untrained router in evaluation has no ties;
    W_noise starts at zero as in the paper. k = 1 keeps the probability as the weight, since a softmax over one gives no
    gradient. The load loss is the router's output because only the router knows its noise; it carries its own
    coefficient. The importance loss is a balance rule (importance_load); where both are used, set `load: 0` in one.
**Fails when:** the learnt noise shrinks early: the load estimate then has no gradient between far-apart logits.
**Cost:** O(T E D), twice that of a plain router.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from mixwell.core.method import method
from mixwell.core.routing import Context, Routing
from mixwell.experts.routers._parts import LinearRouter, draws, project
from mixwell.kernels.norm import wide
from mixwell.mixing import check_k, check_least, check_not_negative, select


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of noisy top-k gating."""

    k: int = 2  # experts per token, 1 to E
    load: float = 0.1  # w_load, coefficient of the load loss while training, 0 or more; 0 leaves the loss out

    def __post_init__(self) -> None:
        check_least(self, k=1)
        check_not_negative(self, "load")


def chance_to_be_chosen(clean_TE: Tensor, noisy_TE: Tensor, std_TE: Tensor, k: int) -> Tensor:
    """P(x, i) [T, E]: the chance that expert i is among the k best when its own noise alone is drawn again."""
    if k == clean_TE.shape[-1]:
        return torch.ones_like(clean_TE)
    best = noisy_TE.topk(k + 1, dim=-1).values
    last_in, first_out = best[:, -2:].split(1, dim=1)
    chosen = noisy_TE >= last_in
    # a chosen expert must stay above the first that is out, another must pass the last that is in
    bar = torch.where(chosen, first_out, last_in)
    distance = (clean_TE - bar) / std_TE
    return torch.special.ndtr(distance)


def cv_squared(load_E: Tensor) -> Tensor:
    """Squared coefficient of variation (population variance over squared mean)."""
    tiny = torch.finfo(load_E.dtype).tiny
    mean_square = load_E.mean().square()
    return load_E.var(correction=0) / mean_square.clamp_min(tiny)


def route(logits_TE: Tensor, config: Config) -> Routing:
    """The routing that logits [T, E] give, noisy or not."""
    scores = logits_TE.softmax(-1)
    indices, weights = select(scores, config.k, renormalise=config.k > 1)
    return Routing(indices, weights, scores, logits_TE)


@method(
    title="Noisy top-k",
    paper="Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer",
    year=2017,
    tags={"token-choice", "batch-invariant", "exact-k", "simplex", "dense-at-full-k"},
)
class NoisyTopK(LinearRouter):
    """Top-k router whose logits are noisy while it trains; see the module's card."""

    config: Config

    def __init__(self, dim: int, num_experts: int, config: Config | None = None,
                 generator: torch.Generator | None = None) -> None:
        config = config or Config()
        check_k(config.k, num_experts)
        super().__init__(dim, num_experts, config, generator)
        silent = torch.zeros_like(self.weight)
        self.noise_weight = nn.Parameter(silent)

    def forward(self, x_TD: Tensor, context: Context) -> Routing:
        """Route the tokens [T, D]; while training, with noise from the context's generator."""
        clean = self.logits(x_TD)
        if not self.training:
            return route(clean, self.config)
        std = softplus(project(wide(x_TD), self.noise_weight))
        generator = draws(context, self)
        noise = torch.randn(clean.shape, generator=generator, device=clean.device)
        noisy = clean + noise.to(clean.dtype) * std
        routing = route(noisy, self.config)
        if not self.config.load:
            return routing
        chance = chance_to_be_chosen(clean, noisy, std, self.config.k)
        if context.mask_T is not None:
            chance = chance[context.mask_T]
        loss = cv_squared(chance.sum(0))
        return routing.with_loss("load", self.config.load * loss)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens of width six, four experts."""
    x_TD = torch.randn(8, 6, generator=generator)
    return {"dim": 6, "num_experts": 4, "config": Config(), "x_TD": x_TD}
