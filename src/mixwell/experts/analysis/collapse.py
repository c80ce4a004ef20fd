"""Collapse: do the tokens of an expert crowd around its centroid, and do experts die or dominate?

**Equation:** classes are the experts of the first choice;  S_W = 1/T sum_t (h_t - m_i(t)) (h_t - m_i(t))^T;
    S_B = 1/C sum_i (m_i - m) (m_i - m)^T over the C experts with tokens, m the mean of all tokens;
    RC = Tr(S_W S_B^+) / C: small where representations collapse.  Dead: share below `dead` / N; dominating: above
    `dominating` / N.
**Shapes:** h [T, D], indices [T, K] -> numbers and lists of experts.
**Reference:** Chi et al. 2022, X-MoE (2204.09179), section 4.4, after Zhu et al. 2021 (2105.02375), NC1.
**Differs:** from memory of the paper; 1 / C after Zhu et al.; m is the mean of tokens and not of centroids.
**Fails when:** fewer tokens than D: S_W is then not of full rank and RC is too small. Fewer than two experts with
    tokens give None.
**Cost:** O(T D^2 + D^3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.core.routing import Context, Routing
from mixwell.experts.analysis._parts import example_routing, number, real


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the collapse measures."""

    dead: float = 0.1  # an expert is dead below this multiple of the even share, 0 to 1
    dominating: float = 2.0  # an expert dominates above this multiple of the even share, 1 or more

    def __post_init__(self) -> None:
        dead = self.dead
        dominating = self.dominating
        if not 0 <= dead <= 1 or not dominating >= 1:
            raise ValueError(f"dead is {dead} and dominating is {dominating}; expected 0 to 1, and 1 or more")


def scatter(hidden_TD: Tensor, experts_T: Tensor) -> tuple[Tensor, Tensor, int]:
    """(S_W, S_B, C): scatter within and between the experts that have tokens, in the tokens' type."""
    present, place, counts = experts_T.unique(return_inverse=True, return_counts=True)
    tokens = len(hidden_TD)
    classes = len(present)
    sums = hidden_TD.new_zeros(classes, hidden_TD.shape[1]).index_add(0, place, hidden_TD)
    centroids = sums / counts.unsqueeze(1)
    inside = hidden_TD - centroids[place]
    between = centroids - hidden_TD.mean(0)
    return inside.T @ inside / tokens, between.T @ between / classes, classes


def uneven(counts_E: Tensor, config: Config) -> dict[str, list[int]]:
    """The dead and the dominating experts by their load; none is dead where `dead` is 0."""
    tiny = torch.finfo(counts_E.dtype).tiny
    relative = counts_E / counts_E.mean().clamp_min(tiny)
    dead = relative < config.dead
    dominating = relative > config.dominating
    return {"dead": dead.nonzero()[:, 0].tolist(), "dominating": dominating.nonzero()[:, 0].tolist()}


@method(
    title="Representation collapse, dead and dominating experts",
    paper="On the Representation Collapse of Sparse Mixture of Experts",
    year=2022,
)
def collapse(routing: Routing, hidden_TD: Tensor, config: Config, context: Context) -> dict[str, Any]:
    """scatter_ratio (RC), within, between (traces), experts_used, dead, dominating (lists of experts)."""
    first = real(routing.indices_TK, context)[:, 0]
    served = first >= 0
    hidden = real(hidden_TD, context)[served]
    first = first[served]
    counts = routing.load_E(context.mask_T).double()
    result: dict[str, Any] = {"scatter_ratio": None, "within": None, "between": None}
    result["experts_used"] = int((counts > 0).sum())
    result |= uneven(counts, config)
    if not len(first):
        return result
    within, between, classes = scatter(hidden, first)
    result["within"] = number(within.trace())
    result["between"] = number(between.trace())
    if classes > 1:
        inverse = torch.linalg.pinv(between, hermitian=True)
        ratio = (within @ inverse).trace() / classes
        result["scatter_ratio"] = number(ratio)
    return result


def example(generator: torch.Generator) -> dict[str, Any]:
    """Twelve tokens of width three over four experts, two each."""
    routing = example_routing(generator, 12)
    hidden_TD = torch.randn(12, 3, generator=generator)
    return {"routing": routing, "hidden_TD": hidden_TD, "config": Config(), "context": Context()}
