import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.metrics import adjusted_rand_score

from mixwell.density.processes._curves import JITTER, climb, expected_log_normal
from mixwell.density.processes.cluster_specific import ClusterProcesses, example

RNG = np.random.default_rng(0)


def curves(count=12, points=5, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    times = [np.sort(rng.uniform(0, 4, points)) for _ in labels]
    values = [(1 - 2 * k) * np.sin(t) + 3 * k + 0.1 * rng.normal() + 0.1 * rng.normal(size=points)
              for k, t in zip(labels, times)]
    return times, values, labels


TIMES, VALUES, LABELS = curves()


@pytest.fixture(scope="module")
def model():
    return ClusterProcesses(n_clusters=2, max_iter=5, kernel_steps=3, random_state=0).fit(TIMES, VALUES)


def kernel(a, b, log):
    return np.array([[np.exp(log[0] - 0.5 * ((s - t) / np.exp(log[1])) ** 2) for t in b] for s in a])


def psi(t, log):
    return kernel(t, t, log) + (np.exp(log[2]) + JITTER * np.exp(log[0])) * np.eye(len(t))


def test_mean_processes_are_the_posterior_of_a_dumb_linear_gaussian_model(model):
    """Condition the joint normal of mean process and all curves, each curve's covariance over its responsibility."""
    grid, new = model.grid_, np.array([-0.3, 1.7, 3.1])
    G, at_any_time = len(grid), model.mean_process(new)
    for k in range(2):
        log = model.mean_kernels_[k]
        prior = kernel(np.r_[grid, new], np.r_[grid, new], log)
        prior[:G, :G] += JITTER * np.exp(log[0]) * np.eye(G)
        use = [i for i in range(12) if model.resp_[i, k] > 1e-9]
        rows = np.concatenate([np.eye(G + 3)[np.searchsorted(grid, TIMES[i])] for i in use])
        noise = np.zeros((len(rows), len(rows)))
        for j, i in enumerate(use):
            noise[5 * j : 5 * j + 5, 5 * j : 5 * j + 5] = psi(TIMES[i], model.task_kernels_[i]) / model.resp_[i, k]
        gain = np.linalg.solve(rows @ prior @ rows.T + noise, rows @ prior).T
        y = np.concatenate([VALUES[i] for i in use])
        mean, covariance = model.centre_ + gain @ (y - model.centre_), prior - gain @ rows @ prior
        np.testing.assert_allclose(model.means_[k], mean[:G], atol=1e-4)
        np.testing.assert_allclose(model.covariances_[k], covariance[:G, :G], atol=1e-4)
        np.testing.assert_allclose(at_any_time[0][k], mean[G:], atol=1e-4)
        np.testing.assert_allclose(at_any_time[1][k], covariance[G:, G:], atol=1e-4)
        assert covariance[G, G] > 2 * covariance[G + 1, G + 1]  # before the first time less is known


def test_the_bound_never_falls_and_the_groups_are_found(model):
    assert len(model.lower_bounds_) > 2 and np.diff(model.lower_bounds_).min() > -1e-6
    assert adjusted_rand_score(LABELS, model.labels_) == 1
    np.testing.assert_allclose(model.resp_.sum(1), 1)


@pytest.mark.parametrize("shared_means", [False, True])
@pytest.mark.parametrize("shared_tasks", [False, True])
def test_every_hypothesis_on_the_kernels(shared_means, shared_tasks):
    found = ClusterProcesses(n_clusters=2, max_iter=2, kernel_steps=1, shared_means=shared_means,
                             shared_tasks=shared_tasks, random_state=0).fit(TIMES[:6], VALUES[:6])
    assert (np.ptp(found.mean_kernels_, axis=0).max() == 0) == shared_means
    assert (np.ptp(found.task_kernels_, axis=0).max() == 0) == shared_tasks
    assert np.diff(found.lower_bounds_).min() > -1e-6


def test_responsibilities_weigh_expected_densities_by_the_clusters_shares():
    near = [0.02 * y for y in VALUES[:5]]
    found = ClusterProcesses(n_clusters=2, max_iter=1, kernel_steps=0, random_state=0).fit(TIMES[:5], near)
    found.means_[:] = found.centre_ + 0.1 * (found.means_ - found.centre_)
    found.weights_ = np.array([0.999, 0.001])
    means, spreads = found.means_.copy(), found.covariances_.copy()
    log_joint = np.zeros((5, 2))
    for i in range(5):
        at = np.searchsorted(found.grid_, TIMES[i])
        cov = psi(TIMES[i], found.task_kernels_[i])
        for k in range(2):
            expected = multivariate_normal(means[k, at], cov).logpdf(near[i])
            expected -= 0.5 * np.trace(np.linalg.solve(cov, spreads[k][np.ix_(at, at)]))
            log_joint[i, k] = np.log(found.weights_[k]) + expected
    found._expect()
    joint = np.exp(log_joint - log_joint.max(1, keepdims=True))
    np.testing.assert_allclose(found.resp_, joint / joint.sum(1, keepdims=True), atol=1e-9)
    assert 1e-4 < found.resp_.max(1).min() < 0.9999  # the shares can be seen


def test_one_cluster_with_one_curve_is_gaussian_process_regression():
    t, y = TIMES[0], VALUES[0]
    found = ClusterProcesses(n_clusters=1, max_iter=1, kernel_steps=0).fit([t], [y])
    log_2, log_3, new = found.mean_kernels_[0], found.task_kernels_[0], np.array([0.7, 3.3])
    cov = kernel(t, t, log_2) + JITTER * np.exp(log_2[0]) * np.eye(5) + psi(t, log_3)
    mean = found.centre_ + kernel(new, t, log_2) @ np.linalg.solve(cov, y - found.centre_)
    np.testing.assert_allclose(found.mean_process(new)[0][0], mean, atol=1e-8)
    evidence = multivariate_normal(np.full(5, found.centre_), cov).logpdf(y)
    assert found.bound() == pytest.approx(evidence, abs=1e-6)  # one cluster: the bound is tight


def test_predictions_integrate_cluster_and_mean_process(model):
    seen, y, new = np.array([0.5, 2.0]), np.array([0.4, 0.9]), np.array([1.0, 3.0])
    means, deviations, weights = model.predict(seen, y, new)
    both = np.r_[seen, new]
    mu, cov = model.mean_process(both)
    log = model.task_kernels_.mean(0)
    cov = cov + psi(both, log)
    joint = np.array([multivariate_normal(m[:2], c[:2, :2]).pdf(y) for m, c in zip(mu, cov)]) * model.weights_
    np.testing.assert_allclose(weights, joint / joint.sum(), rtol=1e-6)
    for k in range(2):
        gain = cov[k, 2:, :2] @ np.linalg.inv(cov[k, :2, :2])
        np.testing.assert_allclose(means[k], mu[k, 2:] + gain @ (y - mu[k, :2]), rtol=1e-6)
        np.testing.assert_allclose(deviations[k] ** 2, np.diag(cov[k, 2:, 2:] - gain @ cov[k, :2, 2:]), rtol=1e-6)
    assert abs(weights @ means[:, 1] - np.sin(3.0)) < 0.3
    np.testing.assert_allclose(model.predict([], [], new)[2], model.weights_)


def test_expected_log_normal_has_the_gradient_of_its_definition():
    root = torch.from_numpy(RNG.normal(size=(3, 3))).requires_grad_()
    cov = root @ root.T + torch.eye(3, dtype=torch.float64)
    y, mean = torch.from_numpy(RNG.normal(size=(2, 3)))
    spread = torch.eye(3, dtype=torch.float64) * 0.3
    fast = expected_log_normal(y, mean, spread, cov)
    normal = torch.distributions.MultivariateNormal(mean, cov)
    slow = normal.log_prob(y) - 0.5 * torch.trace(torch.linalg.inv(cov) @ spread)
    torch.testing.assert_close(fast, slow)
    for one, two in zip(torch.autograd.grad(fast, root, retain_graph=True), torch.autograd.grad(slow, root)):
        torch.testing.assert_close(one, two)
    assert climb(lambda v: -(v**2).sum(), np.array([1.0, 2.0]), 20) == pytest.approx([0, 0], abs=1e-4)


def test_refuses():
    with pytest.raises(ValueError, match="curve 1 has 2 times and 3 values"):
        ClusterProcesses().fit([[0.0], [0.0, 1.0]], [[0.0], [0.0, 1.0, 2.0]])
    with pytest.raises(ValueError, match="curve 0 holds values that are not finite"):
        ClusterProcesses().fit([[0.0, 1.0]], [[0.0, np.nan]])
    with pytest.raises(ValueError, match="1 curves for 3 clusters"):
        ClusterProcesses().fit([[0.0]], [[1.0]])
    with pytest.raises(ValueError, match="2 arrays of times and 1 of values"):
        ClusterProcesses().fit([[0.0], [1.0]], [[1.0]])
    with pytest.raises(ValueError, match="curve 0 holds values that are not finite, or a time twice"):
        ClusterProcesses().fit([[1.0, 1.0]], [[0.0, 1.0]])
    for name, least in {"n_clusters": 1, "max_iter": 1, "kernel_steps": 0, "tol": 0}.items():
        with pytest.raises(ValueError, match=f"{name} is {least - 1}; expected at least {least}"):
            ClusterProcesses(**{name: least - 1}).fit(TIMES, VALUES)


def test_refuses_unequal_seen(model):
    with pytest.raises(ValueError, match="2 seen times and 1 seen values"):
        model.predict([0.0, 1.0], [1.0], [2.0])


def test_example_runs():
    given = example(torch.Generator().manual_seed(0))
    labels = given["estimator"].fit(given["times"], given["values"]).labels_
    assert adjusted_rand_score(np.arange(8) % 2, labels) == 1


def test_a_coarse_tolerance_ends_the_ascent_early():
    inputs = example(torch.Generator().manual_seed(0))
    model = inputs.pop("estimator")
    steps = [len(model.set_params(tol=tol).fit(**inputs).lower_bounds_) for tol in (1e-3, 1.0)]
    assert steps[1] < steps[0]
