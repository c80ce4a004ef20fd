"""Bi-level routing: one router picks a node, a second picks an expert inside it.

**Equation:** p = softmax(A x) over n nodes;  q = softmax(B x) over the m experts of a node;  i* = argmax p;
    J = top-k of q;  w_{i* j} = p_{i*} q_j.  Balance: alpha n sum_i f_i P_i + beta m sum_j g_j Q_j, with f, g the
    shares dispatched to nodes and to places in a node, P, Q the mean probabilities.
**Shapes:** x [T, D]; A [n, D]; B [m, D], or [n m, D] with a router in every node; E = n m, node by node; scores
    p_i q_j [T, E].
**Reference:** He et al. 2022, SMILE (2212.05191), sections 3.1 and 3.2.
**Differs:** from memory of the paper. k above 1 takes several experts of the one node. The balance losses leave
    already multiplied by their coefficients.
**Fails when:** a token's best experts lie in different nodes: it reaches one node only.
**Cost:** O(T D (n + m)) instead of O(T D n m).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mixwell.core.method import method
from mixwell.core.rng import normal
from mixwell.core.routing import Context, Routing
from mixwell.kernels.norm import wide
from mixwell.mixing import Router


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the bi-level router."""

    k: int = 1  # experts per token inside its node, 1 to E / nodes
    nodes: int = 2  # n, nodes of E / n experts each
    local: Literal["shared", "per_node"] = "shared"  # one second router for all nodes, or one in each
    node_balance: float = 0.005  # alpha, 0 or more
    local_balance: float = 0.005  # beta, 0 or more

    def __post_init__(self) -> None:
        if self.k < 1 or self.nodes < 1:
            raise ValueError(f"k is {self.k} and nodes is {self.nodes}; expected at least 1 each")
        if not (self.node_balance >= 0 and self.local_balance >= 0):
            raise ValueError(f"node_balance is {self.node_balance} and local_balance is {self.local_balance}; "
                             "expected 0 or more")


def balance(indices_T: Tensor, probabilities_TC: Tensor, mask_T: Tensor | None) -> Tensor:
    """C sum_c f_c P_c over real tokens: 1 where the C choices are even."""
    if mask_T is not None:
        indices_T, probabilities_TC = indices_T[mask_T], probabilities_TC[mask_T]
    choices = probabilities_TC.shape[1]
    share = torch.bincount(indices_T.reshape(-1), minlength=choices).to(probabilities_TC.dtype)
    return choices * (share / share.sum().clamp_min(1) * probabilities_TC.sum(0)).sum() / max(len(probabilities_TC), 1)


def route(node_logits_TN: Tensor, local_logits: Tensor, config: Config, mask_T: Tensor | None = None) -> Routing:
    """The routing of node logits [T, n] and local logits [T, m] (shared) or [T, n, m] (one router in every node)."""
    p = node_logits_TN.softmax(-1)
    q_TNM = local_logits.softmax(-1)
    if q_TNM.ndim == 2:
        q_TNM = q_TNM.unsqueeze(1).expand(-1, p.shape[1], -1)
    node_T1 = p.argmax(-1, keepdim=True)
    q_TM = q_TNM.gather(1, node_T1.unsqueeze(-1).expand(-1, 1, q_TNM.shape[2])).squeeze(1)
    chosen = q_TM.topk(config.k, dim=-1).indices
    weights = p.gather(1, node_T1) * q_TM.gather(1, chosen)
    losses = {"node_balance": config.node_balance * balance(node_T1[:, 0], p, mask_T),
              "local_balance": config.local_balance * balance(chosen, q_TM, mask_T)}
    return Routing(node_T1 * q_TM.shape[1] + chosen, weights, (p.unsqueeze(2) * q_TNM).flatten(1), losses=losses)


@method(
    title="Bi-level routing",
    paper="SMILE: Scaling Mixture-of-Experts with Efficient Bi-level Routing",
    year=2022,
    tags={"token-choice", "batch-invariant", "exact-k"},
)
class BiLevel(Router):
    """Bi-level router; the network part of the paper is no matter of the router."""

    config: Config

    def __init__(self, dim: int, num_experts: int, config: Config | None = None,
                 generator: torch.Generator | None = None) -> None:
        config = config or Config()
        if num_experts % config.nodes or config.k > num_experts // config.nodes:
            raise ValueError(f"{num_experts} experts on {config.nodes} nodes cannot give k = {config.k}; expected "
                             "equal nodes with at least k experts each")
        super().__init__(dim, num_experts, config, generator)
        rows = num_experts // config.nodes if config.local == "shared" else num_experts
        self.node_weight = nn.Parameter(normal((config.nodes, dim), 0.02, generator))
        self.local_weight = nn.Parameter(normal((rows, dim), 0.02, generator))

    def forward(self, x_TD: Tensor, context: Context) -> Routing:
        """Route the tokens [T, D]."""
        x = wide(x_TD)
        local = x @ self.local_weight.to(x.dtype).T
        if self.config.local == "per_node":
            local = local.unflatten(1, (self.config.nodes, -1))
        return route(x @ self.node_weight.to(x.dtype).T, local, self.config, context.mask_T)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens of width six, two nodes of two experts."""
    return {"dim": 6, "num_experts": 4, "config": Config(), "x_TD": torch.randn(8, 6, generator=generator)}
