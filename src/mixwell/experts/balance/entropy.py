"""Entropy of the gates: sure about each token, even over the batch, or both (mutual information).

**Equation:** H(p) = - sum_i p_i log p_i;
    mutual_information: L = mean_t H(p_t) - H(mean_t p_t) = - I(expert; token);
    token: L = mean_t H(p_t);    batch: L = - H(mean_t p_t).
**Shapes:** logits or scores [T, E] -> scalar, in nats.
**Reference:** Pan et al. 2024, DS-MoE (2404.05567), section 3 (mutual_information); Wang et al. 2024, HMoE
    (2408.10681), eq. 5, after Huang et al. 2024 (2403.07652) (token, with top-p routing); Csordas et al. 2023
    (2310.10837), section 5, and the authors' code (batch).
**Differs:** HMoE prints N sum_i P_i log P_i, which falls as the gate gets flatter, against its text; the sign here is
    Huang's, without the factor N. p is the softmax of the logits, also where the router scores by sigmoid (as in the
    authors' code of the batch rule); a router without logits has its scores scaled to sum to 1.
**Fails when:** token: used without a rule for balance, where one expert takes all.
**Cost:** O(T E).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.core.routing import Context, Routing
from mixwell.experts.balance._parts import example_routing, kept
from mixwell.mixing import normalised


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the entropy losses."""

    rule: Literal["mutual_information", "token", "batch"] = "mutual_information"  # which entropies enter


def log_gates(routing: Routing, context: Context) -> Tensor:
    """log p of real tokens [T, E]."""
    if routing.logits_TE is not None:
        logits = kept(routing.logits_TE, context)
        return logits.log_softmax(-1)
    scores = kept(routing.scores_TE, context)
    tiny = torch.finfo(scores.dtype).tiny
    return normalised(scores).clamp_min(tiny).log()


def entropy_of(log_p: Tensor) -> Tensor:
    """- sum p log p over the last dimension, in nats."""
    return -(log_p.exp() * log_p).sum(-1)


@method(
    title="Gate entropy: mutual information, per token, or of the batch",
    paper=(
        "Dense Training, Sparse Inference: Rethinking Training of Mixture-of-Experts Language Models",
        "HMoE: Heterogeneous Mixture of Experts for Language Modeling",
        "Approximating Two-Layer Feedforward Networks for Efficient Transformers",
    ),
    year=2023,
)
def entropy(routing: Routing, config: Config, context: Context) -> Tensor:
    """The chosen entropy loss in nats, a scalar: from -log E to 0, or from 0 to log E for `token`."""
    log_p = log_gates(routing, context)
    tokens = len(log_p)
    if not tokens:
        return log_p.sum()
    loss = log_p.new_zeros(())
    if config.rule != "batch":
        loss = loss + entropy_of(log_p).mean()
    if config.rule != "token":
        log_mean = log_p.logsumexp(0) - math.log(tokens)
        loss = loss - entropy_of(log_mean)
    return loss


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens over four experts, two each."""
    return {"routing": example_routing(generator), "config": Config(), "context": Context()}
