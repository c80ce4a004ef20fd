"""Smoothing by composed optics: brackets change neither likelihood nor posteriors, the order of parts does.

Paper: Compositionality in algorithms for smoothing. Tried: ten random chains of six kernels on four states, a random h
at the end; the largest difference of log-likelihood and posteriors between any of the 42 ways of putting brackets and a
forward-backward pass. Condition: the same kernels in turned order differ by a hundredth or more, so that the measure
sees what it should. Against it: a difference above 1e-10. There is nothing to race: every way takes the same time.
"""

from __future__ import annotations

import numpy as np
import torch

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Comparison
from mixwell.core.rng import generator
from mixwell.density.graphs.optics import Optic, Smoothed, Step, brackets, smooth_by_optics

STATES, STEPS, CHAINS = 4, 6, 10

TURNED = Comparison(method="turned", baseline=0.01, lower_is_better=False)
CLAIM = Claim("Optics of kernels compose to the smoother of their chain, whatever the brackets.",
              "largest difference from forward-backward", baseline=1e-10, provided=(TURNED,))


def oracle(tables: list[np.ndarray], start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Log-likelihood, and posteriors after every step, in one row."""
    forward, backward = [start], [end]
    for table in tables:
        forward.append(forward[-1] @ table)
    for table in reversed(tables):
        backward.append(table @ backward[-1])
    joint = np.array(forward) * np.array(backward[::-1])
    likelihood = joint[0].sum()
    posterior = joint[1:] / likelihood
    return np.append(np.log(likelihood), posterior)


def numbers(found: Smoothed) -> np.ndarray:
    """The same of a composed smoother."""
    measures = torch.stack(found.measures).numpy()
    return np.append(float(found.log_likelihood), measures)


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """The largest difference of any way and chain, and the mean one of turned chains."""
    draws = generator(seed, "optics")
    apart, turned = [], []
    for _ in range(CHAINS):
        drawn = torch.randn(STEPS, STATES, STATES, generator=draws, dtype=torch.float64)
        tables = drawn.softmax(2)
        ends = torch.rand(2, STATES, generator=draws, dtype=torch.float64)
        start, end = ends[0] / ends[0].sum(), ends[1]
        wanted = oracle(list(tables.numpy()), start.numpy(), end.numpy())
        parts: list[Optic] = [Step(table) for table in tables]
        for way in brackets(parts):
            found = numbers(smooth_by_optics(way, start, end.log()))
            apart.append(np.abs(found - wanted).max())
        other = brackets(parts[::-1])[0]
        found = numbers(smooth_by_optics(other, start, end.log()))
        turned.append(np.abs(found - wanted).max())
    return {"method": float(np.max(apart)), "turned": float(np.mean(turned))}
