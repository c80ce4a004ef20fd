"""Weibull mixture: lifetimes, right-censored ones too, columns independent within each component.

**Equation:** p(x) = sum_k w_k prod_d (c / s) (x_d / s)^(c - 1) exp(-(x_d / s)^c), c = c_kd, s = s_kd; a lifetime known
to be longer than x_d has exp(-(x_d / s)^c) instead. M step: with d the weight of what is not censored, s^c = sum r x^c
/ d, and c maximises d log c + c sum r log x - d log(sum r x^c / d) (the sums with log x over what is not censored),
which is concave. A pass over the rows takes the sums for the old c and for two proposals; the best of the three is
kept, so that the likelihood never falls, and Newton's step from it and half that step are proposed next.

**Shapes:** X (N, D), above zero; `weights_` (K,), `shapes_` (K, D) are c, `scales_` (K, D) are s.

**Reference:** Buecar, Nagode, Fajdiga (2004), Reliability Approximation using Finite Weibull Mixture Distributions;
Kalbfleisch, Prentice (2002), The Statistical Analysis of Failure Time Data (censoring).

**Differs:** shapes are kept in [0.01, 1.28 / `min_spread`], about the shape of that coefficient of
variation.

**Fails when:** a column holds zeros (`ValueError`; `zeros="missing"` leaves them out); nothing in a component is
uncensored. There is no online EM: the sums hold for the old shapes alone.

**Cost:** O(N K D) a step, three powers a value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.density._gaussian import TINY
from mixwell.density.mixtures._columns import PositiveConfig, PositiveMixture
from mixwell.density.mixtures.em.columns import ColumnFamily
from mixwell.density.mixtures.em.exponential import share
from mixwell.density.mixtures.em.loop import Params
from mixwell.density.mixtures.em.processes import Alone
from mixwell.density.mixtures.em.rows import ArrayRows, Rows
from mixwell.density.mixtures.gamma import positive_groups

SMALLEST_SHAPE = 1e-2
LARGEST_EXPONENT = 80.0  # of powers in a sum: beyond it a row weighs nothing, and nothing times infinity is no number
SPREAD_OF_ONE = math.pi / math.sqrt(6)  # deviation of the logarithm times shape
TRIALS = ("shapes", "next", "halfway")  # shapes whose likelihoods a pass over the rows finds


class Weibull(ColumnFamily):
    """Negative values stand for censored lifetimes. Statistics are powers at the old shape and at two proposals."""

    min_spread = 1e-3

    def log_density(self, x: Tensor, params: Params) -> Tensor:
        shape, scale = params["shapes"], params["scales"]
        log_scale = scale.log()
        log_ratio = x.abs().log() - log_scale
        peak = shape.log() - log_scale
        hazard = peak + (shape - 1) * log_ratio
        survival = -(shape * log_ratio).exp()
        return torch.where(x > 0, survival + hazard, survival)

    def statistics(self, x: Tensor, params: Params | None) -> Sequence[Tensor]:
        log = x.abs().log()
        failed = (x > 0).double()
        if params is None:
            return failed, failed * log, failed * log**2
        log = log - params["scales"].log()  # so that powers stay near one
        found = [failed, failed * log]
        for name in TRIALS:
            exponent = params[name] * log
            power = exponent.clamp(max=LARGEST_EXPONENT).exp()
            found += [power, power * log, power * log**2]
        return found

    def estimate(self, seen_SKD: Tensor, sums_MSKD: Tensor, params: Params | None) -> Params:
        failed, failed_log, *powers = sums_MSKD
        if params is None:
            return self._start(failed, failed_log, powers[0])
        if "shapes" in self.fixed or "scales" in self.fixed:
            return self._beside_fixed(failed, failed_log, powers, params)
        sums = (powers[:3], powers[3:6], powers[6:])
        trials = [_trial(params[name], failed, failed_log, *own) for name, own in zip(TRIALS, sums)]
        best = _best(trials)
        proposals = self._proposals(best["shape"], best["step"])
        scale = params["scales"] * best["ratio"]
        return {"shapes": best["shape"], "scales": scale, **proposals}

    def _proposals(self, shape: Tensor, step: Tensor) -> Params:
        """Shapes to try in the next pass; a step at most halves or doubles."""
        whole = torch.maximum(torch.minimum(step, shape), -shape / 2)
        largest = SPREAD_OF_ONE / self.min_spread
        found = {"next": shape + whole, "halfway": shape + whole / 2}
        return {name: value.clamp(SMALLEST_SHAPE, largest) for name, value in found.items()}

    def _start(self, failed: Tensor, failed_log: Tensor, squares: Tensor) -> Params:
        """From mean and spread of the logarithms, which have those of a Gumbel distribution."""
        mean = share(failed_log, failed, 0.0)
        variance = share(squares, failed, 1.0) - mean**2
        least = self.min_spread**2
        spread = variance.clamp(min=least).sqrt()
        shape = SPREAD_OF_ONE / spread
        shape = shape.clamp(SMALLEST_SHAPE, SPREAD_OF_ONE / self.min_spread)
        scale = (mean + np.euler_gamma / shape).exp()
        return {"shapes": shape, "scales": scale, **_around(shape)}

    def _beside_fixed(self, failed: Tensor, failed_log: Tensor, powers: Sequence[Tensor], params: Params) -> Params:
        """The best scale for shapes that stay, or a step up for shapes beside scales that stay."""
        if "shapes" in self.fixed:
            found = _trial(params["shapes"], failed, failed_log, *powers[:3])
            stay = dict.fromkeys(TRIALS, params["shapes"])
            return {"scales": params["scales"] * found["ratio"], **stay}
        sums = (powers[:3], powers[3:6], powers[6:])
        trials = [_given_scale(params[name], failed, failed_log, *own) for name, own in zip(TRIALS, sums)]
        best = _best(trials)
        proposals = self._proposals(best["shape"], best["step"])
        return {"shapes": best["shape"], "scales": params["scales"], **proposals}


def _best(trials: Sequence[Params]) -> Params:
    """The trial of the highest value, the first of equals."""
    best = trials[0]
    for other in trials[1:]:
        better = other["value"] > best["value"]
        best = {part: torch.where(better, other[part], best[part]) for part in best}
    return best


def _around(shape: Tensor) -> Params:
    """Proposals where no step has been taken yet."""
    return {"next": 1.1 * shape, "halfway": 0.9 * shape}


def _trial(shape: Tensor, failed: Tensor, failed_log: Tensor, power: Tensor, power_log: Tensor,
           power_square: Tensor) -> Params:
    """A shape, the best scale beside it over the old one, the likelihood of both, and Newton's step of the shape."""
    events = failed.clamp(min=TINY)
    total = power.clamp(min=TINY)
    log_mean = (total / events).log()
    first = power_log / total
    second = power_square / total - first**2
    value = failed * (shape.log() - log_mean) + shape * failed_log
    slope = failed_log / events + 1 / shape - first
    curve = 1 / shape**2 + second.clamp(min=0)
    return {"shape": shape, "ratio": (log_mean / shape).exp(), "value": value, "step": slope / curve}


