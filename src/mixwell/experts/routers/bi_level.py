"""Bi-level routing: one router picks a node, a second picks an expert inside it.

**Equation:** p = softmax(A x) over n nodes;  q = softmax(B x) over the m experts of a node;  i* = argmax p;
    J = top-k of q;  w_{i* j} = p_{i*} q_j.  Balance: alpha n sum_i f_i P_i + beta m sum_j g_j Q_j, with f, g the
    shares dispatched to nodes and to places in a node, P, Q the mean probabilities.
**Shapes:** x [T, D]; A [n, D]; B [m, D], or [n m, D] with a router in every node; E = n m, node by node; scores
    p_i q_j [T, E].
**Reference:** He et al. 2022, SMILE (2212.05191), sections 3.1 and 3.2.
**Differs:** from memory of the paper. k above 1 takes several experts of the one node. The balance losses leave already
    multiplied by their coefficients. A and B start normal with std 0.02.
**Fails when:** a token's best experts lie in different nodes: it reaches one node only.
**Cost:** O(T D (n + m)) instead of O(T D n m).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.core.routing import Context, Routing
from mixwell.experts.routers._parts import project
from mixwell.kernels.norm import wide
from mixwell.mixing import Router, normal_parameter


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the bi-level router."""

    k: int = 1  # experts per token inside its node, 1 to E / nodes
    nodes: int = 2  # n, nodes of E / n experts each
    local: Literal["shared", "per_node"] = "shared"  # one second router for all nodes, or one in each
    node_balance: float = 0.005  # alpha, 0 or more
    local_balance: float = 0.005  # beta, 0 or more

    def __post_init__(self) -> None:
        if min(self.k, self.nodes) < 1:
            raise ValueError(f"k is {self.k} and nodes is {self.nodes}; expected at least 1 each")
        node = self.node_balance
        local = self.local_balance
        if not (node >= 0 and local >= 0):
            raise ValueError(f"node_balance is {node} and local_balance is {local}; "
                             "expected 0 or more")


def balance(indices_T: Tensor, probabilities_TC: Tensor, mask_T: Tensor | None) -> Tensor:
    """C sum_c f_c P_c over real tokens: 1 where the C choices are even."""
    if mask_T is not None:
        indices_T = indices_T[mask_T]
        probabilities_TC = probabilities_TC[mask_T]
    tokens, choices = probabilities_TC.shape
    mass = probabilities_TC.sum(0)
    counts = torch.bincount(indices_T.reshape(-1), minlength=choices)
    counts = counts.to(mass.dtype)
    share = counts / counts.sum().clamp_min(1)
    agreement = (share * mass).sum()
    return choices * agreement / max(tokens, 1)


def _to_all_nodes(q_TM: Tensor, nodes: int) -> Tensor:
    """What one local router for all nodes says of each, [T, n, m]."""
    return q_TM.unsqueeze(1).expand(-1, nodes, -1)


def _of_node(q_TNM: Tensor, node_T1: Tensor) -> Tensor:
    """What the local router of each token's node says, [T, m]."""
    size = q_TNM.shape[2]
    place = node_T1.unsqueeze(-1).expand(-1, 1, size)
    return q_TNM.gather(1, place).squeeze(1)


def route(node_logits_TN: Tensor, local_logits: Tensor, config: Config, mask_T: Tensor | None = None) -> Routing:
    """The routing of node logits [T, n] and local logits [T, m] (shared) or [T, n, m] (one router in every node)."""
    p_TN = node_logits_TN.softmax(-1)
    q = local_logits.softmax(-1)
    q_TNM = q if q.ndim == 3 else _to_all_nodes(q, p_TN.shape[1])
    node_T1 = p_TN.argmax(-1, keepdim=True)
    q_TM = _of_node(q_TNM, node_T1)
    chosen = q_TM.topk(config.k, dim=-1).indices
    weights = p_TN.gather(1, node_T1) * q_TM.gather(1, chosen)
    scores = (p_TN.unsqueeze(2) * q_TNM).flatten(1)
    node_loss = balance(node_T1[:, 0], p_TN, mask_T)
    local_loss = balance(chosen, q_TM, mask_T)
    losses = {"node_balance": config.node_balance * node_loss,
              "local_balance": config.local_balance * local_loss}
    indices = node_T1 * q_TM.shape[1] + chosen
    return Routing(indices, weights, scores, losses=losses)


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
        size, rest = divmod(num_experts, config.nodes)
        if rest or config.k > size:
            raise ValueError(f"{num_experts} experts on {config.nodes} nodes cannot give k = {config.k}; expected "
                             "equal nodes with at least k experts each")
        super().__init__(dim, num_experts, config, generator)
        rows = size if config.local == "shared" else num_experts
        self.node_weight = normal_parameter((config.nodes, dim), generator)
        self.local_weight = normal_parameter((rows, dim), generator)

    def forward(self, x_TD: Tensor, context: Context) -> Routing:
        """Route the tokens [T, D]."""
        x = wide(x_TD)
        nodes = project(x, self.node_weight)
        local = project(x, self.local_weight)
        if self.config.local == "per_node":
            by_node = (self.config.nodes, -1)
            local = local.unflatten(1, by_node)
        return route(nodes, local, self.config, context.mask_T)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens of width six, two nodes of two experts."""
    x_TD = torch.randn(8, 6, generator=generator)
    return {"dim": 6, "num_experts": 4, "config": Config(), "x_TD": x_TD}
