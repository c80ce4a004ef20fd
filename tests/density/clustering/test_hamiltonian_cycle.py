"""Cycles against enumeration, the map against loops, losses against their formulas, and clusters in their circle."""

import functools
import itertools
import math

import numpy as np
import pytest
import torch

from mixwell.density import GaussianMixture
from mixwell.density.clustering import hamiltonian_cycle as cycle
from mixwell.density.clustering.hamiltonian_cycle import Config, HamiltonianClustering, map_on_circle, shortest_cycle

RNG = np.random.default_rng(0)


def distances(K, seed=0):
    place = np.random.default_rng(seed).random((K, 2))
    return np.linalg.norm(place[:, None] - place, axis=2)


@pytest.mark.parametrize("K", [2, 3, 4, 7])
def test_the_cycle_is_the_shortest_of_all(K):
    distance = distances(K) ** np.linspace(0.5, 2, K * K).reshape(K, K)
    distance = np.triu(distance) + np.triu(distance).T  # far from any plane
    tours = itertools.permutations(range(1, K))
    best = min(sum(distance[a, b] for a, b in zip((0, *rest), (*rest, 0))) for rest in tours)
    tour = shortest_cycle(distance)
    assert sorted(tour) == list(range(K)) and tour[0] == 0
    assert sum(distance[a, b] for a, b in itertools.pairwise([*tour, 0])) == pytest.approx(best)
    assert cycle.cycle_length(tour, distance) == pytest.approx(best)


def test_beyond_twelve_a_ring_is_still_found():
    angle = 2 * np.pi * RNG.permutation(15) / 15
    place = np.c_[np.cos(angle), np.sin(angle)]
    tour = shortest_cycle(np.linalg.norm(place[:, None] - place, axis=2))
    assert sorted(tour) == list(range(15)) and tour[0] == 0
    turns = np.diff(angle[[*tour, 0]]) % (2 * np.pi)
    assert np.allclose(turns, turns[0]) and min(turns[0], 2 * np.pi - turns[0]) == pytest.approx(2 * np.pi / 15)
    assert cycle._by_exchange(distances(8)) is not None
    assert cycle.cycle_length(cycle._by_exchange(distances(8)), distances(8)) == pytest.approx(
        cycle.cycle_length(cycle._by_subsets(distances(8)), distances(8)))


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_map_agrees_with_a_loop(temperature):
    resp = RNG.dirichlet(np.full(5, 0.4), 30)
    found = map_on_circle(resp, temperature)
    similar = np.array([[(resp[:, k] * resp[:, m]).sum() / math.sqrt((resp[:, k] ** 2).sum() * (resp[:, m] ** 2).sum())
                         for m in range(5)] for k in range(5)])
    order = found.order_K.tolist()
    total = sum(1 - similar[a, b] for a, b in itertools.pairwise([*order, order[0]]))
    angle = 0.0
    for here, after in itertools.pairwise([*order, order[0]]):
        np.testing.assert_allclose(found.anchors_K2[here], [math.cos(angle), math.sin(angle)], atol=1e-9)
        angle += 2 * math.pi * (1 - similar[here, after]) / total
    for row, point in zip(resp, found.points_N2):
        weights = [p ** (1 / temperature) for p in row]
        wanted = sum(w * a for w, a in zip(weights, found.anchors_K2)) / sum(weights)
        np.testing.assert_allclose(point, wanted, atol=1e-9)
    assert np.linalg.norm(found.points_N2, axis=1).max() < 1


def test_any_mixture_is_drawn_with_neighbours_beside_each_other():
    """Clusters on a ring come back in the ring's order; a row of its own stands at its anchor, an even one inside."""
    angle = 2 * np.pi * np.array([0, 3, 1, 4, 2]) / 5
    centre = 3 * np.c_[np.cos(angle), np.sin(angle)]
    x = centre[np.arange(400) % 5] + RNG.normal(size=(400, 2))
    model = GaussianMixture(5, means_init=centre, random_state=0).fit(x)
    found = map_on_circle(model.predict_proba(x))
    around = np.argsort(np.arctan2(*model.means_.T)).tolist()
    place = around.index(0)
    ring = around[place:] + around[:place]
    assert found.order_K.tolist() in (ring, [0, *ring[:0:-1]])
    extreme = map_on_circle(np.vstack([np.eye(5), np.full((1, 5), 0.2)]), like_NK=model.predict_proba(x))
    np.testing.assert_allclose(extreme.points_N2[:5], found.anchors_K2, atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(found.anchors_K2, axis=1), 1)
    assert np.linalg.norm(extreme.points_N2[5]) < 0.3


