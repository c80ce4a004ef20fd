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
    f P over leaves without a scale; here it is the Switch loss, which is 1 at balance.
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
from mixwell.experts.layers._parts import ACTIVATIONS, ChannelMixer, Gate, check_least, normal_parameter, routed_mlp
from mixwell.kernels.linear import linear
from mixwell.mixing import Mixed, apply_balance, build_balance


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
        if not self.hardening >= 0:
            raise ValueError(f"hardening is {self.hardening}; expected 0 or more")

    @property
    def leaves(self) -> int:
        """2^d."""
        return 2**self.depth


def masses(logits_TN: Tensor, depth: int) -> Tensor:
    """m [T, 2^d], summing to 1 for each token, from node logits in heap order."""
    mass = logits_TN.new_ones(logits_TN.shape[0], 1)
    for level in range(depth):
        logits = logits_TN[:, 2**level - 1 : 2 ** (level + 1) - 1]
        mass = torch.stack([mass * (-logits).sigmoid(), mass * logits.sigmoid()], dim=-1).flatten(1)
    return mass


def leaf_of(logits_TN: Tensor, depth: int) -> Tensor:
    """The leaf that hard choices lead to, int64 [T]."""
    node = torch.zeros(logits_TN.shape[0], dtype=torch.int64, device=logits_TN.device)
    for _ in range(depth):
        node = 2 * node + 1 + (logits_TN.gather(1, node.unsqueeze(1)).squeeze(1) >= 0)
    return node - (2**depth - 1)


def descend(x_TD: Tensor, nodes: Gate, depth: int) -> Tensor:
    """The same leaf from d dot products a token, int64 [T]."""
    assert nodes.bias is not None
    x = x_TD.to(torch.promote_types(x_TD.dtype, torch.float32))
    node = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
    for _ in range(depth):
        logit = (x * nodes.weight[node].to(x.dtype)).sum(1) + nodes.bias[node].to(x.dtype)
        node = 2 * node + 1 + (logit >= 0)
    return node - (2**depth - 1)


def undecidedness(logits_TN: Tensor, mask_T: Tensor | None) -> Tensor:
    """Mean entropy of the nodes' choices in nats, a scalar from 0 to log 2; padding left out."""
    logits = logits_TN if mask_T is None else logits_TN[mask_T]
    return (F.softplus(logits) - logits * logits.sigmoid()).sum() / max(logits.numel(), 1)


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
        self.dim, self.config = dim, config
        self.balance = build_balance(config.balance)
        self.nodes = Gate(dim, config.leaves - 1, generator, bias=True, std=dim**-0.5)
        self.up_proj = normal_parameter((config.leaves, config.hidden_dim, dim), generator)
        self.down_proj = normal_parameter((config.leaves, dim, config.hidden_dim), generator)
        if config.master_dim:
            self.master_up_proj = normal_parameter((config.master_dim, dim), generator)
            self.master_down_proj = normal_parameter((dim, config.master_dim), generator)
            self.mix = nn.Parameter(self.up_proj.new_tensor(0.5))

    def forward(self, x_TD: Tensor, context: Context) -> Mixed:
        """[T, D] -> [T, D]; all leaves and the losses in training, one leaf and no losses in evaluation."""
        act = ACTIVATIONS[self.config.activation]
        mixed = self._soft(x_TD, context) if self.training else self._hard(x_TD)
        if not self.config.master_dim:
            return mixed
        a = self.mix.sigmoid().to(x_TD.dtype)
        master = linear(act(linear(x_TD, self.master_up_proj)), self.master_down_proj)
        return mixed._replace(y_TD=a * mixed.y_TD + (1 - a) * master)

    def _soft(self, x_TD: Tensor, context: Context) -> Mixed:
        """All leaves as one wide block, each leaf's units scaled by its mass."""
        depth, act = self.config.depth, ACTIVATIONS[self.config.activation]
        logits = self.nodes(x_TD)
        mass = masses(logits, depth)
        h = act(linear(x_TD, self.up_proj.flatten(0, 1))).unflatten(-1, (self.config.leaves, -1))
        y = linear((h * mass.unsqueeze(-1).to(h.dtype)).flatten(1), self.down_proj.transpose(0, 1).flatten(1))
        leaf = leaf_of(logits.detach(), depth).unsqueeze(1)
        routing = Routing(leaf, mass.gather(1, leaf), mass)
        losses, aux = apply_balance(self.balance, routing, context)
        losses["hardening"] = undecidedness(logits, context.mask_T)
        if self.config.hardening:
            aux = self.config.hardening * losses["hardening"] + (0.0 if aux is None else aux)
        return Mixed(y, routing, losses, aux)

    def _hard(self, x_TD: Tensor) -> Mixed:
        leaf = descend(x_TD, self.nodes, self.config.depth)
        scores = F.one_hot(leaf, self.config.leaves).to(torch.promote_types(x_TD.dtype, torch.float32))
        routing = Routing(leaf.unsqueeze(1), scores.new_ones(leaf.shape[0], 1), scores)
        y = routed_mlp(x_TD, routing, self.up_proj, self.down_proj, ACTIVATIONS[self.config.activation])
        return Mixed(y, routing)

    def flops_per_token(self) -> float:
        """Of a pass in the present mode: all nodes and leaves in training, one path and one leaf in evaluation."""
        leaves, nodes = (self.config.leaves, self.config.leaves - 1) if self.training else (1, self.config.depth)
        return self.dim * (2.0 * nodes + 4.0 * leaves * self.config.hidden_dim + 4.0 * self.config.master_dim)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens of width six, four leaves and a master leaf."""
    config = Config(hidden_dim=5, depth=2, balance={"switch": 0.01}, master_dim=3)
    x_TD = torch.randn(8, 6, generator=generator)
    return {"dim": 6, "config": config, "x_TD": x_TD}
