"""Serving in mind: for a loss a percent above the least, a mixture of fewer experts or fewer parameters serves cheaper.

Paper: Toward Inference-optimal Mixture-of-Expert Large Language Models.
Tried: the published joint law of dense models and mixtures as the loss (this paper's own coefficients could not be
checked), training FLOPs and a device's memory and speed drawn at each seed; of all sizes and 1 to 64 experts, the model
of least loss, and the cheapest to serve among those within 1 % of it, trained for the same FLOPs. Cost is that of our
roofline. Against it: a saving below 10 %.
"""

from __future__ import annotations

import numpy as np

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.scaling.laws._planted import law_of
from mixwell.scaling.laws.inference_optimal import Device, serving

CLAIM = Claim("A percent of loss buys cheap serving.", "device-microseconds a token", at_least=0.1, relative=True)
WORSE = 1.01
EXPERTS = 2.0 ** np.arange(7)
SIZES = np.geomspace(5e7, 3e10, 60)


def device(rng: np.random.Generator) -> Device:
    """Between small and large ones of today."""
    memory = rng.uniform(24e9, 192e9)
    speed = rng.uniform(1e12, 5e12)
    cache = rng.uniform(2e8, 2e9)
    return Device(memory_bytes=memory, bytes_per_second=speed, flops=150 * speed, cache_bytes=cache)


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Cost of a token of both models."""
    rng = np.random.default_rng([seed, 13])
    flops = np.exp(rng.uniform(np.log(1e20), np.log(1e22)))
    law = law_of("joint_moe")
    n, e = (axis.ravel() for axis in np.meshgrid(SIZES, EXPERTS))
    tokens = flops / (6 * n)
    runs = {"n": n, "d": tokens, "e": e}
    curve = law.curve(law.published)
    loss_N = curve.predict(runs)
    total_N = law.total_parameters(runs)
    cost_N = costs(total_N, n, device(rng))
    most = WORSE * loss_N.min()
    least = loss_N.argmin()
    cheapest = cost_N[loss_N <= most].min()
    return {"method": float(cheapest), "baseline": float(cost_N[least])}


def costs(total_N: np.ndarray, active_N: np.ndarray, served: Device) -> np.ndarray:
    """Device-microseconds of a token: [N]."""
    found = []
    for total, active in zip(total_N, active_N):
        seconds, _, _ = serving(total, active, served)
        found.append(1e6 * seconds)
    return np.array(found)
