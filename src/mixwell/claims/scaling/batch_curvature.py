"""Learning rates by the batch: outlier and noise that small batches show foretell what larger ones bear.

Paper: Learning Rates as a Function of Batch Size: A Random Matrix Theory Approach to Neural Network Training.
Tried: least squares on 4,096 rows of 64 inputs, one direction of which is twice as strong; the largest eigenvalue of
the Hessian of batches of 32, 48 and 64 rows, mean over sixteen each. From these the largest stable rate of batches of
256 and 1,024, in logarithm, against the rate of the batch of 64 left as it is. Beside: that rate moved in proportion to
the batch, and by its square root. Against it: an error that is not half as large.
"""

from __future__ import annotations

import math
from statistics import fmean

import numpy as np
import torch
from torch import Tensor

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.core.rng import generator
from mixwell.scaling.batch_curvature import Config, batch_curvature

ROWS, SIZE, STRONG, REPEATS = 4096, 64, 2.0, 16
SMALL, LARGE = (32, 48, 64), (256, 1024)


def top(x_NI: Tensor, batch: int, draws: torch.Generator) -> float:
    """The Hessian's largest eigenvalue, mean over batches."""
    found = []
    for _ in range(REPEATS):
        order = torch.randperm(ROWS, generator=draws)
        rows = x_NI[order[:batch]]
        hessian = rows.T @ rows / batch
        values = torch.linalg.eigvalsh(hessian)
        found.append(float(values[-1]))
    return fmean(found)


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Mean errors of the logarithm of the largest stable rate at the large batches."""
    draws = generator(seed, "curvature")
    x_NI = torch.randn(ROWS, SIZE, generator=draws, dtype=torch.float64)
    x_NI[:, 0] *= STRONG
    shown = [top(x_NI, batch, draws) for batch in SMALL]
    law = batch_curvature(np.array(SMALL), np.array(shown), Config())
    known, last = SMALL[-1], 2 / shown[-1]
    errors: dict[str, list[float]] = {"method": [], "baseline": [], "linear": [], "square root": []}
    for batch in LARGE:
        right = 2 / top(x_NI, batch, draws)
        times = batch / known
        told = (law.largest_rate(batch), last, last * times, last * math.sqrt(times))
        for name, rate in zip(errors, told):
            error = math.log(rate / right)
            errors[name].append(abs(error))
    return {name: fmean(each) for name, each in errors.items()}


CLAIM = Claim("The spectrum of small batches foretells the largest stable rate of large ones.",
              "error of the rate's logarithm at large batches", at_least=0.5, relative=True)
