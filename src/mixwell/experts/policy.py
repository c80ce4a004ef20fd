"""A policy that is a mixture of Gaussians: several ways to act well, kept apart by their experts.

**Equation:** pi(a|s) = sum_i w_i(s) N(a; mu_i(s), sigma_i(s)), or of tanh(a);
    gate: one action a_i from each expert, v_i = 1 for the one that the critic prefers, 0 for the others, and
        L_gate = mean_s sum_i (w_i - v_i)^2, least where w_i is the frequency with which expert i is best;
    experts: L = mean_s alpha log pi_j(a_j|s) - Q(s, a_j), j the preferred one (max), or the mean over experts (all).
**Shapes:** s [B, D]; weights [B, K]; mean, log_std and actions [B, K, A]; q [B, K].
**Reference:** Ren et al. 2021, PMOE (2104.09122), section 3 (frequency approximate gradient, back-propagation max).
**Differs:** from memory of the paper and a public reimplementation in SAC. The squared error is summed over experts
    (there: their mean). Critic, replay and targets are the caller's. Maps start normal with one over the root of what
    they read. No environment is here: the claim tries a bandit with two best actions in place of the paper's MuJoCo
    tasks.
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
from mixwell.mixing import check_least, normal_parameter


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
        check_least(self, action_dim=1, num_experts=1, hidden_dim=1)
        low = self.log_std_min
        high = self.log_std_max
        if not low <= high:
            raise ValueError(f"log_std_min is {low}, log_std_max {high}; expected the first to be no larger")


class Policy(NamedTuple):
    """The distribution over actions in each of B states."""

    weights_BK: Tensor
    mean_BKA: Tensor
    log_std_BKA: Tensor
    squash: bool

    def sample(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(one action of each expert [B, K, A], its log density under that expert [B, K]), both with gradient."""
        draw = torch.randn(self.mean_BKA.shape, generator=generator, device=generator.device)
        noise = draw.to(self.mean_BKA)
        raw = self.mean_BKA + self.log_std_BKA.exp() * noise
        action = torch.tanh(raw) if self.squash else raw
        return action, self._component_log_prob(raw)

    def act(self, generator: torch.Generator) -> Tensor:
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
        of_each = raw.unsqueeze(1).expand_as(self.mean_BKA)
        log_prob = self.weights_BK.log() + self._component_log_prob(of_each)
        return log_prob.logsumexp(-1)

    def _component_log_prob(self, raw_BKA: Tensor) -> Tensor:
        scaled = (raw_BKA - self.mean_BKA) * torch.exp(-self.log_std_BKA)
        log_norm = 0.5 * math.log(2 * math.pi)
        dense = -0.5 * scaled.square() - self.log_std_BKA - log_norm
        if self.squash:  # log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2 u)), without cancellation
            slope = math.log(2) - raw_BKA - F.softplus(-2 * raw_BKA)
            dense = dense - 2 * slope
        return dense.sum(-1)


def _pick(values_BKA: Tensor, chosen_B: Tensor) -> Tensor:
    rows = torch.arange(len(chosen_B), device=chosen_B.device)
    return values_BKA[rows, chosen_B]


def gate_loss(weights_BK: Tensor, q_BK: Tensor) -> Tensor:
    """The frequency approximate gradient as a loss: squared distance of the gate to the critic's choice."""
    choice = F.one_hot(q_BK.argmax(-1), q_BK.shape[-1])
    error = weights_BK - choice.to(weights_BK.dtype)
    return error.square().sum(-1).mean()


def expert_loss(log_prob_BK: Tensor, q_BK: Tensor, alpha: float = 0.0,
                through: Literal["max", "all"] = "max") -> Tensor:
    """alpha log pi - Q: of the action that the critic prefers, or the mean over every expert's."""
    each = alpha * log_prob_BK - q_BK
    if through == "all":
        return each.mean()
    preferred = q_BK.argmax(-1, keepdim=True)
    return each.gather(-1, preferred).mean()


@method(
    title="Mixture-of-Gaussians policy",
    paper="Probabilistic Mixture-of-Experts for Efficient Deep Reinforcement Learning",
    year=2021,
)
class GaussianMixturePolicy(nn.Module):
    """Policy with several Gaussian experts and a gate over one hidden layer; see the module's card."""

    def __init__(self, dim: int, config: Config, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.dim = dim
        self.config = config
        hidden = config.hidden_dim
        outputs = config.num_experts * (1 + 2 * config.action_dim)
        self.hidden_weight = normal_parameter((hidden, dim), generator, dim**-0.5)
        self.head_weight = normal_parameter((outputs, hidden), generator, hidden**-0.5)
        self.hidden_bias = nn.Parameter(self.hidden_weight.new_zeros(hidden))
        self.head_bias = nn.Parameter(self.hidden_weight.new_zeros(outputs))

    def forward(self, state_BD: Tensor) -> Policy:
        """States [B, D] -> the distribution over actions."""
        c = self.config
        hidden = torch.relu(F.linear(state_BD, self.hidden_weight, self.hidden_bias))
        outputs = F.linear(hidden, self.head_weight, self.head_bias)
        actions = c.num_experts * c.action_dim
        logits, mean, log_std = outputs.split((c.num_experts, actions, actions), -1)
        shape = (c.num_experts, c.action_dim)
        mean = mean.unflatten(-1, shape)
        log_std = log_std.unflatten(-1, shape)
        return Policy(logits.softmax(-1), mean, log_std.clamp(c.log_std_min, c.log_std_max), c.squash)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Five states of width three, actions of width two."""
    config = Config(action_dim=2, hidden_dim=8)
    state_BD = torch.randn(5, 3, generator=generator)
    return {"dim": 3, "config": config, "state_BD": state_BD}
