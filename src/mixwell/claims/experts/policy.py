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
from mixwell.claims.bench import Bench
from mixwell.core.evidence import Evidence, weigh
from mixwell.core.rng import generator
from mixwell.experts.policy import Config, GaussianMixturePolicy, expert_loss, gate_loss

PEAK, WIDTH, ALPHA = 0.6, 0.2, 0.05


def value(action: Tensor) -> Tensor:
    """The critic: 1 at either peak."""
    return (-(((action.abs() - PEAK) / WIDTH) ** 2) / 2).exp().sum(-1)


def measure(seed: int, experts: int, through: Literal["max", "all"]) -> tuple[float, float]:
    """(share of actions within 0.2 of the peak visited less, mean value) after training."""
    draws = generator(seed, "policy")
    policy = GaussianMixturePolicy(1, Config(action_dim=1, num_experts=experts, hidden_dim=32), draws)
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    state = torch.ones(64, 1)
    for _ in range(500):
        now = policy(state)
        actions, log_prob = now.sample(draws)
        q = value(actions)
        optimizer.zero_grad()
        (gate_loss(now.weights_BK, q.detach()) + expert_loss(log_prob, q, ALPHA, through)).backward()
        optimizer.step()
    with torch.no_grad():
        actions = policy(torch.ones(4096, 1)).act(draws)
    near = [float(((actions - peak).abs() < 0.2).float().mean()) for peak in (-PEAK, PEAK)]
    return min(near), float(value(actions).mean())


def claim(bench: Bench) -> Evidence:
    """Share of actions near the lesser peak, four experts against one."""
    ours, one = ([measure(seed, experts, "max") for seed in bench.seeds] for experts in (4, 1))
    evidence = weigh("A mixture policy keeps both of two equal peaks.", "share of actions near the peak visited less",
                     [m[0] for m in ours], [m[0] for m in one], lower_is_better=False,
                     note="Through the preferred action alone, 3 % of the actions stay near the lesser peak; with "
                          "gradients through every action it is 26 to 32 %.")
    worth, single = [m[1] for m in ours], [m[1] for m in one]
    return provided(evidence, sum(worth) >= sum(single), "Its mean value is lower.", method_value=worth,
                    baseline_value=single, through_all=[measure(seed, 4, "all")[0] for seed in bench.seeds])
