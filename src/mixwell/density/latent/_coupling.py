"""What couples autoencoders: categories that are relaxed, divergences, distances between arms, and their agreement.

A arms, N rows, D columns, K categories, S state coordinates, P pairs of arms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor

from mixwell.density._gaussian import divergence

Distance = Literal["scaled", "aitchison", "euclidean"]


@dataclass(frozen=True)
class Pass:
    """What every arm infers and decodes."""

    log_prob_ANK: Tensor  # log q(c | x)
    mean_ANS: Tensor  # of q(s | c, x)
    log_variance_ANS: Tensor
    decoded_AND: Tensor


@dataclass(frozen=True)
class Terms:
    """The parts of the loss, in nats a row, before their weights."""

    reconstruction_A: Tensor  # half the squared error
    state_A: Tensor  # KL of q(s | c, x) from the standard normal
    category_A: Tensor  # KL of q(c | x) from the uniform
    coupling_P: Tensor  # squared distance of every pair of arms; empty for one arm

    def total(self, coupling: float = 1.0, beta: float = 1.0) -> Tensor:
        """The loss L, a scalar."""
        arms_A = self.reconstruction_A + beta * self.state_A + self.category_A
        others = max(len(arms_A) - 1, 1)
        return others * arms_A.sum() + coupling * self.coupling_P.sum()


def relax(log_prob: Tensor, gumbel: Tensor, temperature: float) -> Tensor:
    """Gumbel-softmax sample (..., K) of log probabilities with given standard Gumbel noise."""
    disturbed = log_prob + gumbel
    return (disturbed / temperature).softmax(-1)


def state_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL (...) of diagonal normals (..., S) from the standard normal, in nats."""
    square = mean.square() + log_variance.exp()
    return divergence(square, -log_variance).sum(-1)


def category_divergence(log_prob: Tensor) -> Tensor:
    """KL (...) of log probabilities (..., K) from the uniform distribution, in nats."""
    K = log_prob.shape[-1]
    entropy = -(log_prob.exp() * log_prob).sum(-1)
    return math.log(K) - entropy


def squared_distance(log_p_NK: Tensor, log_q_NK: Tensor, distance: Distance = "scaled", eps: float = 1e-8) -> Tensor:
    """Mean over N rows of d^2 between two arms' categories; `eps` keeps the batch's variances off zero."""
    first_NK = _coordinates(log_p_NK, distance, eps)
    second_NK = _coordinates(log_q_NK, distance, eps)
    square_N = (first_NK - second_NK).square().sum(-1)
    return square_N.mean()


def _coordinates(log_NK: Tensor, distance: Distance, eps: float) -> Tensor:
    """Coordinates (N, K) of log probabilities in which a distance is Euclidean."""
    if distance == "euclidean":
        return log_NK.exp()
    if distance == "aitchison":
        return log_NK - log_NK.mean(-1, keepdim=True)
    variance_K = log_NK.exp().var(0)
    return log_NK * (variance_K + eps).rsqrt()


def loss_terms(x_AND: Tensor, seen: Pass, distance: Distance = "scaled") -> Terms:
    """Every part of the loss of A arms."""
    pairs = [squared_distance(p, q, distance) for p, q in combinations(seen.log_prob_ANK, 2)]
    error_AND = x_AND - seen.decoded_AND
    square_AN = error_AND.square().sum(-1)
    state_AN = state_divergence(seen.mean_ANS, seen.log_variance_ANS)
    category_AN = category_divergence(seen.log_prob_ANK)
    return Terms(
        reconstruction_A=0.5 * square_AN.mean(-1),
        state_A=state_AN.mean(-1),
        category_A=category_AN.mean(-1),
        coupling_P=torch.stack(pairs) if pairs else x_AND.new_zeros(0),
    )


def category_agreement(first_N: Tensor, second_N: Tensor, n_components: int) -> Tensor:
    """Agreement (K,) of two labellings: rows that both put in k over the larger of both counts; 0 for an empty k."""
    agreed_M = first_N[first_N == second_N]
    both_K = torch.bincount(agreed_M, minlength=n_components)
    first_K = torch.bincount(first_N, minlength=n_components)
    second_K = torch.bincount(second_N, minlength=n_components)
    larger_K = torch.maximum(first_K, second_K)
    return both_K / larger_K.clamp(min=1)
