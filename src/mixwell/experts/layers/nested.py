"""Nested experts: prefix slices of one block's weights, the largest for the tokens that need it most, under a budget.

**Equation:** B_j(x) = pad(W_down[:d_j] h(x[:d_j])),  d_j = D / 2^(E - j), h the SwiGLU of the sliced input maps at full
    hidden width;  r = softmax(W_r x + b_r);  y = (alpha r_j + 1) B_j(x) for the one expert j that takes the token.
    Largest expert first, each takes its floor(c_j N) free tokens of highest r_j; the smallest takes the rest.
    Capacities: max sum_j c_j delta^(j - 1) - beta sum_j c_j log c_j  with  sum_j c_j = 1, sum_j c_j d_j / D = e_c.
**Shapes:** x [T, D]; gate_up_proj [2 F, D]; down_proj [D, F]; levels [T], 0 the smallest.
**Reference:** Jain et al. 2024, Mixture of Nested Experts (2407.19985), eq. 1-3 and algorithm 1.
**Differs:** SwiGLU; nests the feed-forward block only, and routes in each layer that has it (the paper: once, for
    attention too). alpha starts at 0 and is not held to [0, 1): a first step below 0 would cut the router off for good.
    Eq. 3 is solved exactly through its one multiplier, not by SLSQP; it prints the reward as c_j over delta^(j - 1),
    against its text, which rewards large experts; the text is followed.
**Fails when:** used in an autoregressive model: which expert a token gets depends on the other tokens of its row.
**Cost:** 6 D F e_c FLOPs per token (all experts but the smallest round down), 2 D E for the router.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mixwell.core.method import method
from mixwell.core.routing import Context, Routing, combine, dispatch, plan
from mixwell.experts.layers._parts import ChannelMixer, Gate
from mixwell.kernels.experts import mlp
from mixwell.mixing import Mixed, check_least, normal_parameter


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of nested experts."""

    hidden_dim: int  # F, the same for every nested expert
    levels: int = 4  # E, nested experts; the smallest sees D / 2^(E - 1) channels
    budget: float = 0.5  # e_c, share of the full block's compute, 2^(1 - E) to 1
    beta: float = 10.0  # weight of the entropy of the capacities, above 0
    delta: float = 2.0  # growth of the reward from one expert to the next larger, above 1

    def __post_init__(self) -> None:
        check_least(self, hidden_dim=1, levels=1)
        beta = self.beta
        delta = self.delta
        if not (beta > 0 and delta > 1):
            raise ValueError(f"beta is {beta} and delta {delta}; expected above 0 and above 1")
        check_budget(self.budget, self.levels)


def check_budget(budget: float, levels: int) -> None:
    """Raise `ValueError` for a budget that no split of the tokens can meet."""
    least = 2.0 ** (1 - levels)
    if not least <= budget <= 1:
        raise ValueError(f"budget is {budget}; {levels} levels can take {least:g} to 1 of the full compute")


def capacities(levels: int, budget: float, beta: float = 10.0, delta: float = 2.0) -> list[float]:
    """c_j, smallest expert first: at the optimum log c_j is linear in reward and cost, up to one multiplier.

    Raises `ValueError` for a budget that no split can meet.
    """
    check_budget(budget, levels)
    costs = [2.0 ** (j + 1 - levels) for j in range(levels)]
    rewards = [delta**j / beta for j in range(levels)]
    if budget in (costs[0], 1.0):
        return [float(budget == cost) for cost in costs]
    low = -1e6
    high = 1e6
    for _ in range(200):  # what is spent grows with the multiplier
        middle = (low + high) / 2
        shares = _shares(rewards, costs, middle)
        spent = sum(share * cost for share, cost in zip(shares, costs))
        if spent < budget:
            low = middle
        else:
            high = middle
    return _shares(rewards, costs, (low + high) / 2)


def _shares(rewards: list[float], costs: list[float], multiplier: float) -> list[float]:
    pairs = zip(rewards, costs)
    logs = [reward + multiplier * cost for reward, cost in pairs]
    largest = max(logs)
    scaled = [value - largest for value in logs]
    weights = [math.exp(value) for value in scaled]
    total = sum(weights)
    return [weight / total for weight in weights]


