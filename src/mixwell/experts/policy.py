"""A policy that is a mixture of Gaussians: several ways to act well, kept apart by their experts.

**Equation:** pi(a|s) = sum_i w_i(s) N(a; mu_i(s), sigma_i(s)), or of tanh(a);
    gate: one action a_i from each expert, v_i = 1 for the one that the critic prefers, 0 for the others, and
        L_gate = mean_s sum_i (w_i - v_i)^2, least where w_i is the frequency with which expert i is best;
    experts: L = mean_s alpha log pi_j(a_j|s) - Q(s, a_j), j the preferred one (max), or the mean over experts (all).
**Shapes:** s [B, D]; weights [B, K]; mean, log_std and actions [B, K, A]; q [B, K].
**Reference:** Ren et al. 2021, PMOE (2104.09122), section 3 (frequency approximate gradient, back-propagation max).
**Differs:** from memory of the paper and a public reimplementation in SAC. The squared error is summed over experts
    (there: their mean). Critic, replay and targets are the caller's.
**Fails when:** the critic is wrong early on: the gate then follows its error, and experts it never prefers stop moving.
**Cost:** 2 B H (D + K + 2 K A) FLOPs, H the hidden width; one critic call for each expert and state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixwell.core.method import method


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the mixture policy."""

    action_dim: int  # A
    num_experts: int = 4  # K
    hidden_dim: int = 256  # H
    squash: bool = True  # actions are tanh of the Gaussian's, in (-1, 1)
    log_std_min: float = -20.0
    log_std_max: float = 2.0  # at least log_std_min

    def __post_init__(self) -> None:
        for name in ("action_dim", "num_experts", "hidden_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if not self.log_std_min <= self.log_std_max:
            raise ValueError(f"log_std_min is {self.log_std_min}, log_std_max {self.log_std_max}; expected the first "
                             "to be no larger")


class Policy(NamedTuple):
    """The distribution over actions in each of B states."""

    weights_BK: Tensor
    mean_BKA: Tensor
    log_std_BKA: Tensor
    squash: bool

    def sample(self, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """(one action of each expert [B, K, A], its log density under that expert [B, K]), both with gradient."""
        device = None if generator is None else generator.device
        noise = torch.randn(self.mean_BKA.shape, generator=generator, device=device).to(self.mean_BKA)
        raw = self.mean_BKA + self.log_std_BKA.exp() * noise
        return torch.tanh(raw) if self.squash else raw, self._component_log_prob(raw)

    def act(self, generator: torch.Generator | None) -> Tensor:
        """One action [B, A]: an expert drawn by its weight, then an action of it; no gradient."""
        actions = self.sample(generator)[0].detach()
        chosen = torch.multinomial(self.weights_BK.detach(), 1, generator=generator)
        return _pick(actions, chosen.squeeze(-1))

    def best(self) -> Tensor:
        """The mean action of the heaviest expert [B, A], for use without exploration."""
        mean = _pick(self.mean_BKA, self.weights_BK.argmax(-1))
        return torch.tanh(mean) if self.squash else mean

    def log_prob(self, action_BA: Tensor) -> Tensor:
        """Log density [B] of the mixture; with squash, actions lie inside (-1, 1)."""
        raw = torch.atanh(action_BA) if self.squash else action_BA
        each = self._component_log_prob(raw.unsqueeze(1).expand_as(self.mean_BKA))
        return (self.weights_BK.log() + each).logsumexp(-1)

    def _component_log_prob(self, raw_BKA: Tensor) -> Tensor:
        scaled = (raw_BKA - self.mean_BKA) * torch.exp(-self.log_std_BKA)
        dense = -0.5 * scaled.square() - self.log_std_BKA - 0.5 * math.log(2 * math.pi)
        if self.squash:  # log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2 u)), without cancellation
            dense = dense - 2 * (math.log(2) - raw_BKA - F.softplus(-2 * raw_BKA))
        return dense.sum(-1)


def _pick(values_BKA: Tensor, chosen_B: Tensor) -> Tensor:
    return values_BKA[torch.arange(len(chosen_B), device=chosen_B.device), chosen_B]


def gate_loss(weights_BK: Tensor, q_BK: Tensor) -> Tensor:
    """The frequency approximate gradient as a loss: squared distance of the gate to the critic's choice."""
    choice = F.one_hot(q_BK.argmax(-1), q_BK.shape[-1]).to(weights_BK.dtype)
    return (weights_BK - choice).square().sum(-1).mean()


def expert_loss(log_prob_BK: Tensor, q_BK: Tensor, alpha: float = 0.0,
                through: Literal["max", "all"] = "max") -> Tensor:
    """alpha log pi - Q: of the action that the critic prefers, or the mean over every expert's."""
    each = alpha * log_prob_BK - q_BK
    if through == "all":
        return each.mean()
    return each.gather(-1, q_BK.argmax(-1, keepdim=True)).mean()


@method(
    title="Mixture-of-Gaussians policy",
    paper="Probabilistic Mixture-of-Experts for Efficient Deep Reinforcement Learning",
    year=2021,
)
class GaussianMixturePolicy(nn.Module):
    """Policy with several Gaussian experts and a gate over one hidden layer; see the module's card."""

    def __init__(self, dim: int, config: Config, generator: torch.Generator | None = None) -> None:
        super().__init__()
        device = None if generator is None else generator.device
        self.dim, self.config = dim, config
        outputs = config.num_experts * (1 + 2 * config.action_dim)
        shapes = ((config.hidden_dim, dim), (outputs, config.hidden_dim))
        first, last = (torch.randn(s, generator=generator, device=device) * s[1] ** -0.5 for s in shapes)
        self.hidden_weight, self.head_weight = nn.Parameter(first), nn.Parameter(last)
        self.hidden_bias = nn.Parameter(torch.zeros(config.hidden_dim, device=device))
        self.head_bias = nn.Parameter(torch.zeros(outputs, device=device))

    def forward(self, state_BD: Tensor) -> Policy:
        """States [B, D] -> the distribution over actions."""
        c = self.config
        hidden = torch.relu(F.linear(state_BD, self.hidden_weight, self.hidden_bias))
        logits, mean, log_std = F.linear(hidden, self.head_weight, self.head_bias).split(
            (c.num_experts, c.num_experts * c.action_dim, c.num_experts * c.action_dim), -1)
        mean, log_std = (t.unflatten(-1, (c.num_experts, c.action_dim)) for t in (mean, log_std))
        return Policy(logits.softmax(-1), mean, log_std.clamp(c.log_std_min, c.log_std_max), c.squash)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Five states of width three, actions of width two."""
    return {"dim": 3, "config": Config(action_dim=2, hidden_dim=8),
            "state_BD": torch.randn(5, 3, generator=generator)}
