"""Factors that may shift in every row: global factors are estimated better than by an admixture without local factors.

Paper: Nonparametric Deconvolution Models.
Tried: 200 precincts of about 100 voters in four cohorts, ten features, two of the paper's simulations: cohorts shift as
a whole in every precinct (its procedure 1), or voters are drawn one by one (its procedure 2). Covariances are inverse
Wishart draws that shift a cohort by some 0.05 in features between 0.1 and 0.9. Root mean square error of the matched
global means, averaged over both simulations, after 40 iterations; the baseline is the same model without local factors
and with fitted noise. `nmf` is scikit-learn's with every component scaled to fit its cohort best; `local` errors are of
the precincts' own cohort means, weighted by the cohort's share. Against it: an error that is no smaller.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.stats import invwishart

from mixwell.claims._series import mean
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.density._data import matched_rms
from mixwell.density.latent.deconvolution import DeconvolutionModel

N, K, D, SHIFT = 200, 4, 10, 0.05
Array = np.ndarray
SIMULATIONS = {"shifted cohorts": True, "single voters": False}  # whether cohorts shift as a whole

CLAIM = Claim("Local factors improve the estimates of global factors.", "RMSE of global means")


class Election(NamedTuple):
    """What is seen of the precincts, and what it was made of."""

    y_ND: Array
    voters_N: Array
    share_NK: Array  # of the cohorts
    local_NKD: Array  # means of the cohorts here
    mean_KD: Array  # and everywhere


def election(seed: int, own_shifts: bool) -> Election:
    """One simulation; cohorts shift as a whole, or voters are drawn one by one."""
    rng = np.random.default_rng(seed)
    mean_KD = rng.uniform(0.1, 0.9, (K, D))
    covariance_KDD = invwishart.rvs(D + 2, SHIFT**2 * np.eye(D), size=K, random_state=rng)
    roots_KDD = np.linalg.cholesky(covariance_KDD)
    voters_N = rng.poisson(100, N)
    weights_NK = rng.dirichlet(np.ones(K), N)
    count_NK = np.stack([rng.multinomial(p, w) for p, w in zip(voters_N, weights_NK)])
    shift_NKD = np.einsum("kde,nke->nkd", roots_KDD, rng.standard_normal((N, K, D)))
    if not own_shifts:  # voters vary ten times as much as cohorts of a hundred
        smaller_NK = 10 / np.sqrt(np.maximum(count_NK, 1))
        shift_NKD *= smaller_NK[:, :, None]
    local_NKD = mean_KD + shift_NKD
    share_NK = count_NK / voters_N[:, None]
    noise_ND = 0.005 * rng.standard_normal((N, D))
    y_ND = np.einsum("nk,nkd->nd", share_NK, local_NKD) + noise_ND
    return Election(y_ND, voters_N, share_NK, local_NKD, mean_KD)


def rmse(found_KD: Array, wanted_KD: Array) -> tuple[float, Array]:
    """Error under the best order, and that order."""
    gap_KKD = found_KD[:, None] - wanted_KD
    square_KK = (gap_KKD**2).mean(-1)
    order = linear_sum_assignment(square_KK.T)[1]
    matched = square_KK[order, np.arange(K)]
    return float(np.sqrt(matched.mean())), order


def nmf_error(y_ND: Array, wanted_KD: Array, seed: int) -> float:
    """The same of NMF, each component scaled to its cohort."""
    from sklearn.decomposition import NMF

    model = NMF(K, max_iter=1000, random_state=seed).fit(np.maximum(y_ND, 0))
    H_KD = model.components_
    square_K1 = (H_KD**2).sum(1, keepdims=True)
    length_K1 = np.maximum(square_K1, 1e-12)
    scale_KK = H_KD @ wanted_KD.T / length_K1
    gap_KKD = scale_KK[:, :, None] * H_KD[:, None] - wanted_KD
    return matched_rms((gap_KKD**2).mean(-1))


def fitted_errors(given: Election, seed: int, local: bool) -> tuple[float, float]:
    """Errors of global and of local means, with or without local factors."""
    options: dict[str, Any] = {"n_factors": K, "local_concentration": float(K), "max_iter": 40, "tol": 0.0}
    model = DeconvolutionModel(local=local, random_state=seed, **options)
    model.fit(given.y_ND, n_particles=given.voters_N)
    error, order = rmse(model.factor_means_, given.mean_KD)
    gap_NKD = model.local_factors_[:, order] - given.local_NKD
    square_NK = given.share_NK * (gap_NKD**2).mean(-1)
    of_precinct_N = square_NK.sum(1)
    return error, float(np.sqrt(of_precinct_N.mean()))


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Errors of global and local means with and without local factors, and of NMF."""
    found = {}
    for name, own_shifts in SIMULATIONS.items():
        given = election(seed, own_shifts)
        for method, local in (("method", True), ("baseline", False)):
            error, local_error = fitted_errors(given, seed, local)
            found[f"{method}, {name}"] = error
            found[f"{method} local, {name}"] = local_error
        found[f"nmf, {name}"] = nmf_error(given.y_ND, given.mean_KD, seed)
    for method in ("method", "baseline"):
        found[method] = mean(found[f"{method}, {name}"] for name in SIMULATIONS)
    return found
