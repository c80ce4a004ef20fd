"""A shared expert that takes what routing is unsure of: the first expert is always on, the others share the rest.

**Equation:** h = W_2 tanh(W_1 x) over experts 1..E-1;  p = softmax(h);  s = max p;  I = top-k of p;
    w_0 = 1 - s;  w_i = s softmax_{I}(p)_i for i in I: a softmax of probabilities. All weights sum to 1.
    Training: h + e, e ~ N(0, 1) (softplus(W_n x) + 0.01), W_n = 0 at the start.
**Shapes:** x [T, D]; W_1 [E - 1, D], W_2 [E - 1, E - 1], W_n [E - 1, D]; indices and weights [T, 1 + k]; scores [T, E].
**Reference:** Ding et al. 2024, XFT (2404.15247), section 3.1; released code.
**Differs:** scores give expert 0 the share 1 - s and scale the others by s; the logits that balance rules see are their
    logarithms. W_2 is drawn with std 1 / sqrt(E - 1).
**Fails when:** copies stay copies: the choice among them means nothing until training sets them apart.
**Cost:** O(T E D).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from mixwell.core.method import method
from mixwell.core.routing import Context, Routing
from mixwell.experts.routers._parts import draws, project
from mixwell.kernels.norm import wide
from mixwell.mixing import Router, check_k, check_least, normal_parameter


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of routing beside an expert that is always on."""

    routed: int = 5  # experts per token beside the first one, 1 to E - 1
    noise: bool = True  # training only: noise of learnt size on the logits

    def __post_init__(self) -> None:
        check_least(self, routed=1)


def route(logits_TR: Tensor, count: int) -> Routing:
    """The routing that the logits of the E - 1 routed experts give; expert 0 is in the first slot."""
    p = logits_TR.softmax(-1)
    top = p.topk(count, dim=-1)
    sure = top.values[:, :1]
    routed = sure * top.values.softmax(-1)
    first = torch.zeros_like(top.indices[:, :1])
    indices = torch.cat([first, top.indices + 1], dim=1)
    weights = torch.cat([1 - sure, routed], dim=1)
    scores = torch.cat([1 - sure, sure * p], dim=1)
    tiny = torch.finfo(scores.dtype).tiny
    return Routing(indices, weights, scores, scores.clamp_min(tiny).log())


@method(
    title="Routing beside an always-on first expert",
    paper="XFT: Unlocking the Power of Code Instruction Tuning by Simply Merging Upcycled Mixture-of-Experts",
    year=2024,
    tags={"token-choice", "batch-invariant", "simplex"},
)
class SharedFirst(Router):
    """Router whose first expert is always on; see the module's card."""

    config: Config

    def __init__(self, dim: int, num_experts: int, config: Config | None = None,
                 generator: torch.Generator | None = None) -> None:
        config = config or Config()
        check_k(config.routed, num_experts - 1)
        super().__init__(dim, num_experts, config, generator)
        routed = num_experts - 1
        self.into = normal_parameter((routed, dim), generator)
        self.out = normal_parameter((routed, routed), generator, 1 / math.sqrt(routed))
        self.spread = nn.Parameter(torch.zeros(routed, dim))

    @property
    def experts_per_token(self) -> float:
        """The first one and those chosen."""
        return 1.0 + self.config.routed

    def forward(self, x_TD: Tensor, context: Context) -> Routing:
        """Route the tokens [T, D]; training with noise draws and raises `MixwellError` without a generator."""
        x = wide(x_TD)
        hidden = project(x, self.into).tanh()
        logits = project(hidden, self.out)
        if self.training and self.config.noise:
            generator = draws(context, self)
            size = softplus(project(x, self.spread)) + 0.01
            draw = torch.randn(logits.shape, generator=generator, device=generator.device)
            logits = logits + draw.to(logits) * size
        return route(logits, self.config.routed)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens of width six, four experts, three of them a token."""
    x_TD = torch.randn(8, 6, generator=generator)
    return {"dim": 6, "num_experts": 4, "config": Config(routed=2), "x_TD": x_TD}
