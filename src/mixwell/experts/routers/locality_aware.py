"""Locality-aware routing: orthogonal gate rows, and a loss that draws tokens to the experts of their own node.

**Equation:** GrAP gate: h_i = E/D sum_{j in group i} x_j, the D features cut in E groups;  p = softmax(h);  top-k.
    L_loc = mu sum_a (T_a / T) KL(D_c^a || D_l^a): D_c^a the mean probabilities of node a's tokens, D_l^a the fully
    local distribution, even over a's experts.  Capacity floor: C / T >= 1 / (E erfc(sqrt(d^2 D / (2 - d^2)))).
**Shapes:** x [T, D], E dividing D (grap); W [E, D] (linear); weights [T, K].
**Reference:** Li et al. 2024, LocMoE (2401.13920), section 3, eq. 6 and 9.
**Differs:** the paper's locality is of the assignment, which has no gradient: probabilities stand in, as in the
    Switch loss. A fraction `leak` of D_l lies on the other nodes, without which the divergence is infinite. The gate
    can also be learnt (linear), starting at the GrAP rows. Without `node` the tokens are split over the nodes in
    order, as one process that plays all of them would. The loss leaves already multiplied by mu.
**Fails when:** there are fewer experts than nodes; with grap, when features carry no grouped meaning.
**Cost:** O(T D) (grap), O(T D E) (linear).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mixwell.core.method import method
from mixwell.core.routing import Context, Routing
from mixwell.experts.routers._parts import project
from mixwell.kernels.norm import wide
from mixwell.mixing import Router, check_choice, check_k, softmax_top_k


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the locality-aware router."""

    k: int = 1  # experts per token, 1 to E
    renormalise: bool | None = None  # weights of a token sum to 1; default: wherever k > 1
    gate: Literal["grap", "linear"] = "grap"  # fixed group means, or learnt rows that start there
    nodes: int = 2  # nodes of E / nodes experts each
    node: int | None = None  # node of this process; default: the tokens are split over all nodes in order
    locality: float = 0.01  # mu, 0 or more
    leak: float = 0.01  # mass of the local distribution on other nodes, above 0 and below 1

    def __post_init__(self) -> None:
        check_choice(self.k, self.renormalise)
        nodes = self.nodes
        node = self.node
        inside = node is None or 0 <= node < nodes
        if nodes < 1 or not inside:
            raise ValueError(f"node is {node} of nodes = {nodes}; expected 0 up to nodes")
        locality = self.locality
        leak = self.leak
        leaks = 0 < leak < 1
        if not locality >= 0 or not leaks:
            raise ValueError(f"locality is {locality} and leak is {leak}; expected 0 or more, and 0 to 1")


def gate_rows(dim: int, num_experts: int) -> Tensor:
    """The GrAP gate as a matrix [E, D]: row i averages the i-th group of features; rows are exactly orthogonal.

    Raises `ValueError` where the experts do not divide the width.
    """
    if dim % num_experts:
        raise ValueError(f"{num_experts} experts do not divide the width {dim}; grouped average pooling needs that")
    size = dim // num_experts
    return torch.eye(num_experts).repeat_interleave(size, 1) / size


def capacity_floor(cosine: float, dim: int, num_experts: int) -> float:
    """Least share of the tokens that an expert must hold, when tokens from `cosine` to its gate row on belong to it.

    Raises `ValueError` unless `cosine` is 0 up to 1.
    """
    if not 0 <= cosine < 1:
        raise ValueError(f"cosine is {cosine}; expected 0 up to 1")
    square = cosine**2
    tail = math.erfc(math.sqrt(square * dim / (2 - square)))
    if not tail:
        return math.inf
    return 1 / (num_experts * tail)


def local_distribution(scores_TE: Tensor, node: int, config: Config) -> Tensor:
    """D_l [E] of a node, even over its experts, with the leak spread evenly over the others; in the scores' type."""
    experts = scores_TE.shape[1]
    size = experts // config.nodes
    home_E = torch.arange(experts, device=scores_TE.device) // size
    alone = config.nodes == 1
    leak = 0 if alone else config.leak
    near = (1 - leak) / size
    others = max(experts - size, 1)
    away = config.leak / others
    local = torch.where(home_E == node, near, away)
    return local.to(scores_TE.dtype)


def locality_loss(scores_TE: Tensor, node_T: Tensor, config: Config) -> Tensor:
    """Token-weighted mean over nodes of KL(mean scores of the node's tokens || its local distribution), times mu."""
    total = scores_TE.new_zeros(())
    for node in range(config.nodes):
        own = scores_TE[node_T == node]
        if not len(own):
            continue
        current = own.mean(0)
        local = local_distribution(own, node, config)
        divergence = torch.special.xlogy(current, current) - current * local.log()
        total = total + len(own) * divergence.sum()
    return config.locality * total / max(len(scores_TE), 1)


@method(
    title="Locality-aware routing",
    paper="LocMoE: A Low-overhead MoE for Large Language Model Training",
    year=2024,
    tags={"token-choice", "batch-invariant", "exact-k"},
)
class LocalityAware(Router):
    """Locality-aware router; the balance loss beside it is the layer's `balance`."""

    config: Config

    def __init__(self, dim: int, num_experts: int, config: Config | None = None,
                 generator: torch.Generator | None = None) -> None:
        config = config or Config()
        check_k(config.k, num_experts)
        if num_experts % config.nodes:
            raise ValueError(f"{num_experts} experts do not divide into {config.nodes} nodes")
        super().__init__(dim, num_experts, config, generator)
        rows = gate_rows(dim, num_experts)
        if config.gate == "linear":
            self.weight = nn.Parameter(rows)

    def forward(self, x_TD: Tensor, context: Context) -> Routing:
        """Route the tokens [T, D]."""
        x = wide(x_TD)
        if self.config.gate == "grap":
            logits = x.unflatten(1, (self.num_experts, -1)).mean(-1)
        else:
            logits = project(x, self.weight)
        routing = softmax_top_k(logits, self.config.k, self.config.renormalise)
        scores = routing.scores_TE
        node_T = self._nodes(x)
        if context.mask_T is not None:
            scores = scores[context.mask_T]
            node_T = node_T[context.mask_T]
        loss = locality_loss(scores, node_T, self.config)
        return routing.with_loss("locality", loss)



    def _nodes(self, x_TD: Tensor) -> Tensor:
        """The node of each token, int64 [T]: this process's, or all nodes' in order."""
        tokens = len(x_TD)
        nodes = self.config.nodes
        places = torch.arange(tokens, device=x_TD.device)
        if self.config.node is None:
            return places * nodes // max(tokens, 1)
        return torch.full_like(places, self.config.node)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens of width eight, two nodes of two experts; the learnt gate, since the fixed one has no parameter."""
    x_TD = torch.randn(8, 8, generator=generator)
    return {"dim": 8, "num_experts": 4, "config": Config(gate="linear"),
            "x_TD": x_TD}
