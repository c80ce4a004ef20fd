"""How many times fewer training FLOPs a mixture needs than dense models for the same perplexity.

**Equation:** speed-up(t) = c(t) / t: t the mixture's FLOPs, c(t) those of the dense model with its perplexity, by
    linear interpolation of log perplexity over log FLOPs.
**Shapes:** two tables, of dense models and of mixtures, each with `flops` and the loss in nats (log perplexity).
**Reference:** Artetxe et al. 2022 (2112.10684).
**Differs:** dense losses are first made to fall with FLOPs by isotonic regression, so that the inverse is one number.
**Fails when:** the mixture is better than every dense model or worse: no factor is told there (NaN), for a factor by
    extrapolation says nothing.
**Cost:** O(N log N).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.scaling.runs import read


@dataclass(frozen=True, kw_only=True)
class Config:
    """Nothing to set."""


@method(title="Speed-up of mixtures over dense models", year=2022,
        paper="Efficient Large Scale Language Modeling with Mixtures of Experts")
def speed_up(dense: Any, mixtures: Any, config: Config | None = None, *, loss: str = "loss") -> np.ndarray:
    """The factor of each mixture, [M]; NaN where its loss lies outside the dense models'.

    Fewer than two dense models raise `MixwellError`.
    """
    line = read(dense, ("flops", loss))
    asked = read(mixtures, ("flops", loss))
    count = len(line[loss])
    if count < 2:
        raise MixwellError(f"{count} dense model came; a line needs two.")
    order = np.argsort(line["flops"])
    flops_N, losses_N = line["flops"][order], line[loss][order]
    log_flops_N = np.log(flops_N)
    falling_N = _falling(losses_N)
    log_same_M = np.interp(-asked[loss], -falling_N, log_flops_N, left=np.nan, right=np.nan)
    log_own_M = np.log(asked["flops"])
    return np.exp(log_same_M - log_own_M)


def _falling(losses_N: np.ndarray) -> np.ndarray:
    """The nearest losses (least squares) that never rise."""
    from sklearn.isotonic import isotonic_regression

    fitted_N: np.ndarray = isotonic_regression(losses_N, increasing=False)
    return fitted_N


def example(generator: np.random.Generator) -> dict[str, Any]:
    """Parallel lines: a factor of 3 throughout."""
    flops = np.geomspace(1e17, 1e21, 9)
    losses = 12 - 0.2 * np.log(flops)
    inside = flops[1:5]
    lower = losses[1:5] - 0.2 * np.log(3)
    return {
        "dense": {"flops": flops, "loss": losses},
        "mixtures": {"flops": inside, "loss": lower},
    }
