"""Token gradient conflict: tokens whose gradient on their expert opposes the others' are sent elsewhere.

**Equation:** g_n the gradient of the loss with respect to the parameters of slot n's expert, from that slot alone;
    g_e the mean over the slots of expert e;  a slot conflicts where cos(g_n, g_e) < tau;
    L = mean over conflicting slots of - log softmax(-h_t)_e: lowers the current expert's logit against the others'.
**Shapes:** logits [T, E], indices and cosines [T, K] -> scalar; gradients [N, G], or as factors [N, O] and [N, I].
**Reference:** Yang et al. 2024, STGC (2406.19905), section 3, eq. 8.
**Differs:** that the loss is the cross-entropy of the current expert under negated logits is known of eq. 8 from a
    description, not from the printed equation. Cosines of a weight matrix are taken exactly from its two factors (the
    output's gradient and the input), where the paper stores gradients of a small part of the parameters.
**Fails when:** an expert has two tokens: of two opposing gradients the smaller one always conflicts.
**Cost:** O(N O I) for a weight matrix of each expert, with no gradient stored; O(N G) from stored gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from mixwell.core.method import method
from mixwell.core.routing import Context, Routing
from mixwell.experts.balance._parts import example_routing


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the token gradient conflict."""

    threshold: float = 0.0  # tau, -1 to 1; a slot below it conflicts

    def __post_init__(self) -> None:
        if not -1 <= self.threshold <= 1:
            raise ValueError(f"threshold is {self.threshold}; expected -1 to 1")


def gradient_cosines(gradients_NG: Tensor, experts_N: Tensor, num_experts: int) -> Tensor:
    """Cosine of each slot's gradient to the sum (hence the mean) over its expert's slots [N]; 0 where either is 0."""
    width = gradients_NG.shape[1]
    nothing = gradients_NG.new_zeros(num_experts, width)
    sums_EG = nothing.index_add(0, experts_N, gradients_NG)
    sums_NG = sums_EG[experts_N]
    return cosine_similarity(gradients_NG, sums_NG, dim=1)


def factor_cosines(outputs_NO: Tensor, inputs_NI: Tensor, experts_N: Tensor, num_experts: int) -> Tensor:
    """The same cosines for a weight matrix [O, I] of each expert, whose gradient of slot n is outputs_n inputs_n^T.

    outputs_NO: gradient of the loss at the matrix' output; inputs_NI: its input.
    """
    cosines = outputs_NO.new_zeros(len(experts_N))
    tiny = torch.finfo(cosines.dtype).tiny
    for expert in range(num_experts):
        rows = (experts_N == expert).nonzero()[:, 0]
        delta = outputs_NO[rows]
        x = inputs_NI[rows]
        total_OI = delta.T @ x
        # of outer products: |d x^T| = |d| |x|, and <d x^T, G> = d G x
        norms = delta.norm(dim=1) * x.norm(dim=1)
        norms = norms * total_OI.norm()
        dots = ((delta @ total_OI) * x).sum(1)
        cosines[rows] = dots / norms.clamp_min(tiny)
    return cosines


@method(
    title="Token gradient conflict",
    paper="Solving Token Gradient Conflict in Mixture-of-Experts for Large Vision-Language Model",
    year=2024,
    tags={"own-inputs"},
)
def token_gradient_conflict(routing: Routing, config: Config, context: Context,
                            cosines_TK: Tensor | None = None) -> Tensor:
    """Mean of - log softmax(-h)_e over conflicting slots, a scalar; 0 where none conflicts. Padding never conflicts.

    cosines_TK: of every slot's gradient to its expert's mean; it comes from a backward pass, so that a layer's forward
    pass alone cannot apply this rule. Raises `ValueError` without them, and where the router has no logits.
    """
    if cosines_TK is None:
        raise ValueError("token_gradient_conflict needs the cosines of token gradients, which a backward pass gives; "
                         "call it with gradient_cosines(...) or factor_cosines(...)")
    if routing.logits_TE is None:
        raise ValueError("token_gradient_conflict needs router logits, and this router has none; leave it out")
    conflicting = (cosines_TK < config.threshold) & (routing.indices_TK >= 0)
    if context.mask_T is not None:
        conflicting = conflicting & context.mask_T.unsqueeze(1)
    away_TE = -(-routing.logits_TE).log_softmax(-1)
    away_TK = away_TE.gather(1, routing.indices_TK.clamp_min(0))
    count = conflicting.sum().clamp_min(1)
    return (away_TK * conflicting).sum() / count


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens over four experts, two each, with a cosine for each slot."""
    routing = example_routing(generator)
    cosines_TK = 2 * torch.rand(8, 2, generator=generator) - 1
    return {"routing": routing, "config": Config(), "context": Context(), "cosines_TK": cosines_TK}
