"""Pre-gated routing: a layer's experts are known before the layer is reached, so that they can be fetched ahead.

**Equation:** next: layer l's experts come from h_l = V_{l-1} x_{l-1}, computed from the layer before's input; the
    first mixture layer gates itself with h_0 = W x_0.  all: h = W x_0 at the first mixture layer decides for every
    layer.  p = softmax(h);  I = top-k of p;  w_i = p_i / sum_{j in I} p_j.
**Shapes:** x [T, D]; W and V [E, D]; the state handed on is h for the next layer [T, E].
**Reference:** Cai et al. 2024, Read-ME (2410.19123), section 3.2 (all); Hwang et al. 2023, Pre-gated MoE
    (2308.12066) (next).
**Differs:** Read-ME's router is a small transformer outside the network that reads the tokens and is distilled from
    activations of the dense network; here it is a linear map of the first mixture layer's input, trained with the rest.
    W and V start normal with std 0.02.
**Fails when:** what a deep layer needs cannot be told from an early one; the state must be handed from layer to layer.
**Cost:** O(T D E) a layer (all: once).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.core.routing import Context, Routing
from mixwell.experts.routers._parts import LinearRouter, project
from mixwell.kernels.norm import wide
from mixwell.mixing import check_choice, check_k, normal_parameter, softmax_top_k


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the pre-gated router."""

    k: int = 2  # experts per token, 1 to E
    renormalise: bool | None = None  # weights of a token sum to 1; default: wherever k > 1
    ahead: Literal["next", "all"] = "next"  # decide for the next layer, or once for all layers

    def __post_init__(self) -> None:
        check_choice(self.k, self.renormalise)


@method(
    title="Pre-gated routing",
    paper="Read-ME: Refactorizing LLMs as Router-Decoupled Mixture of Experts with System Co-Design",
    year=2023,
    tags={"token-choice", "batch-invariant", "exact-k", "simplex", "dense-at-full-k"},
)
class PreGated(LinearRouter):
    """Routes by the logits that an earlier layer left in `Context.state`; hands on those of the next layer."""

    config: Config

    def __init__(self, dim: int, num_experts: int, config: Config | None = None,
                 generator: torch.Generator | None = None) -> None:
        config = config or Config()
        check_k(config.k, num_experts)
        super().__init__(dim, num_experts, config, generator)
        if config.ahead == "next":
            self.next_weight = normal_parameter((num_experts, dim), generator)

    def forward(self, x_TD: Tensor, context: Context) -> Routing:
        """Route the tokens [T, D]; without a state this is the first mixture layer, which gates itself.

        Raises `ValueError` for a state that holds no logits of these experts.
        """
        logits = context.state
        tokens = len(x_TD)
        if logits is None:
            logits = self.logits(x_TD)
        elif logits.shape != (tokens, self.num_experts):
            raise ValueError(f"the state has shape {tuple(logits.shape)}; expected ({tokens}, {self.num_experts}): "
                             "logits from the pre-gated router of an earlier layer")
        ahead = logits
        if self.config.ahead == "next":
            ahead = project(wide(x_TD), self.next_weight)
        routing = softmax_top_k(logits, self.config.k, self.config.renormalise)
        return replace(routing, state=ahead)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens of width six, four experts, at the first mixture layer."""
    x_TD = torch.randn(8, 6, generator=generator)
    return {"dim": 6, "num_experts": 4, "config": Config(), "x_TD": x_TD}