def _given_scale(shape: Tensor, failed: Tensor, failed_log: Tensor, power: Tensor, power_log: Tensor,
                 power_square: Tensor) -> Params:
    """The same beside a scale that stays."""
    value = failed * shape.log() + shape * failed_log - power
    slope = failed / shape + failed_log - power_log
    curve = failed / shape**2 + power_square
    return {"shape": shape, "value": value, "step": slope / curve.clamp(min=TINY)}


@method(title="Weibull mixture", year=2004, tags={"estimator", "mixture", "missing", "positive"})
class WeibullMixture(PositiveMixture, config=PositiveConfig):
    """Mixture of independent Weibull variables; NaN marks a missing one. Options in `PositiveConfig`."""

    _attributes: ClassVar[dict[str, str]] = {"shapes": "shapes_", "scales": "scales_"}
    _fixable = ("weights", "shapes", "scales")
    _family_class = Weibull
    _averages = False
    _censored: Any = None  # of the rows that a fit reads

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None, censored: Any = None) -> Any:
        """Estimate the parameters from X (N, D); returns self.

        censored: (N, D), or (N,) where there is one column: true where a lifetime is longer than what X holds. Raises
        as the other mixtures, and a `ValueError` where it has another shape or X is not in memory.
        """
        self._censored = None if censored is None else np.asarray(censored, bool)
        try:
            self._fit(X, sample_weight, Alone())
        finally:
            del self._censored
        return self

    def _read(self, X: Any, sample_weight: Any, reset: bool) -> tuple[Rows, Tensor | None]:
        rows, weights_N = super()._read(X, sample_weight, reset)
        if self._censored is None:
            return rows, weights_N
        shape = (rows.n_rows, rows.n_columns)
        found = self._censored.shape
        mask_ND = self._censored.reshape(-1, 1) if found == shape[:1] else self._censored
        if mask_ND.shape != shape or rows.streamed:
            raise ValueError(f"censored has shape {found}; expected {shape}, one for each lifetime of rows in memory.")
        x_ND = torch.cat([chunk for _, chunk in rows.chunks()])
        sign_ND = torch.where(torch.from_numpy(mask_ND), -1, 1).to(rows.device)
        return ArrayRows(x_ND * sign_ND, rows.names), weights_N

    def _start_points(self, x_ND: np.ndarray) -> np.ndarray:
        return super()._start_points(np.abs(x_ND))

    def _params(self, device: torch.device) -> Params:
        params = super()._params(device)
        return params | _around(params["shapes"])

    def _variates(self, rng: np.random.RandomState, **params_ND: np.ndarray) -> np.ndarray:
        return params_ND["scales"] * rng.weibull(params_ND["shapes"])


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two groups of positive rows."""
    x_ND = positive_groups(generator)
    return {"estimator": WeibullMixture(2, random_state=0), "X": x_ND.numpy()}
