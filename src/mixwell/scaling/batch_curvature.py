"""The largest stable learning rate by batch: small batches inflate the curvature that a step sees.

**Equation:** the Hessian of B examples is H + X, X symmetric noise of element variance s^2 / B in P dimensions. An
    outlier lambda of H is seen as lambda_B = lambda + P s^2 / (B lambda) where lambda > s sqrt(P / B), and is lost at
    the bulk's edge 2 s sqrt(P / B) below. Rate 2 / lambda_B: linear in B up to B* = P s^2 / lambda^2, level beyond.
    Adaptive steps: the square root of that ratio between batches, sqrt(B) where noise rules.
**Shapes:** batches and top eigenvalues [N] in; the outlier and the noise P s^2 out. `ritz`: a product H v in; values
    and weights [m] out.
**Reference:** Granziol et al. 2022 (2006.09092).
**Differs:** noise is fitted to measured top eigenvalues, by least squares in 1 / B. The rule for adaptive steps
    between the two regimes is ours; the paper gives the noisy one.
**Fails when:** all batches are above B* (no noise to see), or curvature is read once and training sharpens it.
**Cost:** `ritz`: m products and O(m^2 P) to keep its vectors orthogonal.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mixwell.core.errors import MixwellError
from mixwell.core.method import method


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which batches tell of the outlier; `ValueError` for a value out of range."""

    least_batch: float = 1  # smaller ones are left out: below B* they show the bulk's edge, at least 1

    def __post_init__(self) -> None:
        if self.least_batch < 1:
            raise ValueError(f"least_batch is {self.least_batch}; expected at least 1")


@dataclass(frozen=True)
class Curvature:
    """An outlier of the Hessian and the noise of one example's."""

    outlier: float  # lambda
    noise: float  # P s^2

    @property
    def critical_batch(self) -> float:
        """B*: the batch at which noise has the share of the outlier itself."""
        return self.noise / self.outlier**2

    def seen(self, batch: float) -> float:
        """lambda_B: the top eigenvalue of the Hessian of so many examples."""
        noise = self.noise / batch
        if noise >= self.outlier**2:
            return 2 * math.sqrt(noise)
        return self.outlier + noise / self.outlier

    def largest_rate(self, batch: float) -> float:
        """The rate from which on gradient descent on such batches diverges."""
        return 2 / self.seen(batch)

    def moved(self, rate: float, before: float, after: float, *, adaptive: bool = False) -> float:
        """A rate that was good at one batch, for another."""
        ratio = self.seen(before) / self.seen(after)
        if adaptive:
            ratio = math.sqrt(ratio)
        return rate * ratio


@method(title="Learning rates by the batch's spectrum", year=2022,
        paper="Learning Rates as a Function of Batch Size: A Random Matrix Theory Approach to Neural Network Training")
def batch_curvature(batches_N: np.ndarray, tops_N: np.ndarray, config: Config) -> Curvature:
    """Outlier and noise behind the top eigenvalues that batches show; what cannot tell both raises `MixwellError`."""
    batch_N = np.asarray(batches_N, dtype=np.float64)
    top_N = np.asarray(tops_N, dtype=np.float64)
    least = min(batch_N.min(), top_N.min())
    if not least > 0:
        raise MixwellError(f"a batch or a top eigenvalue is {least:g}; expected numbers above 0.")
    large_N = batch_N >= config.least_batch
    sizes = len(set(batch_N[large_N]))
    if sizes < 2:
        raise MixwellError(f"{sizes} sizes of batch count; measure the top eigenvalue at two sizes or more.")
    inverse_N = 1 / batch_N
    slope, outlier = np.polyfit(inverse_N[large_N], top_N[large_N], 1)
    if not outlier > 0:
        raise MixwellError(f"the fitted outlier is {outlier:g}; noise covers it: measure larger batches.")
    noise = max(0.0, slope * outlier)
    return Curvature(float(outlier), float(noise))


class Ritz(NamedTuple):
    """Eigenvalues as Lanczos sees them, and the share of the spectrum that each stands for: [m] each."""

    values: Tensor
    weights: Tensor


def ritz(product: Callable[[Tensor], Tensor], size: int, steps: int, generator: torch.Generator) -> Ritz:
    """Lanczos quadrature from one random probe; `product` gives H v [P] for v [P]. Stops early where H has no more."""
    if not 1 <= steps <= size:
        raise ValueError(f"steps is {steps} in {size} dimensions; expected 1 to as many")
    probe_P = torch.randn(size, generator=generator, dtype=torch.float64)
    basis = [probe_P / probe_P.norm()]
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    for _ in range(steps):
        last_P = basis[-1]
        image_P = product(last_P)
        diagonal.append(image_P @ last_P)
        rest_P = _orthogonal(image_P, basis)
        length = rest_P.norm()
        if length <= 1e-10 * image_P.norm():
            break
        beside.append(length)
        basis.append(rest_P / length)
    small_MM = torch.diag(torch.stack(diagonal))
    for place, length in enumerate(beside[: len(diagonal) - 1]):
        small_MM[place + 1, place] = length
    values_M, vectors_MM = torch.linalg.eigh(small_MM)  # reads the lower half
    return Ritz(values_M, vectors_MM[0] ** 2)


def _orthogonal(vector_P: Tensor, basis: list[Tensor]) -> Tensor:
    """What a vector has beside the basis; taken twice, since once leaves rounding behind."""
    basis_PM = torch.stack(basis, 1)
    for _ in range(2):
        inside_M = basis_PM.T @ vector_P
        vector_P = vector_P - basis_PM @ inside_M
    return vector_P


def rate_and_momentum(largest: float, smallest: float) -> tuple[float, float]:
    """Heavy ball's best rate and momentum for curvature between two values above 0."""
    if not 0 < smallest <= largest:
        raise ValueError(f"curvature from {smallest} to {largest}; expected above 0, the smallest first")
    high = math.sqrt(largest)
    low = math.sqrt(smallest)
    both = high + low
    root = (high - low) / both
    return (2 / both) ** 2, root**2


def example(generator: np.random.Generator) -> dict[str, Any]:
    """Top eigenvalues by the law, with a little scatter."""
    law = Curvature(2.0, 100.0)
    batches_N = np.array([32, 64, 128, 256, 512])
    exact_N = np.array([law.seen(batch) for batch in batches_N])
    scatter_N = generator.normal(1, 0.01, 5)
    tops_N = exact_N * scatter_N
    return {"batches_N": batches_N, "tops_N": tops_N, "config": Config()}
