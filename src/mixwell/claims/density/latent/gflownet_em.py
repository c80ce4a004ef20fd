"""GFlowNet-EM: a learnt posterior that explains away fits sums of factors as well as the exact one does.

Paper: GFlowNet-EM for learning compositional latent variable models.
Tried: 500 points at four groups of four petals whose neighbours touch, two factors of four values; mean log density of
2,000 other points, with the flow's E step against an E step of independent factors (mean field, three sweeps), the
same M step, start and forty rounds. Beside it: the exact E step over all sixteen codes.
Against it: a log density that is no higher than the mean field's, or lower than the exact E step's by a tenth of a nat.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Comparison
from mixwell.core.registry import find
from mixwell.core.rng import generator

ROUNDS = 40
GROUPS = 2**0.5 * np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]])
PETALS = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])

CLAIM = Claim("EM with a flow for its posterior fits factors that explain each other away as exact EM does.",
              "mean log density of other points, nats", lower_is_better=False,
              provided=(Comparison(baseline="exact", lower_is_better=False, at_least=-0.1),))


def petals(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Points (rows, 2)."""
    group, petal = rng.integers(4, size=(2, rows))
    noise = rng.normal(size=(rows, 2))
    return GROUPS[group] + PETALS[petal] + 0.25 * noise


def exactly(log_NC: Tensor) -> Tensor:
    """The posterior over codes (N, C)."""
    return log_NC.softmax(1)


def mean_field(log_NC: Tensor) -> Tensor:
    """The product (N, C) of two independent factors' probabilities after three sweeps of coordinate ascent."""
    log_NKK = log_NC.view(-1, 4, 4)
    first_NK = torch.full_like(log_NKK[:, 0], 0.25)
    for _ in range(3):
        second_NK = torch.einsum("nk,nkl->nl", first_NK, log_NKK).softmax(1)
        first_NK = torch.einsum("nl,nkl->nk", second_NK, log_NKK).softmax(1)
    both_NKK = first_NK[:, :, None] * second_NK[:, None]
    return both_NKK.flatten(1)


def fitted(module: Any, model: Any, x_ND: Tensor, e_step: Callable[[Tensor], Tensor]) -> Any:
    """EM over all codes by one kind of E step."""
    h_CP = module.design(module.every_code(2, 4), 4)
    for _ in range(ROUNDS):
        log_NC = module.log_table(model, x_ND)
        resp_NC = e_step(log_NC)
        mass_C1 = resp_NC.sum(0)[:, None]
        second_PP = h_CP.T @ (mass_C1 * h_CP)
        model = module.maximise(x_ND, resp_NC @ h_CP, second_PP, 2)
    return model


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Log densities of three ways from one start."""
    method = find("density.latent.gflownet_em")
    module, rng = method.module(), np.random.default_rng(seed)
    x, other = petals(rng, 500), petals(rng, 2000)
    scale = x.std()
    x_ND, other_ND = torch.from_numpy(x / scale), torch.from_numpy(other / scale)
    config = module.Config(rounds=ROUNDS, e_steps=50)
    start = module.first_model(x_ND, config, generator(seed, "start"))
    draws = generator(seed, "flow")
    flow, model = module.Flow(2, config, draws), start
    optimizer = torch.optim.Adam(flow.parameters(), lr=config.lr)
    for turn in range(ROUNDS):
        module.e_step(flow, optimizer, model, x_ND, config, draws, config.e_steps if turn else 500)
        model = module.m_step(flow, x_ND, config, draws)
    models = {"method": model, "baseline": fitted(module, start, x_ND, mean_field),
              "exact": fitted(module, start, x_ND, exactly)}
    found = {}
    for side, each in models.items():
        log_N = module.log_table(each, other_ND).logsumexp(1)
        found[side] = float(log_N.mean()) - 2 * float(np.log(scale))
    return found
