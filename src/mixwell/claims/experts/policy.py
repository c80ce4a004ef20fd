"""PMOE: a policy that is a mixture of Gaussians keeps several ways to act well where a single Gaussian keeps one.

Paper: Probabilistic Mixture-of-Experts for Efficient Deep Reinforcement Learning.
Tried: one state, actions in (-1, 1), a critic with two equal peaks at -0.6 and 0.6, known exactly; four experts with
the paper's gate loss and back-propagation through the preferred action, against one Gaussian, 500 steps of 64 draws;
share of the actions near the peak that is visited less. Beside: gradients through every action. Against it: a share
that is no larger, or a lower mean value.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mixwell.claims._judging import provided
from mixwell.claims._series import series
from mixwell.claims.bench import Bench
from mixwell.core.evidence import Evidence, weigh
from mixwell.core.rng import generator
from mixwell.experts.policy import Config, GaussianMixturePolicy, expert_loss, gate_loss

PEAK, WIDTH, ALPHA = 0.6, 0.2, 0.05


def value(action: Tensor) -> Tensor:
    """The critic: 1 at either peak."""
    off = (action.abs() - PEAK) / WIDTH
    bell = (-(off**2) / 2).exp()
    return bell.sum(-1)


def trained(experts: int, through: Literal["max", "all"], draws: torch.Generator) -> GaussianMixturePolicy:
    """A policy after 500 steps."""
    config = Config(action_dim=1, num_experts=experts, hidden_dim=32)
    policy = GaussianMixturePolicy(1, config, draws)
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
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


def measure(seed: int, experts: int, through: Literal["max", "all"]) -> tuple[float, float]:
    """(share of actions within 0.2 of the peak visited less, mean value) after training."""
    draws = generator(seed, "policy")
    policy = trained(experts, through, draws)
    state = torch.ones(4096, 1)
    with torch.no_grad():
        actions = policy(state).act(draws)
    shares = [near(actions, peak) for peak in (-PEAK, PEAK)]
    worth = value(actions)
    return min(shares), float(worth.mean())


def near(actions: Tensor, peak: float) -> float:
    """Share of the actions within 0.2 of a peak."""
    close = (actions - peak).abs() < 0.2
    return float(close.float().mean())


def claim(bench: Bench) -> Evidence:
    """Share of actions near the lesser peak, four experts against one."""
    ours, worth = series(bench, measure, 4, "max")
    one, single = series(bench, measure, 1, "max")
    through_all, _ = series(bench, measure, 4, "all")
    evidence = weigh("A mixture policy keeps both of two equal peaks.", "share of actions near the peak visited less",
                     ours, one, lower_is_better=False,
                     note="Through the preferred action alone, 3 % of the actions stay near the lesser peak; with "
                          "gradients through every action it is 26 to 32 %.")
    return provided(evidence, sum(worth) >= sum(single), "Its mean value is lower.", method_value=worth,
                    baseline_value=single, through_all=through_all)
