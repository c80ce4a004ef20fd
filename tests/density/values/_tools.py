"""Mixtures to test with, their densities by scipy, and grids to integrate on."""

import torch
from scipy.stats import multivariate_normal

from mixwell.density import GaussianMixtureDensity


def mixture(k=3, d=2, seed=0, spread=2.0):
    g = torch.Generator().manual_seed(seed)
    root = torch.randn(k, d, d, generator=g, dtype=torch.float64)
    weights = torch.rand(k, generator=g, dtype=torch.float64) + 0.2
    return GaussianMixtureDensity(weights / weights.sum(), spread * torch.randn(k, d, generator=g, dtype=torch.float64),
                                  root @ root.mT + 0.3 * torch.eye(d))


def density(p, x):
    return sum(float(w) * multivariate_normal(m.numpy(), c.numpy()).pdf(x)
               for w, m, c in zip(p.weights_K, p.means_KD, p.covariances_KDD))


def grid(n=161, width=14.0):
    axis = torch.linspace(-width, width, n, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis), (2 * width / (n - 1)) ** 2
