"""A transformer that maps a prior mixture and data to a posterior mixture is within 0.05 nats of the exact posterior.

Paper: Distribution Transformers: Fast Approximate Bayesian Inference With On-The-Fly Prior Adaptation.
Tried: theta on a line, priors of three Gaussians drawn anew for every problem (even Dirichlet weights, means of
standard deviation 2, scales 0.2 to 1.5), one to five points of noise 2; KL(exact || q) by quadrature on 500 unseen
priors, after about twenty seconds of training on one core, against 0.05 nats. Beside it: the same for the prior itself
and for the best single Gaussian; KL(exact || q) where the points come one by one and each posterior is the next prior,
and KL(batch || one by one); and milliseconds a posterior, one alone and in a batch of 500. Against it: a mean
divergence of 0.05 nats or more, or one no smaller than that of the conjugate posterior of one Gaussian with the prior's
moments.
"""

from __future__ import annotations

from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Comparison
from mixwell.core.registry import find
from mixwell.core.rng import generator

NOISE, POINTS, COMPONENTS, TESTS, NEAR = 2.0, 5, 3, 500, 0.05
STEPS, BATCH, LR = 1200, 256, 2e-3
SIZES = {"output": "free", "width": 32, "heads": 4, "layers": 2, "hidden_dim": 128, "embed_dim": 64}

CLAIM = Claim("Posteriors of unseen priors are within 0.05 nats of the exact ones after a short training.",
              "mean KL(exact || q), nats", baseline=NEAR, provided=(Comparison(baseline="one Gaussian prior"),))


def problems(count: int, draws: torch.Generator) -> Any:
    """Random priors, one theta of each, and up to five noisy looks at it."""
    module = find("density.networks.distribution_transformer").module()
    even_BK = torch.rand(count, COMPONENTS, generator=draws)
    raw_BK = -even_BK.clamp(min=1e-6).log()
    means_BKD = 2 * torch.randn(count, COMPONENTS, 1, generator=draws)
    scales_BKDD = 0.2 * 7.5 ** torch.rand(count, COMPONENTS, 1, 1, generator=draws)
    weights_BK = raw_BK / raw_BK.sum(-1, keepdim=True)
    prior = module.Mixture(weights_BK.log(), means_BKD, scales_BKDD)
    theta_BD = prior.sample(1, draws)[:, 0]
    noise_BNX = torch.randn(count, POINTS, 1, generator=draws)
    data_BNX = theta_BD[:, None] + NOISE * noise_BNX
    number_B1 = torch.randint(1, POINTS + 1, (count, 1), generator=draws)
    seen_BN = torch.arange(POINTS) < number_B1
    return module.Simulated(prior, theta_BD, data_BNX, seen_BN)


def conjugate(prior: Any, data_BNX: Tensor, mask_BN: Tensor) -> Any:
    """The exact posterior mixture on the line."""
    number_B1 = mask_BN.sum(-1, keepdim=True).to(data_BNX.dtype)
    seen_BN = data_BNX[..., 0] * mask_BN
    average_B1 = seen_BN.sum(-1, keepdim=True) / number_B1
    mean_BK, variance_BK = prior.means_BKD[..., 0], prior.cholesky_BKDD[..., 0, 0] ** 2
    spread_BK = variance_BK + NOISE**2 / number_B1
    gain_BK = variance_BK / spread_BK
    gap_BK = average_B1 - mean_BK
    evidence_BK = spread_BK.log() + gap_BK**2 / spread_BK
    log_BK = prior.log_weights_BK - 0.5 * evidence_BK
    after_BK = mean_BK + gain_BK * gap_BK
    scale_BK = ((1 - gain_BK) * variance_BK).sqrt()
    return on_the_line(prior, log_BK.log_softmax(-1), after_BK, scale_BK)


def on_the_line(like: Any, log_weights_BK: Tensor, means_BK: Tensor, scales_BK: Tensor) -> Any:
    """A mixture of the same kind from numbers."""
    means_BKD = means_BK[..., None]
    scales_BKDD = scales_BK[..., None, None]
    return type(like)(log_weights_BK, means_BKD, scales_BKDD)


