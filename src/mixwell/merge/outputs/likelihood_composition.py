"""Likelihood composition: candidates' likelihoods of several models, debiased, highlighted, and put together.

**Equation:** y_c = exp(mean_k log P(t_k | X, t_<k)) of candidate c. Debias: log y - a log y(X without its context).
    Highlight: (1 + b) log y - b log y(X perturbed). Both first, each model by itself, then softmax over candidates;
    then the mean over models, or their votes.
**Shapes:** log likelihoods of M models and C candidates [M, C]; of tokens [C, K].
**Reference:** Zhao, Zhang and Huang 2024 (2409.19240), the operations of section 3.
**Differs:** models are put on one scale by a softmax over candidates before the mean.
**Fails when:** a prior that is right is taken away; a and b not chosen on validation data.
**Cost:** a reading of every candidate, and one more for each of a and b that is not 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mixwell.core.method import method


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of likelihood composition."""

    debias: float = 0.0  # a
    highlight: float = 0.0  # b
    combine: Literal["mean", "vote"] = "mean"


def likelihoods(log_tokens_CK: Tensor, present_CK: Tensor) -> Tensor:
    """log y [C]: mean log probability of the tokens that are there."""
    counts = present_CK.sum(1)
    if bool((counts == 0).any()):
        raise ValueError("a candidate has no token; expected one or more of each")
    return (log_tokens_CK * present_CK).sum(1) / counts


def own(logs_MC: Tensor, without_MC: Tensor | None, perturbed_MC: Tensor | None, config: Config) -> Tensor:
    """Each model's candidates after debiasing and highlighting [M, C], logs."""
    found = logs_MC
    for name, strength, other in (("debias", config.debias, without_MC), ("highlight", config.highlight, perturbed_MC)):
        if strength and other is None:
            raise ValueError(f"{name} is {strength}; give the likelihoods that it takes away")
    if config.highlight and perturbed_MC is not None:
        found = found + config.highlight * (logs_MC - perturbed_MC)
    if config.debias and without_MC is not None:
        found = found - config.debias * without_MC
    return found


@method(title="Likelihood composition",
        paper="Unleashing the Potentials of Likelihood Composition for Multi-modal Language Models", year=2024)
def likelihood_composition(logs_MC: Tensor, config: Config, without_MC: Tensor | None = None,
                           perturbed_MC: Tensor | None = None) -> Tensor:
    """What the models together say of each candidate [C], shares that sum to 1.

    without_MC: log likelihoods without the context; perturbed_MC: with a perturbed one.
    """
    found_MC = own(logs_MC, without_MC, perturbed_MC, config)
    shares_MC = found_MC.softmax(-1)
    if config.combine == "mean":
        return shares_MC.mean(0)
    best_M = shares_MC.argmax(-1)
    votes_MC = F.one_hot(best_M, shares_MC.shape[-1])
    return votes_MC.to(shares_MC.dtype).mean(0)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two models and three candidates."""
    logs, without, perturbed = (torch.randn(2, 3, generator=generator) for _ in range(3))
    return {"logs_MC": logs, "config": Config(debias=0.5, highlight=0.5), "without_MC": without,
            "perturbed_MC": perturbed}
