"""Cosine routing on a low-dimensional sphere, against representation collapse; perturbed norms as an option.

**Equation:** z = P x in R^{d_e};  s_i = <z, e_i> / ((|z| + tau) (|e_i| + tau)) / temperature, tau = 0 for X-MoE;
    p = softmax(s) or sigmoid(s);  I = top-k of p;  w_i = p_i, over their sum where k > 1.
**Shapes:** x [T, D], P [d_e, D], e [E, d_e], indices and weights [T, K], scores [T, E].
**Reference:** Chi et al. 2022, X-MoE (2204.09179), eq. 6-7; perturbed norms: Nguyen et al. 2024 (2405.14131), eq. 3;
    both as LibMoE (2411.00918) compares them.
**Differs:** d_e = E / 2 as in the paper but at least 2, since on a line every cosine is 1 or -1. The temperature is
    held above 0.01. Expert embeddings are not rescaled to norm 1.5 before each step as in the authors' code: without
    tau the cosine does not see their norm. The start temperatures 0.3 and 0.07 are from memory of the paper. P and e
    start normal, with one over the root of the width they read; in the authors' code e starts orthogonal.
**Fails when:** scores saturate: cosine over temperature is bounded, so that no token can be routed with certainty while
    the temperature is large.
**Cost:** O(T D d_e + T E d_e).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mixwell.core.method import method
from mixwell.core.routing import Context, Routing
from mixwell.experts.routers._parts import project
from mixwell.kernels.norm import wide
from mixwell.mixing import Router, check_above, check_k, check_least, check_not_negative, normal_parameter, select

FLOOR = 0.01  # lowest temperature


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of cosine routing."""

    k: int = 1  # experts per token, 1 to E
    scores: Literal["softmax", "sigmoid"] = "softmax"  # from logits to scores
    route_dim: int | None = None  # d_e, width of the sphere's space, at least 2; default E / 2
    temperature: float | None = None  # start value, above 0.01; default 0.3 with softmax, 0.07 with sigmoid
    learn_temperature: bool = True  # the temperature is a parameter
    perturb: float = 0.0  # tau added to both norms, 0 or more; 0.1 in LibMoE's perturbed cosine router

    def __post_init__(self) -> None:
        check_least(self, k=1, route_dim=2)
        check_above(self, temperature=FLOOR)
        check_not_negative(self, "perturb")


def unit(rows_NR: Tensor, perturb: float) -> Tensor:
    """Rows divided by their norm plus `perturb`; a row of zeros stays one."""
    tiny = torch.finfo(rows_NR.dtype).tiny
    length = rows_NR.norm(dim=-1, keepdim=True) + perturb
    return rows_NR / length.clamp_min(tiny)


def cosine_logits(z_TR: Tensor, embedding_ER: Tensor, temperature: Tensor, perturb: float = 0.0) -> Tensor:
    """Cosines over the temperature, [T, E]; `perturb` is added to both norms."""
    z = unit(z_TR, perturb)
    embedding = unit(embedding_ER, perturb)
    return z @ embedding.T / temperature.clamp_min(FLOOR)


def route(logits_TE: Tensor, config: Config) -> Routing:
    """The routing that the logits [T, E] give."""
    if config.scores == "softmax":
        scores = logits_TE.softmax(-1)
    else:
        scores = logits_TE.sigmoid()
    indices, weights = select(scores, config.k, renormalise=config.k > 1)
    return Routing(indices, weights, scores, logits_TE)


@method(
    title="Cosine on a low-dimensional sphere",
    paper=(
        "On the Representation Collapse of Sparse Mixture of Experts",
        "Statistical Advantages of Perturbing Cosine Router in Mixture of Experts",
        "LIBMoE: A Library for comprehensive benchmarking Mixture of Experts in Large Language Models",
    ),
    year=2022,
    tags={"token-choice", "batch-invariant", "exact-k", "simplex", "dense-at-full-k"},
)
class Cosine(Router):
    """Router by cosine similarity on a low-dimensional sphere; see the module's card."""

    config: Config

    def __init__(self, dim: int, num_experts: int, config: Config | None = None,
                 generator: torch.Generator | None = None) -> None:
        config = config or Config()
        check_k(config.k, num_experts)
        super().__init__(dim, num_experts, config, generator)
        width = config.route_dim or max(2, num_experts // 2)
        default = 0.3 if config.scores == "softmax" else 0.07
        start = float(config.temperature or default)
        learn = config.learn_temperature
        self.projection = normal_parameter((width, dim), generator, dim**-0.5)
        self.embedding = normal_parameter((num_experts, width), generator, width**-0.5)
        self.temperature = nn.Parameter(torch.tensor(start), requires_grad=learn)

    def forward(self, x_TD: Tensor, context: Context) -> Routing:
        """Route the tokens [T, D]."""
        x = wide(x_TD)
        z = project(x, self.projection)
        embedding = self.embedding.to(x.dtype)
        temperature = self.temperature.to(x.dtype)
        logits = cosine_logits(z, embedding, temperature, self.config.perturb)
        return route(logits, self.config)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens of width six, four experts, two for each token."""
    x_TD = torch.randn(8, 6, generator=generator)
    return {"dim": 6, "num_experts": 4, "config": Config(k=2), "x_TD": x_TD}