def groups(n, seed):
    rng = np.random.default_rng(seed)
    label = np.arange(n) % 3
    return 5 * np.eye(6)[label] + rng.normal(size=(n, 6)), label


X, LABEL = groups(90, 1)
OPTIONS = {"n_clusters": 3, "hidden_dim": 16, "latent_dim": 2, "start_steps": 60, "steps": 60, "batch_size": 64,
           "random_state": 0}


@functools.cache
def learned():
    return HamiltonianClustering(**OPTIONS).fit(X)


def test_groups_are_found_and_drawn_apart():
    table = np.array([[np.sum((learned().labels_ == k) & (m == LABEL)) for m in range(3)] for k in range(3)])
    assert table.max(1).sum() > 80 and len(learned().start_losses_) == 60 and len(learned().losses_) == 60
    np.testing.assert_allclose(learned().transform(X), learned().embedding_, atol=1e-12)
    nearest = np.linalg.norm(learned().embedding_[:, None] - learned().anchors_, axis=2).argmin(1)
    assert np.mean(nearest == learned().labels_) > 0.9 and sorted(learned().order_) == [0, 1, 2]
    hot = HamiltonianClustering(**OPTIONS, temperature=3.0).fit(X)
    assert np.linalg.norm(hot.embedding_, axis=1).mean() < np.linalg.norm(learned().embedding_, axis=1).mean()


def test_separation_sharpens_and_locality_agrees():
    few = OPTIONS | {"steps": 40, "start_steps": 30}
    soft = HamiltonianClustering(**few, separation=0.0, locality=0.0).fit(X)
    sharp = HamiltonianClustering(**few, separation=3.0, locality=0.0).fit(X)
    near = HamiltonianClustering(**few, separation=0.0, locality=3.0, n_neighbors=2, lr=1e-2).fit(X)
    entropy = [-(p * np.log(p)).sum(1).mean() for p in (m.predict_proba(X) for m in (sharp, near, soft))]
    assert entropy[0] < entropy[2] - 0.03 and entropy[1] < entropy[2] - 0.03


def test_the_second_loss_agrees_with_a_loop():
    config = Config(n_clusters=3, latent_dim=2, hidden_dim=8, separation=0.7, locality=0.4, batch_size=10)
    draws = torch.Generator().manual_seed(3)
    x = torch.from_numpy(X[:10])
    net = cycle.Network(6, config, draws)
    net.centres_KL.data = torch.randn(3, 2, generator=draws, dtype=torch.float64)
    losses = cycle.Losses(net, x, config, draws)
    losses.near_NJ = ((torch.arange(10) + 1) % 10)[:, None]
    found = losses.second().item()
    z = net.encoder(x).detach()
    kernel = 1 / (1 + ((z[:, None] - net.centres_KL.detach()) ** 2).sum(2))
    p = (kernel / kernel.sum(1, keepdim=True)).numpy()
    q = p**2 / p.sum(0)
    q = q / q.sum(1, keepdims=True)
    wanted = ((net.decoder(z) - x) ** 2).mean().item() + 0.7 * (q * np.log(q / p)).sum() / 10
    wanted -= 0.4 * np.mean([math.log(p[i] @ p[(i + 1) % 10]) for i in range(10)])
    assert found == pytest.approx(wanted, abs=1e-10)
    p = torch.from_numpy(p[:4]).requires_grad_()
    assert torch.autograd.gradcheck(cycle.sharpened, p)


@pytest.mark.parametrize(("options", "words"), [
    ({"n_clusters": 0}, "n_clusters is 0"), ({"latent_dim": 0}, "latent_dim is 0"), ({"locality": -1}, "locality is"),
    ({"temperature": 0.0}, "temperature is 0.0"), ({"lr": 0.0}, "lr is 0.0"), ({"n_neighbors": 200}, "minimum of 201")])
def test_refuses(options, words):
    with pytest.raises(ValueError, match=words):
        HamiltonianClustering(**options).fit(X)


def test_what_is_no_responsibility_is_not_drawn():
    with pytest.raises(ValueError, match="every row sums to one"):
        map_on_circle(np.ones((3, 2)))