def single(mixture: Any) -> Any:
    """The Gaussian with the moments of a mixture on the line, which is the nearest one in KL(mixture || Gaussian)."""
    weights_BK, means_BK = mixture.weights_BK, mixture.means_BKD[..., 0]
    mean_B1 = (weights_BK * means_BK).sum(1, keepdim=True)
    gap_BK = means_BK - mean_B1
    second_BK = gap_BK**2 + mixture.covariances_BKDD[..., 0, 0]
    square_B1 = (weights_BK * second_BK).sum(1, keepdim=True)
    return on_the_line(mixture, torch.zeros_like(mean_B1), mean_B1, square_B1.sqrt())


def divergence(p: Any, q: Any) -> float:
    """Mean KL(p || q) in nats, by quadrature over eight standard deviations around every component of p."""
    p, q = in_double(p), in_double(q)
    means_BK = p.means_BKD[..., 0]
    reach_BK = 8 * p.cholesky_BKDD[..., 0, 0]
    low_B1 = (means_BK - reach_BK).amin(-1, keepdim=True)
    high_B1 = (means_BK + reach_BK).amax(-1, keepdim=True)
    width_B1 = high_B1 - low_B1
    share_S = torch.linspace(0, 1, 2000, dtype=torch.float64)
    grid_BSD = (low_B1 + width_B1 * share_S)[..., None]
    log_p_BS, log_q_BS = p.log_prob(grid_BSD), q.log_prob(grid_BSD)
    gap_BS = log_p_BS - log_q_BS
    height_BS = log_p_BS.exp() * gap_BS
    cell_B = width_B1[:, 0] / 1999
    return float((height_BS.sum(-1) * cell_B).mean())


def in_double(mixture: Any) -> Any:
    """The mixture in float64."""
    return type(mixture)(*(value.double() for value in mixture))


def one_by_one(model: Any, given: Any) -> Any:
    """The posterior after single points, each posterior the next prior; points that are not there change nothing."""
    belief = given.prior
    for n in range(POINTS):
        point_B1X = given.data_BNX[:, n : n + 1]
        after = model(belief, point_B1X)
        belief = chosen(given.mask_BN[:, n], after, belief)
    return belief


def chosen(there_B: Tensor, after: Any, before: Any) -> Any:
    """The mixture after a point where there is one, the one before elsewhere."""
    parts = []
    for new, old in zip(after, before):
        ones = [1] * (new.ndim - 1)
        rows = there_B.view(-1, *ones)
        part = torch.where(rows, new, old)
        parts.append(part)
    return type(before)(*parts)


def seconds(model: Any, given: Any, count: int) -> float:
    """Median time of a pass over the first `count` problems."""
    parts = (value[:count] for value in given.prior)
    prior = type(given.prior)(*parts)
    data, mask = given.data_BNX[:count], given.mask_BN[:count]
    times = []
    for _ in range(9):
        began = perf_counter()
        model(prior, data, mask)
        times.append(perf_counter() - began)
    return sorted(times)[4]


def tried(given: Any, exact: Any, seed: int) -> dict[str, float]:
    """Train one network and measure it."""
    module = find("density.networks.distribution_transformer").module()
    draws, began = generator(seed, "free"), perf_counter()
    config = module.Config(**SIZES)
    model = module.DistributionTransformer(1, 1, config, draws)
    for _ in module.train(model, problems, steps=STEPS, batch=BATCH, lr=LR, generator=draws):
        pass
    trained = perf_counter() - began
    with torch.inference_mode():
        batch = model(given.prior, given.data_BNX, given.mask_BN)
        error = divergence(exact, batch)
        last = one_by_one(model, given)
        alone_s = seconds(model, given, 1)
        batch_s = seconds(model, given, TESTS) / TESTS
        return {"method": error, "one by one": divergence(exact, last),
                "KL(batch || one by one)": divergence(batch, last), "s of training": trained,
                "ms alone": 1e3 * alone_s, "ms in a batch": 1e3 * batch_s}


def without_training(given: Any, exact: Any) -> dict[str, float]:
    """What the prior and single Gaussians are away from the exact posterior."""
    from_one = conjugate(single(given.prior), given.data_BNX, given.mask_BN)
    return {"prior itself": divergence(exact, given.prior), "one Gaussian prior": divergence(exact, from_one),
            "best one Gaussian": divergence(exact, single(exact))}


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """KL from the exact posterior on unseen priors, of the network and of what needs no training."""
    given = problems(TESTS, generator(seed, "unseen"))
    exact = conjugate(given.prior, given.data_BNX, given.mask_BN)
    return without_training(given, exact) | tried(given, exact, seed)
