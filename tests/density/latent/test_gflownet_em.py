"""The additive mixture against loops over all codes, its flow against the posterior, its M step against regressions."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from mixwell.density.latent.gflownet_em import (
    AdditiveMixture,
    Config,
    Flow,
    Model,
    design,
    dream,
    e_step,
    every_code,
    example,
    log_joint,
    log_table,
    m_step,
    maximise,
)


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


L, K = 2, 3
PI = torch.rand(L, K, generator=draws(), dtype=torch.float64).add(0.2)
PI /= PI.sum(1, keepdim=True)
COEF = 2 * torch.randn(1 + L * K, 2, generator=draws(1), dtype=torch.float64)
MODEL = Model(PI.log(), COEF, torch.tensor(0.8, dtype=torch.float64))
X = torch.randn(40, 2, generator=draws(2), dtype=torch.float64) * 2


def slow(x):
    """log p(x, z) of every code, one at a time."""
    found = []
    for z in itertools.product(range(K), repeat=L):
        mean = COEF[0] + sum(COEF[1 + factor * K + value] for factor, value in enumerate(z))
        log_prior = sum(math.log(PI[factor, value]) for factor, value in enumerate(z))
        found.append(log_prior + multivariate_normal.logpdf(x.numpy(), mean.numpy(), 0.8 * np.eye(2)))
    return found


def test_joint_probabilities_agree_with_a_loop():
    np.testing.assert_allclose(log_table(MODEL, X[:5]), [slow(x) for x in X[:5]])
    assert every_code(L, K).tolist() == [list(z) for z in itertools.product(range(K), repeat=L)]


def test_the_m_step_is_the_likeliest_model_of_the_codes():
    z = torch.randint(K, (40, L), generator=draws(3))
    h = design(z, K)
    model = maximise(X, h, h.T @ h, L)
    trusted, _, _, _ = np.linalg.lstsq(h.numpy(), X.numpy(), rcond=None)
    rest = X.numpy() - h.numpy() @ trusted
    np.testing.assert_allclose(h @ model.coef_PD, h.numpy() @ trusted, atol=1e-8)
    assert float(model.variance) == pytest.approx((rest**2).mean())
    np.testing.assert_allclose(model.log_pi_LK.exp()[1], np.bincount(z[:, 1], minlength=K) / 40, atol=1e-3)
    height = float(log_joint(model, X, z).sum())
    for moved in (model._replace(variance=model.variance * 1.02), model._replace(coef_PD=model.coef_PD + 0.02)):
        assert float(log_joint(moved, X, z).sum()) < height


def divergence(flow, model, x):
    """Mean KL of the flow from the posterior, and the largest error of log Z."""
    joint = log_table(model, x)
    log_q = torch.stack([flow.log_prob(x, code.expand(len(x), -1)) for code in every_code(L, K)], 1)
    assert float(log_q.logsumexp(1).abs().max()) < 1e-5
    error = flow.log_total(x.float())[:, 0] - joint.logsumexp(1)
    return float((log_q.exp() * (log_q - joint.log_softmax(1))).sum(1).mean()), float(error.abs().mean())


@pytest.mark.parametrize("sleep", [0.0, 0.5])
def test_the_flow_becomes_the_posterior_and_its_total_the_likelihood(sleep):
    """Factors explain each other away here: the best product of two marginals stays far."""
    config = Config(n_factors=L, n_values=K, sleep=sleep, explore=0.2, lr=2e-2, batch=48)
    flow = Flow(2, config, draws(4))
    optimizer = torch.optim.Adam(flow.parameters(), lr=config.lr)
    with torch.no_grad():
        before, _ = divergence(flow, MODEL, X)
    e_step(flow, optimizer, MODEL, X, config, draws(5), 250)
    for group in optimizer.param_groups:
        group["lr"] = 2e-3
    balance = e_step(flow, optimizer, MODEL, X, config, draws(5), 80)
    with torch.no_grad():
        after, error = divergence(flow, MODEL, X)
    post = log_table(MODEL, X).softmax(1).view(-1, K, K)
    product = post.sum(2)[:, :, None] * post.sum(1)[:, None]
    apart = (post * (post.log() - product.log())).sum((1, 2)).mean()
    assert after < 0.05 < before and after < 0.6 * float(apart) and error < 0.6 and balance < 3


def test_draws_follow_the_flow():
    flow = Flow(2, Config(n_factors=L, n_values=K), draws(4))
    same = X[:1].repeat(20_000, 1)
    for explore in (0.0, 1.0):
        z = flow.draw(same, draws(1), explore)
        share = np.bincount((z[:, 0] * K + z[:, 1]).numpy(), minlength=K * K) / 20_000
        with torch.no_grad():
            expected = [float(flow.log_prob(X[:1], c[None]).exp()) for c in every_code(L, K)] if not explore else 1 / 9
        np.testing.assert_allclose(share, expected, atol=0.015)
    dreamt, z = dream(MODEL, 20_000, draws(2))
    np.testing.assert_allclose(np.bincount(z[:, 0], minlength=K) / 20_000, PI[0], atol=0.015)
    gap = dreamt - design(z, K) @ COEF
    assert float(gap.var()) == pytest.approx(0.8, rel=0.03)


def squares(rows=240):
    """Sums of one of three places across and one of three places up."""
    rng = np.random.default_rng(0)
    side, height = rng.integers(3, size=(2, rows))
    return np.column_stack([side, height]) * 2.0 + 0.2 * rng.normal(size=(rows, 2)), side, height


def test_fits_sums_and_likelihoods_are_sums_over_codes():
    x, _, _ = squares()
    model = AdditiveMixture(n_values=3, rounds=10, e_steps=20, batch=64, lr=2e-2, draws=2, random_state=0).fit(x)
    means = model.level_ + model.means_[0][:, None] + model.means_[1][None]
    weights = model.weights_[0][:, None] * model.weights_[1][None]
    slow = np.log(sum(weights[a, b] * multivariate_normal.pdf(x, means[a, b], model.variance_ * np.eye(2))
                      for a in range(3) for b in range(3)))
    np.testing.assert_allclose(model.score_samples(x), slow, rtol=1e-6)
    single = multivariate_normal.logpdf(x, x.mean(0), np.cov(x.T)).mean()
    assert model.score(x) > single + 0.15
    estimated = model._estimated(model._rows(x[:20]), 100).numpy() - 2 * float(model._scale.log())
    np.testing.assert_allclose(estimated, slow[:20], atol=0.2)
    codes = model.sample_codes(x[:5])
    assert codes.shape == (5, 2) and set(model.predict(x).ravel()) <= {0, 1, 2}
    assert model.balances_[-1] < 5 and model.waited_ == 0 and len(model.balances_) == 10


def test_the_m_step_waits_for_the_balance():
    x, _, _ = squares(60)
    options = {"n_values": 3, "rounds": 2, "e_steps": 2, "hidden": 4, "random_state": 0}
    waiting = AdditiveMixture(threshold=1e-9, floor=-5.0, **options).fit(x)
    assert waiting.waited_ == 2 and waiting.variance_ == pytest.approx(x.var(ddof=1), rel=0.1)
    flow = Flow(2, Config(n_values=3), draws())
    one = m_step(flow, torch.from_numpy(x), Config(n_values=3, draws=1), draws())
    assert one.coef_PD.shape == (7, 2)


def test_refuses():
    for wrong in ({"n_factors": 0}, {"lr": 0.0}, {"sleep": 2.0}, {"explore": -1.0}, {"floor": 0.0}, {"draws": 0},
                  {"threshold": 0.0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} is .*; expected"):
            AdditiveMixture(**wrong).fit(X.numpy())


def test_example_runs():
    made = example(draws())
    assert math.isfinite(made["estimator"].fit(made["X"]).score(made["X"]))
