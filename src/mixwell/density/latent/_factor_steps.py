"""Steps of deconvolution up its bound: rows' weights and sites, then sticks, means and spreads of the factors.

N rows, D columns, K factors, S = 2 K points that stand for q(log pi'), Q quadrature nodes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.optimize import minimize
from scipy.special import digamma, expit, gammaln

from mixwell.density._gaussian import Array, outer
from mixwell.density.latent._factors import (
    NODE_MASS_Q,
    NODES_Q,
    SMALLEST_SHAPE,
    Config,
    Factors,
    Rows,
    condition,
    log_at_nodes,
    log_prior_odds,
    row_bounds,
    shapes,
    theta_posterior,
    total_bound,
    weight_points,
)

STEPS = (1.0, 0.5, 0.25, 0.1, 0.02)  # shares of a step, tried in turn
FARTHEST = 3  # that a log weight moves in a step


def climb(rows: Rows, tries: list[Rows], factors: Factors, config: Config, gain: float) -> Rows:
    """Each row moves to the first of the tries that raises its bound by more than `gain` nats, or stays."""
    waiting = np.arange(len(rows.y_ND))
    found = rows.take(waiting)
    before_N = row_bounds(rows, factors, config)
    for tried in tries:
        after = row_bounds(tried.take(waiting), factors, config)
        better = after > before_N[waiting] + gain
        found.put(waiting[better], tried)
        waiting = waiting[~better]
        if not len(waiting):
            break
    return found


def row_step(rows: Rows, factors: Factors, config: Config) -> Rows:
    """New sites, then a step on q(log pi'_n) along its slope over Gauss and Newton's curvature; no bound falls."""
    if config.distribution != "normal":
        rows = site_step(rows, factors, config)
    slope_NK, curve_NKK = _weight_slope(rows, factors, config)
    move_NK = np.linalg.solve(curve_NKK, slope_NK[..., None])[..., 0]
    largest_N1 = np.abs(move_NK).max(1, keepdims=True)
    move_NK *= np.minimum(1, FARTHEST / np.maximum(largest_N1, 1e-9))
    places = [rows.log_mean_NK + share * move_NK for share in STEPS]
    tries = [replace(rows, log_mean_NK=place_NK) for place_NK in places]
    whole = replace(tries[0], precision_NKK=curve_NKK)
    return climb(rows, [whole, *tries], factors, config, 1e-6)


def _weight_slope(rows: Rows, factors: Factors, config: Config) -> tuple[Array, Array]:
    """Slope (N, K) and curvature (N, K, K) of rows' bounds in the mean of q(log pi'_n)."""
    K = len(factors.cov_KDD)
    pi_SNK, gammas_NK = weight_points(rows)
    u_SND, inverse_SNDD, _ = condition(pi_SNK, rows, factors)
    S, N, _ = u_SND.shape
    spread_SNP = (outer(u_SND, u_SND) - inverse_SNDD).reshape(S, N, -1)
    spread_SNK = spread_SNP @ factors.cov_KDD.reshape(K, -1).T
    by_spread_SNK = 0.5 * spread_SNK / rows.particles_N[:, None]
    by_weight_SNK = u_SND @ factors.mean_KD.T + by_spread_SNK
    mean_SN1 = (pi_SNK * by_weight_SNK).sum(-1, keepdims=True)
    slope_SNK = pi_SNK * (by_weight_SNK - mean_SN1)
    theta_SND = pi_SNK @ factors.mean_KD
    gap_SNKD = factors.mean_KD - theta_SND[:, :, None]
    jacobian_SNKD = pi_SNK[..., None] * gap_SNKD
    curve_SNKK = jacobian_SNKD @ inverse_SNDD @ jacobian_SNKD.swapaxes(-1, -2)
    curve_NKK = curve_SNKK.mean(0)
    curve_NKK += gammas_NK[:, :, None] * np.eye(K)
    slope_NK = slope_SNK.mean(0) + shapes(factors.odds_K, config) - gammas_NK
    return slope_NK, curve_NKK


def site_step(rows: Rows, factors: Factors, config: Config) -> Rows:
    """A step to the sites that the slope and the curvature of E_q log f ask for."""
    mean_SND, slope_ND, curve_ND = _likelihood_slope(rows, factors, config)
    curve_ND = np.maximum(curve_ND, 1e-3 / rows.site_var_ND)
    pull_ND = curve_ND * mean_SND.mean(0) + slope_ND
    tries = []
    for share in STEPS:
        kept_ND = (1 - share) / rows.site_var_ND
        precision_ND = kept_ND + share * curve_ND
        old_pull_ND = (1 - share) * rows.site_ND / rows.site_var_ND
        site_ND = (old_pull_ND + share * pull_ND) / precision_ND
        var_ND = 1 / precision_ND
        tried = replace(rows, site_ND=site_ND, site_var_ND=var_ND)
        tries.append(tried)
    return climb(rows, tries, factors, config, -1e-9)  # an admixture's bound does not depend on its sites


def _likelihood_slope(rows: Rows, factors: Factors, config: Config) -> tuple[Array, Array, Array]:
    """Means of theta (S, N, D), and slope and curvature (N, D) there of E_q log f."""
    pi_SNK, _ = weight_points(rows)
    u_SND, inverse_SNDD, _ = condition(pi_SNK, rows, factors)
    mean_SND, var_SND = theta_posterior(u_SND, inverse_SNDD, rows, factors)
    log_QSND = log_at_nodes(rows.y_ND, mean_SND, var_SND, config)
    log_QSND -= log_QSND.mean(0)
    first_Q = NODE_MASS_Q * NODES_Q
    second_Q = NODE_MASS_Q * (NODES_Q**2 - 1)
    first_SND = np.tensordot(first_Q, log_QSND, 1)
    second_SND = np.tensordot(second_Q, log_QSND, 1)
    slope_SND = first_SND / np.sqrt(var_SND)
    curve_SND = second_SND / var_SND
    return mean_SND, slope_SND.mean(0), -curve_SND.mean(0)


def best_odds(rows: Rows, factors: Factors, config: Config) -> Factors:
    """Sticks that maximise E log p(pi' | beta) + log p(beta)."""
    N = len(rows.y_ND)
    sums_K = rows.log_mean_NK.sum(0)

    def loss(odds_K: Array) -> tuple[float, Array]:
        shape_K = shapes(odds_K, config)
        likelihood = shape_K @ sums_K - N * gammaln(shape_K).sum()
        value = likelihood + log_prior_odds(odds_K, config).sum()
        slope_K = sums_K - N * digamma(shape_K)
        flow_K = (shape_K - SMALLEST_SHAPE) * slope_K
        later_K = flow_K.sum() - np.cumsum(flow_K)
        own_K = np.append(flow_K[:-1], 0.0)  # the last stick has nothing to break
        share_K = expit(odds_K)
        kept_K = 1 - share_K
        more_K = kept_K * (own_K + 1)
        less_K = share_K * (later_K + config.global_concentration)
        rise_K = more_K - less_K
        return -value, -rise_K

    bounds = [(-20, 20)] * len(sums_K)
    best = minimize(loss, factors.odds_K, jac=True, bounds=bounds)
    return replace(factors, odds_K=best.x)


def best_means(rows: Rows, factors: Factors, config: Config) -> Factors:
    """mu by generalised least squares, with x integrated out."""
    K, D = factors.mean_KD.shape
    pi_SNK, _ = weight_points(rows)
    S = len(pi_SNK)
    _, inverse_SNDD, _ = condition(pi_SNK, rows, factors)
    pairs_MP = outer(pi_SNK, pi_SNK).reshape(-1, K * K)
    inverse_MP = inverse_SNDD.reshape(-1, D * D)
    normal_PP = pairs_MP.T @ inverse_MP / S
    normal_KDKD = normal_PP.reshape(K, K, D, D).swapaxes(1, 2)
    prior = np.diag(np.tile(1 / factors.prior_var_D, K))
    normal = normal_KDKD.reshape(K * D, K * D) + prior
    right_KD = np.einsum("snk,snde,ne->kd", pi_SNK, inverse_SNDD, rows.site_ND) / S
    right_KD += factors.prior_mean_D / factors.prior_var_D
    mean = np.linalg.solve(normal, right_KD.ravel())
    return replace(factors, mean_KD=mean.reshape(K, D))


def best_spreads(rows: Rows, factors: Factors, config: Config) -> Factors:
    """Sigma, or eta without local factors, by maximising a minorant: Sigma_k B_k Sigma_k = C_k below."""
    K, D = factors.mean_KD.shape
    pi_SNK, _ = weight_points(rows)
    u_SND, inverse_SNDD, _ = condition(pi_SNK, rows, factors)
    if not config.local:
        return _best_noise(u_SND, inverse_SNDD, factors, config)
    # B_k = sum_n pi_nk V_n^-1 / P_n, C_k = Sigma_k (sum_n pi_nk u_n u_n^T / P_n) Sigma_k, both with the prior's part
    share_SNK = pi_SNK / rows.particles_N[:, None] / len(pi_SNK)
    share_KM = share_SNK.reshape(-1, K).T
    inverse_MP = inverse_SNDD.reshape(-1, D * D)
    outer_MP = outer(u_SND, u_SND).reshape(-1, D * D)
    weight_KDD = (share_KM @ inverse_MP).reshape(K, D, D)
    weight_KDD += (2 * D + 3) * np.linalg.inv(factors.cov_KDD)
    outer_KDD = (share_KM @ outer_MP).reshape(K, D, D)
    scatter_KDD = factors.cov_KDD @ outer_KDD @ factors.cov_KDD
    scatter_KDD = scatter_KDD + np.diag(factors.scatter_D)
    root_KDD = _root_between(weight_KDD, scatter_KDD)
    return replace(factors, cov_KDD=root_KDD @ root_KDD.swapaxes(1, 2))


def _best_noise(u_SND: Array, inverse_SNDD: Array, factors: Factors, config: Config) -> Factors:
    """eta of an admixture; zero where observations are not normal."""
    square_D = (u_SND**2).sum((0, 1))
    ratio_D = square_D / np.einsum("sndd->d", inverse_SNDD)
    floor_D = 1e-9 * factors.prior_var_D * (config.distribution == "normal")
    noise_D = factors.noise_D * np.sqrt(ratio_D)
    return replace(factors, noise_D=np.maximum(noise_D, floor_D))


def _root_between(weight_KDD: Array, scatter_KDD: Array) -> Array:
    """Roots (K, D, D) of the Sigma_k with Sigma_k B_k Sigma_k = C_k."""
    half_KDD = np.linalg.cholesky(weight_KDD)
    upper_KDD = half_KDD.swapaxes(1, 2)
    inner_KDD = upper_KDD @ scatter_KDD @ half_KDD
    values_KD, vectors_KDD = np.linalg.eigh(inner_KDD)
    fourth_KD = np.maximum(values_KD, 1e-300) ** 0.25
    scaled_KDD = vectors_KDD * fourth_KD[:, None]
    return np.linalg.solve(upper_KDD, scaled_KDD)


def sweep(rows: Rows, factors: Factors, config: Config) -> tuple[tuple[Rows, Factors], float]:
    """One round over everything: the new state and its bound, which never falls."""
    for _ in range(2):
        rows = row_step(rows, factors, config)
    factors = best_odds(rows, factors, config)
    bound = total_bound(rows, factors, config)
    for update in (best_means, best_spreads):
        goal = update(rows, factors, config)
        factors, bound = _towards(goal, rows, factors, bound, config)
    return (rows, factors), bound


def _towards(goal: Factors, rows: Rows, factors: Factors, bound: float, config: Config) -> tuple[Factors, float]:
    """The longest step to the goal that raises the bound, or none; and the bound there."""
    old, new = vars(factors).values(), vars(goal).values()
    for share in STEPS:
        moved = [(1 - share) * a + share * b for a, b in zip(old, new)]
        tried = Factors(*moved)
        value = total_bound(rows, tried, config)
        if value > bound:
            return tried, value
    return factors, bound