def assign(scores_BSE: Tensor, shares: list[float], mask_BS: Tensor) -> Tensor:
    """Level of each token, int64 [B, S]: in each row the largest expert chooses first; padding goes to the smallest."""
    level = torch.zeros_like(mask_BS, dtype=torch.int64)
    free = mask_BS
    counted = mask_BS.sum(1, keepdim=True).double()
    for j in reversed(range(1, len(shares))):
        scores = scores_BSE[..., j]
        scores = scores.masked_fill(~free, float("-inf"))
        order = scores.argsort(dim=1, descending=True, stable=True)
        rank = order.argsort(dim=1)
        room = (shares[j] * counted + 1e-9).floor()  # 1e-9: what is whole but for rounding stays whole
        taken = free & (rank < room)
        level = level.masked_fill(taken, j)
        free = free & ~taken
    return level


@method(
    title="Nested experts",
    paper="Mixture of Nested Experts: Adaptive Processing of Visual Tokens",
    year=2024,
    tags={"non-causal"},
)
class NestedExperts(ChannelMixer):
    """One block whose prefix slices are its experts; see the module's card."""

    config: Config

    def __init__(self, dim: int, config: Config, generator: torch.Generator | None = None) -> None:
        super().__init__()
        levels = config.levels
        hidden = config.hidden_dim
        halvings = range(levels - 1, -1, -1)
        if dim % 2 ** (levels - 1):
            raise ValueError(f"dim {dim} cannot be halved {levels - 1} times; lower levels")
        self.dim = dim
        self.config = config
        self.dims = [dim >> times for times in halvings]
        self.gate = Gate(dim, levels, generator, bias=True)
        zero = self.gate.weight.new_zeros(())
        self.alpha = nn.Parameter(zero)
        self.gate_up_proj = normal_parameter((2 * hidden, dim), generator)
        self.down_proj = normal_parameter((dim, hidden), generator)
        self.set_budget(config.budget)

    def set_budget(self, budget: float) -> None:
        """Take another share of the full compute from now on, without training.

        Raises `ValueError` for a share that no split of the tokens can meet.
        """
        c = self.config
        self.capacities = capacities(c.levels, budget, c.beta, c.delta)
        self.budget = budget

    def forward(self, x_TD: Tensor, context: Context) -> Mixed:
        """[T, D] -> [T, D]; without `context.batch_shape` all tokens share one budget, else each row has its own."""
        routing = self.route(x_TD, context)
        order = plan(routing.indices_TK, self.config.levels)
        parts = dispatch(x_TD, order).split(order.counts_E.tolist())
        rows = [self._slice(part, width) for part, width in zip(parts, self.dims) if len(part)]
        whole = torch.cat(rows) if rows else x_TD[:0]
        return Mixed(combine(whole, order, routing.weights_TK), routing)

    def _slice(self, x_ND: Tensor, width: int) -> Tensor:
        """The expert that sees the first `width` channels, zeros in the others, [N, D]."""
        gate_up = self.gate_up_proj[:, :width]
        down = self.down_proj[:width]
        seen = x_ND[:, :width]
        y = mlp(seen, gate_up, down)
        return nn.functional.pad(y, (0, self.dim - width))

    def route(self, x_TD: Tensor, context: Context) -> Routing:
        """The level of each token, with its weight alpha r_j + 1."""
        logits = self.gate(x_TD)
        scores = logits.softmax(-1)
        tokens, levels = scores.shape
        shape = context.batch_shape or (1, tokens)
        mask = context.mask_T
        if mask is None:
            mask = torch.ones(tokens, dtype=torch.bool, device=scores.device)
        scores_BSE = scores.detach().view(*shape, levels)
        level = assign(scores_BSE, self.capacities, mask.view(shape))
        level = level.view(-1, 1)
        alpha = self.alpha.to(scores.dtype)
        r = scores.gather(1, level)
        weights = alpha * r + 1
        return Routing(level, weights, scores, logits)

    def flops_per_token(self) -> float:
        """6 D F e_c for the blocks at the present budget, 2 D E for the router."""
        c = self.config
        blocks = 6.0 * self.dim * c.hidden_dim * self.budget
        return blocks + 2.0 * self.dim * c.levels


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two rows of four tokens of width eight, three nested experts."""
    config = Config(hidden_dim=5, levels=3, budget=0.6)
    x_TD = torch.randn(8, 8, generator=generator)
    context = Context(batch_shape=(2, 4))
    return {"dim": 8, "config": config, "x_TD": x_TD, "context": context}
