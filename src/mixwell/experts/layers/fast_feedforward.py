"""Fast feedforward: a binary tree of sigmoid nodes mixes all leaves in training; at inference a token visits one leaf.

**Equation:** p_n(x) = sigmoid(w_n . x + b_n);  m_l(x) = product over the path to leaf l of p_n (right) or 1 - p_n
    (left);  training: F(x) = sum_l m_l(x) L_l(x);  inference: F(x) = L_l(x) of the leaf reached by going right where
    p_n >= 1/2.
    Master leaf: y = a F(x) + (1 - a) M(x), a = sigmoid(mix).
    hardening = mean over tokens and nodes of H(p_n); balance: the Switch loss over leaf masses.
**Shapes:** x [T, D]; nodes.weight [2^d - 1, D] in heap order; up_proj [2^d, F, D]; down_proj [2^d, D, F].
**Reference:** Belcak & Wattenhofer 2023, Fast Feedforward Networks (2308.14711), section 2; Charalampopoulos et al.
    2024 (2405.16836) for load balance and master leaf; both authors' code.
**Differs:** leaves have no biases; no random transposition of children, no dropout. The authors' balance is the sum of
    f P over leaves without a scale; here it is the Switch loss, which is 1 at balance. Nodes start normal with std 1 /
    sqrt(D) and leaves with 0.02; the authors draw both uniformly, by their fan-in.
**Fails when:** the nodes stay undecided (hardening too weak): the one leaf at inference is then not what was trained;
    or harden before the leaves differ (hardening too strong): all tokens then share one leaf.
**Cost:** 2 D (2^d - 1) + 4 D F 2^d FLOPs per token in training, 2 D d + 4 D F at inference; 4 D M more for the master.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixwell.core.method import method
from mixwell.core.routing import Context, Routing
from mixwell.experts.layers._parts import ACTIVATIONS, ChannelMixer, Gate, routed_mlp
from mixwell.kernels.linear import linear
from mixwell.kernels.norm import wide
from mixwell.mixing import Mixed, apply_balance, build_balance, check_least, check_not_negative, normal_parameter


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the fast feedforward block."""

    hidden_dim: int  # F, width of each leaf
    depth: int = 3  # d, 0 or more; the tree has 2^d leaves
    activation: Literal["relu", "gelu"] = "relu"
    hardening: float = 3.0  # h, coefficient of the entropy of the nodes' choices, 0 or more
    balance: Mapping[str, Any] = field(default_factory=dict)  # {"switch": 0.01} for the load balance over leaves
    master_dim: int = 0  # M, width of the master leaf; 0: none

    def __post_init__(self) -> None:
        check_least(self, hidden_dim=1, depth=0, master_dim=0)
        check_not_negative(self, "hardening")

    @property
    def leaves(self) -> int:
        """2^d."""
        return 2**self.depth


def masses(logits_TN: Tensor, depth: int) -> Tensor:
    """m [T, 2^d], summing to 1 for each token, from node logits in heap order."""
    mass = logits_TN.new_ones(len(logits_TN), 1)
    for level in range(depth):
        first = 2**level - 1
        after = 2 ** (level + 1) - 1  # a level's nodes stand next to each other
        logits = logits_TN[:, first:after]
        left = mass * (-logits).sigmoid()
        right = mass * logits.sigmoid()
        children = torch.stack([left, right], dim=-1)
        mass = children.flatten(1)
    return mass


def leaf_of(logits_TN: Tensor, depth: int) -> Tensor:
    """The leaf that hard choices lead to, int64 [T]."""
    node = torch.zeros(len(logits_TN), dtype=torch.int64, device=logits_TN.device)
    for _ in range(depth):
        logit = logits_TN.gather(1, node.unsqueeze(1)).squeeze(1)
        node = 2 * node + 1 + (logit >= 0)
    return node - (2**depth - 1)


def descend(x_TD: Tensor, nodes: Gate, depth: int) -> Tensor:
    """The same leaf from d dot products a token, int64 [T]."""
    assert nodes.bias is not None
    x = wide(x_TD)
    node = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    for _ in range(depth):
        weight = nodes.weight[node].to(x.dtype)
        bias = nodes.bias[node].to(x.dtype)
        logit = (x * weight).sum(1) + bias
        node = 2 * node + 1 + (logit >= 0)
    return node - (2**depth - 1)


def undecidedness(logits_TN: Tensor, mask_T: Tensor | None) -> Tensor:
    """Mean entropy of the nodes' choices in nats, a scalar from 0 to log 2; padding left out."""
    logits = logits_TN if mask_T is None else logits_TN[mask_T]
    entropy = F.softplus(logits) - logits * logits.sigmoid()
    return entropy.sum() / max(logits.numel(), 1)


