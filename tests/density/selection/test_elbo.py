"""ELBO selection: bounds by loops, integrals and known evidence; gradients that vanish; ranks and components found."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import digamma, gammaln, multigammaln
from scipy.stats import norm
from sklearn.base import BaseEstimator, clone
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import BayesianGaussianMixture
from torch.distributions import Gamma, MultivariateNormal, kl_divergence

from mixwell.density import ElboSelection
from mixwell.density.selection.elbo import Config, State, choose, example, fit_pca, mixture_elbo, update
from tests.density.selection._tools import three_groups

RNG = np.random.default_rng(0)
X = RNG.normal(size=(9, 3)) @ RNG.normal(size=(3, 3))
MIXTURE = BayesianGaussianMixture(weight_concentration_prior_type="dirichlet_distribution", reg_covar=0, tol=1e-10,
                                  max_iter=500, random_state=0)


def planted(rank, rows, columns=6, seed=0):
    rng = np.random.default_rng(seed)
    loadings = np.linalg.qr(rng.normal(size=(columns, rank)))[0] * 2.0
    return 3.0 + rng.normal(size=(rows, rank)) @ loadings.T + 0.7 * rng.normal(size=(rows, columns))


def slow_elbo(x, W, V, a, b, m, C, config):
    """The bound of all three factors, one entry of X after the other; torch so that it has gradients."""
    N, D = x.shape
    K = W.shape[1]
    if config.noise_variance is None:
        tau, log_tau = a / b, torch.digamma(a) - b.log()
        rest = kl_divergence(Gamma(a, b), Gamma(*(torch.tensor(v, dtype=torch.float64) for v in config.noise_prior)))
    else:
        tau = torch.tensor(1 / config.noise_variance, dtype=torch.float64)
        log_tau, rest = tau.log(), torch.zeros((), dtype=torch.float64)
    eye, zero = torch.eye(K, dtype=torch.float64), torch.zeros(K, dtype=torch.float64)
    fit, latent = 0.0, 0.0
    for n in range(N):
        for d in range(D):
            square = (x[n, d] - W[d] @ m[n]) ** 2 + W[d] @ C @ W[d] + m[n] @ V @ m[n] + (V * C).sum()
            fit = fit + 0.5 * (log_tau - math.log(2 * math.pi)) - 0.5 * tau * square
        latent = latent + kl_divergence(MultivariateNormal(m[n], C), MultivariateNormal(zero, eye))
    prior = MultivariateNormal(zero, eye * config.loading_scale**2)
    for d in range(D):
        rest = rest + kl_divergence(MultivariateNormal(W[d], V), prior)
    return config.alpha * (fit - latent) - rest


def factors(state, before, x, config):
    """All of q after an update from `before`, as tensors: W, V, a, b, m, C."""
    K, D = state.W_DK.shape[1], x.shape[1]
    C = np.linalg.inv(np.eye(K) + before.tau * (before.W_DK.T @ before.W_DK + D * before.V_KK))
    m = before.tau * x @ before.W_DK @ C
    a = config.noise_prior[0] + config.alpha * x.size / 2
    return [torch.tensor(v, dtype=torch.float64) for v in (state.W_DK, state.V_KK, a, a / state.tau, m, C)]


OPTIONS = [{}, {"alpha": 0.4}, {"noise_variance": 0.5}, {"loading_scale": 0.3, "noise_prior": (2.0, 3.0), "alpha": 0.7}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_bound_agrees_with_a_loop(options):
    config, x = Config(**options), X - X.mean(0)
    known = None if config.noise_variance is None else 1 / config.noise_variance
    before = State(RNG.normal(size=(3, 2)), np.diag([0.3, 0.1]), known or 0.8)
    for _ in range(3):
        after, elbo = update(before, x.T @ x, len(x), known, config)
        parts = factors(after, before, x, config)
        assert elbo == pytest.approx(float(slow_elbo(torch.tensor(x), *parts, config)), rel=1e-10)
        before = after


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_gradient_of_the_bound_vanishes_where_updates_end(options):
    config, x = Config(**options), X - X.mean(0)
    known = None if config.noise_variance is None else 1 / config.noise_variance
    state = State(RNG.normal(size=(3, 2)), np.eye(2), known or 1.0)
    for _ in range(1500):
        before, (state, _) = state, update(state, x.T @ x, len(x), known, config)
    parts = [p.requires_grad_() for p in factors(state, before, x, config)]
    slow_elbo(torch.tensor(x), *parts, config).backward()
    for part in parts:
        if part.grad is not None:  # a and b do not matter where the noise is known
            slope = part.grad + part.grad.T if part.shape == (2, 2) else part.grad
            assert float(slope.abs().max()) < 1e-5


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("alpha", [0.3, 1.0])
@pytest.mark.parametrize("rank", [0, 1, 3, 6])
def test_the_bound_never_falls(rank, alpha):
    history = fit_pca(planted(2, 40), rank, Config(alpha=alpha, tol=0, max_iter=60)).history
    assert np.diff(history).min(initial=0) > -1e-8 and (len(history) > 20 or rank == 0)


def test_rank_zero_is_the_exact_tempered_evidence():
    config = Config(alpha=0.6, noise_prior=(1.5, 2.5))
    x = X - X.mean(0)
    x /= np.sqrt((x**2).mean())  # in the units of the prior

    def likelihood(tau):
        return math.exp(0.6 * norm.logpdf(x, scale=tau**-0.5).sum() + 1.5 * math.log(2.5) + 0.5 * math.log(tau)
                        - 2.5 * tau - gammaln(1.5))

    assert fit_pca(x, 0, config).elbo == pytest.approx(math.log(quad(likelihood, 0, 30, epsabs=0)[0]), rel=1e-7)


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_the_bound_is_below_the_tempered_evidence(alpha):
    x = planted(1, 25, 1)
    config = Config(alpha=alpha, noise_variance=0.5, loading_scale=2.0)
    unit = x.std()

    def likelihood(w):
        return math.exp(alpha * norm.logpdf(x - x.mean(), scale=math.sqrt(w * w + 0.5)).sum()
                        + norm.logpdf(w, scale=2 * unit))

    evidence = math.log(2 * quad(likelihood, 0, 30, epsabs=0)[0])
    elbo = fit_pca(x, 1, config).elbo
    assert evidence - 3 < elbo < evidence


def test_units_and_rotations_change_nothing():
    x = planted(2, 60)
    turn = np.linalg.qr(RNG.normal(size=(6, 6)))[0]
    plain, scaled, turned = (ElboSelection(alpha=0.8).fit(v) for v in (x, 100 * x, x @ turn))
    for k, elbo in plain.elbos_.items():
        assert scaled.elbos_[k] == pytest.approx(elbo - 0.8 * x.size * math.log(100), rel=1e-9)
        assert turned.elbos_[k] == pytest.approx(elbo, rel=1e-9)
    np.testing.assert_allclose(scaled.score_samples(100 * x), plain.score_samples(x) - 6 * math.log(100), rtol=1e-8)


@pytest.mark.parametrize("options", [{}, {"alpha": 0.5}, {"noise_variance": 0.49}, {"log_prior": "geometric"}], ids=str)
def test_the_planted_rank_is_found_and_fits(options):
    x = planted(3, 150)
    model = ElboSelection(**options).fit(x)
    assert model.n_components_ == 3 and model.best_.loadings_DK.shape == (6, 3)
    assert model.best_.noise_variance == pytest.approx(0.49, rel=0.15)
    np.testing.assert_allclose(model.best_.covariance_DD, np.cov(x.T), atol=0.35)
    z = (x - x.mean(0)) @ np.linalg.inv(model.best_.covariance_DD)
    log = -0.5 * (z * (x - x.mean(0))).sum(1) - 0.5 * np.linalg.slogdet(2 * np.pi * model.best_.covariance_DD)[1]
    np.testing.assert_allclose(model.score_samples(x), log)
    assert model.score(x) == pytest.approx(log.mean())


def test_the_choice_is_the_largest_bound_and_prior():
    bounds, prior = [-10.0, -9.0, -9.5, -30.0], [0.0, -1.0, -0.2, 15.0]
    index, weights = choose(bounds, prior)
    total = [math.exp(b + p) for b, p in zip(bounds, prior)]
    assert index == 2 and weights == pytest.approx([t / sum(total) for t in total])
    assert choose(bounds)[0] == 1 and choose(bounds, [0, -math.inf, -math.inf, 0])[0] == 0
    assert choose([-5.0]) == (0, pytest.approx([1.0]))


def test_priors_of_the_models_move_the_choice():
    x = planted(2, 80)
    plain, halved = ElboSelection().fit(x), ElboSelection(log_prior="geometric").fit(x)
    best = max(plain.elbos_.values())
    share = np.array([math.exp(e - best) * 0.5**k for k, e in plain.elbos_.items()])
    np.testing.assert_allclose(halved.weights_, share / share.sum())
    given = ElboSelection(n_components=(1, 2, 4), log_prior=np.array([-math.inf, -math.inf, 0.0])).fit(x)
    assert plain.n_components_ == 2 and given.n_components_ == 4 and list(given.elbos_) == [1, 2, 4]


def test_one_component_has_the_exact_evidence():
    x = three_groups(20)
    N, D = x.shape
    prior, centred = np.cov(x.T), x - x.mean(0)
    evidence = (-0.5 * N * D * math.log(math.pi) + multigammaln((D + N) / 2, D) - multigammaln(D / 2, D)
                + D / 2 * np.linalg.slogdet(prior)[1] - (D + N) / 2 * np.linalg.slogdet(prior + centred.T @ centred)[1]
                + D / 2 * math.log(1 / (1 + N)))
    assert mixture_elbo(clone(MIXTURE).fit(x), N) == pytest.approx(evidence, rel=1e-10)


def test_two_components_agree_with_the_terms_of_the_book():
    x = three_groups(20)
    model = clone(MIXTURE).set_params(n_components=2).fit(x)
    (N, D), resp = x.shape, model.predict_proba(x)
    a0, a, beta, nu = 0.5, model.weight_concentration_, model.mean_precision_, model.degrees_of_freedom_
    total, log_pi = 0.0, digamma(a) - digamma(a.sum())
    inverse0 = np.cov(x.T)

    def log_wishart(inverse, dof):  # log B of the book
        return (0.5 * dof * np.linalg.slogdet(inverse)[1] - 0.5 * dof * D * math.log(2)
                - D * (D - 1) / 4 * math.log(math.pi) - sum(gammaln((dof - i) / 2) for i in range(D)))

    total += gammaln(2 * a0) - 2 * gammaln(a0) - gammaln(a.sum()) + gammaln(a).sum()
    for k in range(2):
        inverse = nu[k] * model.covariances_[k]
        W = np.linalg.inv(inverse)
        log_det = sum(digamma((nu[k] - i) / 2) for i in range(D)) + D * math.log(2) + np.linalg.slogdet(W)[1]
        shift = model.means_[k] - x.mean(0)
        total += (a0 - a[k]) * log_pi[k]
        total += 0.5 * (D * math.log(1 / beta[k]) + D - D / beta[k] - nu[k] * shift @ W @ shift)
        total += log_wishart(inverse0, D) - log_wishart(inverse, nu[k])
        total += 0.5 * (D - nu[k]) * log_det - 0.5 * nu[k] * np.trace(inverse0 @ W) + 0.5 * nu[k] * D
        for n in range(N):
            gap = x[n] - model.means_[k]
            log_p = 0.5 * (log_det - D / beta[k] - nu[k] * gap @ W @ gap - D * math.log(2 * math.pi))
            total += resp[n, k] * (log_pi[k] + log_p - math.log(max(resp[n, k], 1e-300)))
    assert mixture_elbo(model, N) == pytest.approx(total, rel=1e-7)


def test_the_number_of_components_is_found():
    model = ElboSelection(estimator=MIXTURE, n_components=(1, 2, 3, 4)).fit(three_groups(40))
    assert model.n_components_ == 3 == len(model.best_.weights_) and model.weights_.argmax() == 2
    assert len(ElboSelection(estimator=clone(MIXTURE).set_params(max_iter=50)).fit(three_groups(3)).elbos_) == 9


class Constant(BaseEstimator):
    """Anything with `n_components` and `elbo_`."""

    def __init__(self, n_components=1):
        self.n_components = n_components

    def fit(self, X, y=None):
        self.elbo_ = -((self.n_components - 4.2) ** 2)
        return self


def test_any_model_with_a_bound_may_be_chosen():
    assert ElboSelection(estimator=Constant(), n_components=(2, 4, 5)).fit(X).n_components_ == 4
    assert ElboSelection(estimator=Constant(), n_components=5).fit(X).elbos_ == {5: pytest.approx(-0.64)}


def test_same_bits_inputs_untouched_and_single_precision():
    x = planted(2, 40)
    copy = x.copy()
    first, second, single = (ElboSelection().fit(v) for v in (x, x, x.astype(np.float32)))
    assert first.elbos_ == second.elbos_ and np.array_equal(x, copy)
    np.testing.assert_allclose(list(single.elbos_.values()), list(first.elbos_.values()), rtol=1e-5)


def test_refusals():
    for options, words in (({"alpha": 0}, "alpha is 0"), ({"alpha": 1.5}, "alpha is 1.5"),
                           ({"loading_scale": 0}, "loading_scale 0"), ({"noise_prior": (1, 0)}, "noise_prior"),
                           ({"noise_variance": 0}, "noise_variance is 0"), ({"tol": -1}, "tol -1"),
                           ({"max_iter": 0}, "max_iter 0"), ({"log_prior": "flat"}, "log_prior is 'flat'; expected"),
                           ({"n_components": (7,)}, r"n_components is \[7\]; expected different numbers from 0 to 3"),
                           ({"n_components": (1, 1)}, "different numbers"), ({"n_components": ()}, "different"),
                           ({"estimator": MIXTURE, "alpha": 0.5}, "expected 1 with an estimator"),
                           ({"estimator": MIXTURE, "n_components": (0,)}, "expected different numbers from 1 to 9"),
                           ({"log_prior": (0.0,)}, "expected one or more, and as many of each"),
                           ({"n_components": (1,), "log_prior": (math.nan,)}, "expected finite numbers")):
        with pytest.raises(ValueError, match=words):
            ElboSelection(**options).fit(X)
    with pytest.raises(ValueError, match="expected 'full' and 'dirichlet_distribution'"):
        ElboSelection(estimator=BayesianGaussianMixture(), n_components=(1,)).fit(X)
    with pytest.raises(ValueError, match="PCA has no elbo_ after fit"):
        ElboSelection(estimator=PCA(), n_components=(1,)).fit(X)
    with pytest.warns(ConvergenceWarning, match="rank 1 did not converge in 1 updates"):
        fit_pca(X, 1, Config(max_iter=1))


def test_example():
    given = example(torch.Generator().manual_seed(0))
    assert given["estimator"].fit(given["X"]).n_components_ == 2
