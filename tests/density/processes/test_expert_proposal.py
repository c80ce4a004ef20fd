import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest, multivariate_t, norm
from scipy.stats import t as student_t

from mixwell.density.processes.expert_proposal import (
    Config,
    Experts,
    NoisyWalk,
    em_step,
    example,
    first_experts,
    fit_experts,
    gate_step,
    particle_filter,
    regress,
    statistics,
)


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def made(dof=math.inf, seed=0):
    normal = torch.randn(40, generator=draws(seed), dtype=torch.float64)
    root = torch.eye(2, dtype=torch.float64).repeat(2, 1, 1)
    root[0, 1, 0] = 0.5
    return Experts(normal[:6].view(2, 3), normal[6:18].view(2, 3, 2), root, dof)


X, NEXT = torch.randn(2, 30, 2, generator=draws(9), dtype=torch.float64)
V = torch.rand(30, generator=draws(3), dtype=torch.float64)
V = V / V.sum()


def slow_joint(experts, x, new):
    """alpha_j rho_j of one pair, for both experts."""
    x = torch.cat([torch.ones(1), x])
    gate = torch.stack([(b @ x).exp() for b in experts.gate_JP])
    found = []
    for j in range(2):
        mean, cov = experts.slope_JPD[j].T @ x, experts.root_JDD[j] @ experts.root_JDD[j].T
        if math.isinf(experts.dof):
            rho = torch.distributions.MultivariateNormal(mean, cov).log_prob(new).exp()
        else:
            rho = torch.tensor(multivariate_t(mean.numpy(), cov.numpy(), df=experts.dof).pdf(new.numpy()))
        found.append(gate[j] / gate.sum() * rho)
    return torch.stack(found)


@pytest.mark.parametrize("dof", [math.inf, 4.0])
def test_density_and_statistics_agree_with_a_loop(dof):
    experts = made(dof)
    slow = torch.stack([slow_joint(experts, x, new) for x, new in zip(X, NEXT)])
    torch.testing.assert_close(experts.log_prob(X, NEXT), slow.sum(1).log())
    _, found = em_step(experts, X, NEXT, V, 1e-3)
    _, square = experts.parts(X, NEXT)
    for j in range(2):
        mass, xx, xy, yy = 0.0, torch.zeros(3, 3), torch.zeros(3, 2), torch.zeros(2, 2)
        for n in range(30):
            w = V[n] * slow[n, j] / slow[n].sum()
            u = w * (1 if math.isinf(dof) else (dof + 2) / (dof + square[n, j]))
            x = torch.cat([torch.ones(1), X[n]])
            mass, xx, xy, yy = mass + w, xx + u * x[:, None] * x, xy + u * x[:, None] * NEXT[n], \
                yy + u * NEXT[n][:, None] * NEXT[n]
        for one, two in zip((s[j] for s in found), (mass, xx, xy, yy)):
            torch.testing.assert_close(one, two.double())


@pytest.mark.parametrize("dof", [math.inf, 4.0])
def test_kl_falls_at_every_em_step(dof):
    x, new = torch.randn(2, 150, 2, generator=draws(4), dtype=torch.float64)
    new[::3] += 3
    v = torch.rand(150, generator=draws(5), dtype=torch.float64).mul(0.01).softmax(0)
    experts, heights = made(dof), []
    for _ in range(30):
        heights.append(float(v @ experts.log_prob(x, new)))
        experts, _ = em_step(experts, x, new, v, 1e-8)
    assert np.diff(heights).min() > -1e-7 and heights[-1] > heights[0] + 0.5


def test_regression_and_gates_agree_with_textbook_fits():
    resp = torch.ones(30, 1, dtype=torch.float64)
    slope, root = regress(statistics(X, NEXT, V, resp, resp), 1e-12)
    design, w = np.column_stack([np.ones(30), X]), V.numpy()
    exact = np.linalg.solve(design.T @ (w[:, None] * design), design.T @ (w[:, None] * NEXT.numpy()))
    np.testing.assert_allclose(slope[0], exact, atol=1e-8)
    rest = NEXT.numpy() - design @ exact
    np.testing.assert_allclose(root[0] @ root[0].T, rest.T @ (w[:, None] * rest), atol=1e-6)
    gate, resp = torch.zeros(2, 3, dtype=torch.float64), torch.softmax(3 * torch.stack([X[:, 0], -X[:, 1]], 1), 1)
    for _ in range(20):
        gate = gate_step(gate, X, V, resp, 1e-3)
    gate.requires_grad_()
    x = torch.cat([torch.ones(30, 1), X], 1)
    (V[:, None] * resp * (x @ gate.T).log_softmax(1)).sum().sub(5e-4 * (gate**2).sum()).backward()
    assert float(gate.grad.abs().max()) < 1e-9


def test_a_ridge_shrinks_slopes_by_the_mass_and_spreads_by_the_data():
    resp, ridge = torch.rand(30, 1, generator=draws(1), dtype=torch.float64), 0.3
    slope, root = regress(statistics(X, NEXT, V, resp, torch.ones_like(resp)), ridge)
    design, y, w = np.column_stack([np.ones(30), X]), NEXT.numpy(), (V * resp[:, 0]).numpy()
    exact = np.linalg.solve(design.T @ np.diag(w) @ design + ridge * w.sum() * np.eye(3), design.T @ np.diag(w) @ y)
    rest = y - design @ exact
    least = ridge * 1e-3 * np.mean([w @ y[:, 0] ** 2, w @ y[:, 1] ** 2])
    np.testing.assert_allclose(slope[0], exact, atol=1e-9)
    spread = (rest.T @ np.diag(w) @ rest + least * np.eye(2)) / w.sum()
    np.testing.assert_allclose(root[0] @ root[0].T, spread, atol=1e-8)


