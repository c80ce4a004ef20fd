"""Softmax or sigmoid top-k: each token goes to the k experts that score highest.

**Equation:** h = W x;  p = softmax(h) or sigmoid(h);  I = top-k of p;  y = sum_{i in I} w_i E_i(x) with
    w_i = p_i (Switch's order: softmax over all, then choose), or
    w_i = p_i / sum_{j in I} p_j (Mixtral's order: softmax over the kept logits, which is the same number).
**Shapes:** x [T, D], W [E, D], indices and weights [T, K], scores [T, E].
**Reference:** Shazeer et al. 2017 (1701.06538); Fedus et al. 2021 (2101.03961), eq. 1-2; Jiang et al. 2024
    (2401.04088), section 2.1; group-limited choice after DeepSeek-V2 (2405.04434), section 2.1.2.
    Cai et al. 2024, A Survey on Mixture of Experts (2407.06204), orders gates into sparse, dense and soft ones;
    the claim that follows it tries two experts a token against all of them, smaller, at equal computation.
**Differs:** k = 1 with renormalised weights is refused: the weight would be 1 whatever the router says, and the router
    would never learn; models that were published so load with `constant`. Groups are ranked by the sum of their two
    best scores, or as in DeepSeek-V2 by the best one. W starts normal with std 0.02 at every width, where Shazeer et
    al. start at zero and Switch draws with variance 0.1 / D.
**Fails when:** left without a balance rule, a few experts win early and the rest starve.
**Cost:** O(T E D) for the logits, O(T E log K) for the choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mixwell.core.method import method
from mixwell.core.routing import Context, Routing
from mixwell.experts.routers._parts import LinearRouter, check_group_sizes, check_groups, draws, keep_groups
from mixwell.mixing import check_above, check_choice, check_k, renormalises, select


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the top-k router."""

    k: int = 2  # experts per token, 1 to E
    scores: Literal["softmax", "sigmoid"] = "softmax"  # from logits to scores
    renormalise: bool | None = None  # weights of a token sum to 1; default: wherever k > 1
    scale: float = 1.0  # factor on the weights, above 0 (DeepSeek's routed_scaling_factor)
    groups: int = 1  # experts come in this many groups of equal size
    groups_kept: int = 1  # a token chooses inside its best groups only
    group_rank: Literal["two", "best"] = "two"  # groups go by the sum of their two best scores, or by the best one
    bias: bool = False  # h = W x + b
    constant: bool = False  # k = 1 may be renormalised: a weight of 1 always, as in some published models
    jitter: float = 0.0  # training only: x times uniform(1 - jitter, 1 + jitter) (Switch's epsilon), 0 to 1

    def __post_init__(self) -> None:
        check_choice(self.k, self.renormalise and not self.constant)
        check_groups(self.groups, self.groups_kept)
        check_above(self, scale=0)
        if not 0 <= self.jitter < 1:
            raise ValueError(f"jitter is {self.jitter}; expected 0 up to 1")


def route(logits_TE: Tensor, config: Config) -> Routing:
    """The routing that the logits [T, E] give."""
    if config.scores == "softmax":
        scores = logits_TE.softmax(-1)
    else:
        scores = logits_TE.sigmoid()
    order_by = None
    if config.groups > 1:
        ranked = 2 if config.group_rank == "two" else 1
        order_by = keep_groups(scores.detach(), config.groups, config.groups_kept, ranked)
    renormalise = renormalises(config.k, config.renormalise)
    indices, weights = select(scores, config.k, by_TE=order_by, renormalise=renormalise, scale=config.scale)
    return Routing(indices, weights, scores, logits_TE)


@method(
    title="Softmax or sigmoid top-k",
    paper=(
        "Mixtral of Experts",
        "Switch Transformers: Scaling to Trillion Parameter Models with Simple and Efficient Sparsity",
    ),
    year=2017,
    tags={"token-choice", "batch-invariant", "exact-k", "simplex", "dense-at-full-k"},
)
class TopK(LinearRouter):
    """Top-k router with a linear map; see the module's card."""

    config: Config

    def __init__(self, dim: int, num_experts: int, config: Config | None = None,
                 generator: torch.Generator | None = None) -> None:
        config = config or Config()
        check_k(config.k, num_experts)
        check_group_sizes(num_experts, config.k, config.groups, config.groups_kept)
        super().__init__(dim, num_experts, config, generator)
        self.bias = nn.Parameter(torch.zeros(num_experts)) if config.bias else None

    def forward(self, x_TD: Tensor, context: Context) -> Routing:
        """Route the tokens [T, D]; training with jitter draws and raises `MixwellError` without a generator."""
        jitter = self.config.jitter
        if self.training and jitter:
            generator = draws(context, self)
            draw = torch.rand(x_TD.shape, generator=generator, device=generator.device)
            within_one = 2 * draw.to(x_TD.device) - 1
            x_TD = x_TD * (1 + jitter * within_one)
        logits = self.logits(x_TD)
        if self.bias is not None:
            logits = logits + self.bias
        return route(logits, self.config)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Smallest valid arguments: eight tokens of width six, four experts."""
    x_TD = torch.randn(8, 6, generator=generator)
    return {"dim": 6, "num_experts": 4, "config": Config(), "x_TD": x_TD}
