"""PMOE: a policy that is a mixture of Gaussians keeps several ways to act well where a single Gaussian keeps one.

Paper: Probabilistic Mixture-of-Experts for Efficient Deep Reinforcement Learning.
Tried: one state, actions in (-1, 1), a critic with two equal peaks at -0.6 and 0.6, known exactly; four experts with
the paper's gate loss and back-propagation through the preferred action, against one Gaussian, 500 steps of 64 draws;
share of the actions near the peak that is visited less. Beside: gradients through every action. Against it: a share
that is no larger, or a mean value more than 2 % lower.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side, no_worse
from mixwell.claims.grids import RATES
from mixwell.core.rng import generator
from mixwell.experts.policy import Config, GaussianMixturePolicy, expert_loss, gate_loss

PEAK, WIDTH, ALPHA = 0.6, 0.2, 0.05


def value(action: Tensor) -> Tensor:
    """The critic: 1 at either peak."""
    off = (action.abs() - PEAK) / WIDTH
    bell = (-(off**2) / 2).exp()
    return bell.sum(-1)


def trained(experts: int, through: Literal["max", "all"], draws: torch.Generator, lr: float) -> GaussianMixturePolicy:
    """A policy after 500 steps."""
    config = Config(action_dim=1, num_experts=experts, hidden_dim=32)
    policy = GaussianMixturePolicy(1, config, draws)
    optimizer = torch.optim.Adam(policy.parameters(), lr=lr)
    state = torch.ones(64, 1)
    for _ in range(500):
        now = policy(state)
        actions, log_prob = now.sample(draws)
        q = value(actions)
        of_gate = gate_loss(now.weights_BK, q.detach())
        of_experts = expert_loss(log_prob, q, ALPHA, through)
        optimizer.zero_grad()
        (of_gate + of_experts).backward()
        optimizer.step()
    return policy


def measure(bench: Bench, seed: int, *, lr: float, experts: int, through: Literal["max", "all"]) -> dict[str, float]:
    """Share of actions within 0.2 of the peak visited less, and the mean value, after training."""
    draws = generator(seed, "policy")
    policy = trained(experts, through, draws, lr)
    state = torch.ones(4096, 1)
    with torch.no_grad():
        actions = policy(state).act(draws)
    shares = [near(actions, peak) for peak in (-PEAK, PEAK)]
    worth = value(actions).mean()
    least = min(shares)
    return {"share": least, "value": float(worth)}


def near(actions: Tensor, peak: float) -> float:
    """Share of the actions within 0.2 of a peak."""
    close = (actions - peak).abs() < 0.2
    return float(close.float().mean())


SIDES: dict[str, dict[str, Any]] = {
    "method": {"experts": 4, "through": "max"},
    "baseline": {"experts": 1, "through": "max"},
    "through all": {"experts": 4, "through": "all"},
}

CLAIM = Claim(
    "A mixture policy keeps both of two equal peaks.", "share of actions near the peak visited less", quantity="share",
    lower_is_better=False, tuned_by="value", provided=(no_worse("value", 0.02, lower_is_better=False),),
    sides={name: Side(measure, options, {"lr": RATES}) for name, options in SIDES.items()})
