"""Coding rates and Sinkhorn's scaling against loops, what the objective prefers, and curves told apart."""

import functools
import math

import numpy as np
import pytest
import torch

from mixwell.density.clustering.manifold import (
    Config,
    Features,
    Losses,
    ManifoldClustering,
    coding_rate,
    doubly_stochastic,
    membership,
    rates,
)


def unit(n, d, seed=0):
    z = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return z / z.norm(dim=1, keepdim=True)


def test_rates_agree_with_a_loop():
    z, eps = unit(6, 3), 0.4
    pi = torch.rand(6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pi = pi / pi.sum(1, keepdim=True)
    within = 0.0
    for j in range(6):
        moment = sum(float(pi[j, i]) * np.outer(z[i], z[i]) for i in range(6))
        within += np.linalg.slogdet(np.eye(3) + 3 / eps**2 * moment)[1] / 2 / 6
    whole, found = rates(z, pi, eps)
    assert float(found) == pytest.approx(within, abs=1e-12)
    # the rate by inner products of rows is the same number
    gram = np.eye(6) + 3 / (6 * eps**2) * (z @ z.T).numpy()
    assert float(whole) == pytest.approx(np.linalg.slogdet(gram)[1] / 2, abs=1e-12)
    assert torch.autograd.gradcheck(lambda a, b: rates(a, b, eps), (z.requires_grad_(), pi.requires_grad_()))


def test_sinkhorn_is_the_alternating_scaling():
    c = unit(7, 3)
    score = (c @ c.T) / 0.3
    slow = score.exp().numpy()
    for _ in range(3000):
        slow /= slow.sum(1, keepdims=True)
        slow /= slow.sum(0)
    found = doubly_stochastic(score, 60)
    np.testing.assert_allclose(found.numpy(), slow, atol=1e-10)
    np.testing.assert_allclose(found.numpy(), found.numpy().T, atol=1e-14)
    early = doubly_stochastic(score, 1)
    assert abs(early.sum(1) - 1).max() > 10 * abs(doubly_stochastic(score, 15).sum(1) - 1).max()
    assert torch.autograd.gradcheck(lambda s: doubly_stochastic(s + s.T, 5), score.detach().requires_grad_())


def test_joining_subspaces_reduces_the_rate_and_joining_everything_does_not():
    axes = torch.eye(3, dtype=torch.float64)[torch.arange(9) % 3]
    together = (axes @ axes.T) / 3
    whole, within = rates(axes, together, 0.5)
    assert float(within) == pytest.approx(math.log(1 + 3 / 0.25) / 2) and float(whole) > float(within)
    whole, within = rates(axes, torch.full((9, 9), 1 / 9, dtype=torch.float64), 0.5)
    assert float(whole - within) == pytest.approx(0, abs=1e-12)
    assert float(coding_rate(torch.zeros(3, 3, dtype=torch.float64), 0.5)) == 0


def arcs(n, seed):
    """Two arcs beside each other, as long as they are apart."""
    rng = np.random.default_rng(seed)
    angle, label = rng.uniform(0, 1.3, n), np.arange(n) % 2
    return (1 + label)[:, None] * np.c_[np.cos(angle), np.sin(angle)] + 0.03 * rng.normal(size=(n, 2)), label


X, LABEL = arcs(80, 0)
OPTIONS = {"hidden_dim": 32, "feature_dim": 4, "start_steps": 40, "steps": 120, "batch_size": 64, "random_state": 0}


@functools.cache
def learned():
    return ManifoldClustering(**OPTIONS).fit(X)


def test_arcs_are_told_apart_by_features_that_are_flatter():
    right = np.mean(learned().labels_ == LABEL)
    assert max(right, 1 - right) > 0.95
    z = learned().transform(X)
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1)
    np.testing.assert_allclose(learned().membership_.sum(1), 1, atol=1e-3)
    assert (learned().membership_ * (LABEL[:, None] == LABEL)).sum() / 80 > 0.7
    # of each arc, one direction holds most of the features' square, though there are two arcs and four directions
    first = [np.linalg.svd(z[k == LABEL], compute_uv=False)[:2] for k in range(2)]
    assert all((pair**2).sum() > 0.85 * 40 for pair in first)
    assert len(learned().start_losses_) == 40 and np.mean(learned().losses_[-20:]) < np.mean(learned().losses_[:20])


def test_the_second_head_starts_as_the_first():
    start = ManifoldClustering(**{**OPTIONS, "steps": 0, "start_steps": 3}, eta=0.7, sinkhorn_iter=5).fit(X)
    z = torch.from_numpy(start.transform(X))
    config = Config(eta=0.7, sinkhorn_iter=5)
    np.testing.assert_allclose(start.membership_, membership(z, config).numpy(), atol=1e-12)


def test_losses_weigh_what_their_options_say():
    draws = torch.Generator()
    x = torch.from_numpy(X)
    net = Features(2, Config(), draws.manual_seed(0))

    def loss(stage, **options):
        return getattr(Losses(net, x, Config(**options), draws.manual_seed(1)), stage)().item()

    alone = {"agreement": 0.0, "batch_size": 200}
    z, c = (part.detach() for part in net(x))
    whole, within = rates(z, membership(c, Config()), 0.5)
    assert loss("second", **alone, gamma=0.3) == pytest.approx(float(0.3 * within - whole))
    assert loss("first", **alone) == pytest.approx(-float(whole))
    assert loss("first", **alone, eps=0.1) == pytest.approx(-float(coding_rate(z.T @ z / 80, 0.1)))
    assert loss("first", batch_size=200, jitter=0.0, agreement=7.0) == pytest.approx(-float(whole) - 7)
    assert loss("first", batch_size=200, jitter=1.0, agreement=7.0) > -float(whole) - 7 + 0.05


@pytest.mark.parametrize(("options", "words"), [
    ({"n_clusters": 0}, "n_clusters is 0"), ({"eta": 0.0}, "eta is 0.0"), ({"gamma": -1.0}, "gamma is -1.0"),
    ({"batch_size": 1}, "batch_size is 1"), ({"lr": 0.0}, "lr is 0.0"), ({"n_clusters": 99}, "minimum of 99")])
def test_refuses(options, words):
    with pytest.raises(ValueError, match=words):
        ManifoldClustering(**options).fit(X)