@pytest.mark.parametrize("dof", [math.inf, 1.0])
def test_successors_are_drawn_from_the_experts_own_law(dof):
    experts = Experts(torch.zeros(1, 2, dtype=torch.float64), torch.tensor([[[1.0], [2.0]]]).double(),
                      torch.full((1, 1, 1), 0.5, dtype=torch.float64), dof)
    found = experts.draw(torch.full((4000, 1), 3.0, dtype=torch.float64), draws(6))[:, 0]
    law = norm() if math.isinf(dof) else student_t(dof)
    shares = law.cdf((found.numpy() - 7) / 0.5)
    assert kstest(shares, "uniform").statistic < 0.03


def kalman(model, observations):
    mean, variance, total = 0.0, 1.0, 0.0
    means = []
    for y in observations.tolist():
        mean, variance = model.a * mean, model.a**2 * variance + model.s**2
        spread = variance + model.r**2
        total += -0.5 * math.log(2 * math.pi * spread) - 0.5 * (y - mean) ** 2 / spread
        mean, variance = mean + variance / spread * (y - mean), variance * model.r**2 / spread
        means.append(mean)
    return total, means


SERIES = torch.tensor([0.5, 3.0, 2.0, -1.0], dtype=torch.float64)


@pytest.mark.parametrize("options", [{"proposal": "bootstrap"}, {"density": "student"}, {"experts": 1},
                                     {"defence": 0.0}, {"decay": 0.0}])
def test_the_likelihood_is_unbiased_and_the_means_are_kalmans(options):
    model = NoisyWalk()
    total, means = kalman(model, SERIES)
    config = Config(**{"particles": 400, "fit_draws": 200, "iterations": 3, **options})
    runs = [particle_filter(model, SERIES, draws(seed), config) for seed in range(12)]
    ratio = torch.stack([(r.log_likelihood_T.sum() - total).exp() for r in runs])
    assert abs(float(ratio.mean()) - 1) < 4 * float(ratio.std()) / 12**0.5 + 0.01
    np.testing.assert_allclose(torch.stack([r.mean_TD for r in runs]).mean(0)[:, 0], means, atol=0.12)
    assert all(1 <= float(r.effective_T.min()) <= 400 for r in runs)


def test_two_modes_get_two_experts():
    """y = x^2 leaves the sign open: one Gaussian straddles the modes, two sit on them."""
    model, y = NoisyWalk(power=2, s=2.0), torch.tensor(4.0, dtype=torch.float64)
    x = torch.zeros(500, 1, dtype=torch.float64)
    w = torch.full((500,), 1 / 500, dtype=torch.float64)
    found = {}
    for count in (1, 2):
        config = Config(experts=count, iterations=8, particles=500, decay=0.3)
        experts = fit_experts(model, y, 0, x, w, config, draws(2))
        at = experts.draw(x, draws(5))
        log_v = model.log_next(x, at, 0) + model.log_likelihood(at, y, 0) - experts.log_prob(x, at)
        found[count] = float(1 / (log_v.softmax(0) ** 2).sum())
        if count == 2:
            np.testing.assert_allclose(experts.slope_JPD[:, 0, 0].sort().values, [-2, 2], atol=0.2)
    assert found[2] > 350 > 1.5 * found[1]


def test_one_expert_on_a_linear_gaussian_model_is_the_optimal_kernel():
    model, y = NoisyWalk(), torch.tensor(2.0, dtype=torch.float64)
    x = torch.randn(2000, 1, generator=draws(), dtype=torch.float64)
    config = Config(experts=1, iterations=10, fit_draws=4000)
    experts = fit_experts(model, y, 0, x, torch.full((2000,), 1 / 2000, dtype=torch.float64), config, draws(1))
    variance = 1 / (1 / model.s**2 + 1 / model.r**2)
    exact = [variance * 2.0 / model.r**2, variance * model.a / model.s**2]
    np.testing.assert_allclose(experts.slope_JPD[0, :, 0], exact, atol=0.03)
    assert float(experts.root_JDD[0, 0, 0]) == pytest.approx(variance**0.5, rel=0.05)


def test_same_generator_same_bits():
    one, two = (particle_filter(**example(draws(4))) for _ in range(2))
    assert torch.equal(one.x_ND, two.x_ND) and one.log_likelihood_T.shape == (3,)
    assert float(one.weights_N.sum()) == pytest.approx(1)


def test_refuses():
    with pytest.raises(ValueError, match="every particle has weight zero at step 1"):
        particle_filter(NoisyWalk(), torch.tensor([0.0, math.inf]), draws(), Config(particles=20, proposal="bootstrap"))
    for wrong in ({"proposal": "optimal"}, {"density": "cauchy"}, {"experts": 0}, {"defence": 1.0}):
        with pytest.raises(ValueError, match="expected"):
            Config(**wrong)
    model = NoisyWalk()
    object.__setattr__(model, "draw_first", lambda count, generator: torch.zeros(count))
    with pytest.raises(ValueError, match=r"draw_first gave \(1000,\); expected \(1000, D\)"):
        particle_filter(model, SERIES, draws())


def test_a_heavy_ridge_leaves_regressions_their_mean():
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(50, 2, generator=draws, dtype=torch.float64)
    weights = torch.full((50,), 0.02, dtype=torch.float64)
    light, heavy = (first_experts(x, 2 * x, weights, Config(experts=1, ridge=r), torch.Generator().manual_seed(1))
                    for r in (1e-6, 1e6))
    assert float(light.slope_JPD.max()) == pytest.approx(2, rel=1e-3)
    assert heavy.slope_JPD.abs().max() < 1e-3