@method(
    title="Fast feedforward tree",
    paper=(
        "Fast Feedforward Networks",
        "Enhancing Fast Feed Forward Networks with Load Balancing and a Master Leaf Node",
    ),
    year=2023,
    tags={"tokenwise"},
)
class FastFeedforward(ChannelMixer):
    """Tree of leaves, soft in training and hard in evaluation; see the module's card."""

    config: Config

    def __init__(self, dim: int, config: Config, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.dim = dim
        self.config = config
        leaves = config.leaves
        hidden = config.hidden_dim
        master = config.master_dim
        self.balance = build_balance(config.balance)
        self.nodes = Gate(dim, leaves - 1, generator, bias=True, std=dim**-0.5)
        self.up_proj = normal_parameter((leaves, hidden, dim), generator)
        self.down_proj = normal_parameter((leaves, dim, hidden), generator)
        if master:
            self.master_up_proj = normal_parameter((master, dim), generator)
            self.master_down_proj = normal_parameter((dim, master), generator)
            self.mix = nn.Parameter(self.up_proj.new_tensor(0.5))

    def forward(self, x_TD: Tensor, context: Context) -> Mixed:
        """[T, D] -> [T, D]; all leaves and the losses in training, one leaf and no losses in evaluation."""
        if self.training:
            mixed = self._soft(x_TD, context)
        else:
            mixed = self._hard(x_TD)
        if not self.config.master_dim:
            return mixed
        activation = ACTIVATIONS[self.config.activation]
        hidden = activation(linear(x_TD, self.master_up_proj))
        master = linear(hidden, self.master_down_proj)
        a = self.mix.sigmoid().to(x_TD.dtype)
        y = a * mixed.y_TD + (1 - a) * master
        return mixed._replace(y_TD=y)

    def _soft(self, x_TD: Tensor, context: Context) -> Mixed:
        """All leaves as one wide block, each leaf's units scaled by its mass."""
        depth = self.config.depth
        hardening = self.config.hardening
        logits = self.nodes(x_TD)
        mass = masses(logits, depth)
        leaf = leaf_of(logits.detach(), depth).unsqueeze(1)
        weights = mass.gather(1, leaf)
        routing = Routing(leaf, weights, mass)
        losses, aux = apply_balance(self.balance, routing, context)
        losses["hardening"] = undecidedness(logits, context.mask_T)
        if hardening:
            others = 0.0 if aux is None else aux
            aux = hardening * losses["hardening"] + others
        return Mixed(self._all_leaves(x_TD, mass), routing, losses, aux)

    def _all_leaves(self, x_TD: Tensor, mass_TL: Tensor) -> Tensor:
        """The leaves' sum by their masses, as one block as wide as all of them."""
        activation = ACTIVATIONS[self.config.activation]
        hidden = activation(linear(x_TD, self.up_proj.flatten(0, 1)))
        by_leaf = hidden.unflatten(-1, (self.config.leaves, -1))
        scaled = by_leaf * mass_TL.unsqueeze(-1).to(hidden.dtype)
        down = self.down_proj.transpose(0, 1).flatten(1)
        return linear(scaled.flatten(1), down)

    def _hard(self, x_TD: Tensor) -> Mixed:
        leaf = descend(x_TD, self.nodes, self.config.depth)
        scores = F.one_hot(leaf, self.config.leaves).to(wide(x_TD).dtype)
        weights = scores.new_ones(len(leaf), 1)
        routing = Routing(leaf.unsqueeze(1), weights, scores)
        activation = ACTIVATIONS[self.config.activation]
        y = routed_mlp(x_TD, routing, self.up_proj, self.down_proj, activation)
        return Mixed(y, routing)

    def flops_per_token(self) -> float:
        """Of a pass in the present mode: all nodes and leaves in training, one path and one leaf in evaluation."""
        c = self.config
        leaves = 1
        nodes = c.depth
        if self.training:
            leaves = c.leaves
            nodes = c.leaves - 1
        hidden = leaves * c.hidden_dim + c.master_dim
        return self.dim * (2.0 * nodes + 4.0 * hidden)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens of width six, four leaves and a master leaf."""
    config = Config(hidden_dim=5, depth=2, balance={"switch": 0.01}, master_dim=3)
    x_TD = torch.randn(8, 6, generator=generator)
    return {"dim": 6, "config": config, "x_TD": x_TD}
