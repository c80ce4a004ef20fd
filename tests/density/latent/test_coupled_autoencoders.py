import math

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError

from mixwell.density.latent._coupling import (
    category_agreement,
    category_divergence,
    loss_terms,
    relax,
    squared_distance,
    state_divergence,
)
from mixwell.density.latent.coupled_autoencoders import Arms, Config, CoupledAutoencoders, copies, example

DISTANCES = ("scaled", "aitchison", "euclidean")
SMALL = {"n_components": 3, "state_dim": 2, "hidden_dim": 8}


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def made(seed=0, dtype=torch.float64, **options):
    return Arms(3, Config(**SMALL | options), draws(seed), dtype)


def noise(arms, rows=5, dtype=torch.float64):
    """Rows, Gumbel and normal noise for every arm."""
    config, g = arms.config, draws(1)
    x = torch.randn(config.n_arms, rows, 3, generator=g, dtype=dtype)
    gumbel = -torch.empty(config.n_arms, rows, arms.n_components, dtype=dtype).exponential_(generator=g).log()
    return x, gumbel, torch.randn(config.n_arms, rows, config.state_dim, generator=g, dtype=dtype)


def simplex(*shape, seed=0):
    return (2 * torch.randn(*shape, generator=draws(seed), dtype=torch.float64)).log_softmax(-1)


def blobs(rows=90, seed=0):
    centres = np.array([[4.0, 0.0], [-4.0, 3.0], [-3.0, -4.0]])
    return centres[np.arange(rows) % 3] + 0.5 * np.random.default_rng(seed).standard_normal((rows, 2))


def slow_softmax(values):
    total = sum(math.exp(v) for v in values)
    return [math.exp(v) / total for v in values]


def slow_linear(layer, arm, values):
    weight, bias = layer.weight_AIO[arm].tolist(), layer.bias_A1O[arm, 0].tolist()
    return [bias[o] + sum(v * weight[i][o] for i, v in enumerate(values)) for o in range(len(bias))]


def slow_arm(arms, arm, x, gumbel, normal):
    """Posterior, reconstruction error and state divergence of one row, by the equation."""
    config, h = arms.config, x
    for layer in (arms.encoder[0], arms.encoder[2]):
        h = [max(v, 0.0) for v in slow_linear(layer, arm, h)]
    q = slow_softmax([v / config.tau for v in slow_softmax(slow_linear(arms.category, arm, h))])
    c = slow_softmax([(math.log(p) + g) / config.temperature for p, g in zip(q, gumbel)])
    out = slow_linear(arms.state, arm, h + c)
    mean = out[: config.state_dim]
    variance = [1 / (1 + math.exp(-v)) for v in out[config.state_dim :]]
    s = [m + math.sqrt(v) * e for m, v, e in zip(mean, variance, normal)]
    y = [max(v, 0.0) for v in slow_linear(arms.read, arm, c + s)]
    y = slow_linear(arms.decoder[3], arm, [max(v, 0.0) for v in slow_linear(arms.decoder[1], arm, y)])
    error = 0.5 * sum((a - b) ** 2 for a, b in zip(x, y))
    return q, error, sum(0.5 * (m * m + v - 1 - math.log(v)) for m, v in zip(mean, variance))


def slow_distance(p, q, distance, eps=1e-8):
    """d^2 of two lists of rows of probabilities."""
    rows, K, total = len(p), len(p[0]), 0.0
    spread = []
    for side in (p, q):
        means = [sum(row[k] for row in side) / rows for k in range(K)]
        spread.append([sum((row[k] - means[k]) ** 2 for row in side) / (rows - 1) for k in range(K)])
    for n in range(rows):
        for k in range(K):
            if distance == "euclidean":
                a, b = p[n][k], q[n][k]
            elif distance == "aitchison":
                a, b = (math.log(r[n][k]) - sum(map(math.log, r[n])) / K for r in (p, q))
            else:
                a, b = (math.log(r[n][k]) / math.sqrt(v[k] + eps) for r, v in zip((p, q), spread))
            total += (a - b) ** 2
    return total / rows


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("n_arms", [1, 2, 3])
def test_every_term_agrees_with_a_loop(distance, n_arms):
    arms = made(n_arms=n_arms, tau=0.5, temperature=0.7)
    x, gumbel, normal = noise(arms)
    found = loss_terms(x, arms(x, gumbel, normal), distance)
    rows = [[slow_arm(arms, a, *(v[a, n].tolist() for v in (x, gumbel, normal))) for n in range(5)]
            for a in range(n_arms)]
    error = [sum(row[1] for row in side) / 5 for side in rows]
    state = [sum(row[2] for row in side) / 5 for side in rows]
    category = [sum(p * math.log(3 * p) for row in side for p in row[0]) / 5 for side in rows]
    pairs = [slow_distance([r[0] for r in rows[a]], [r[0] for r in rows[b]], distance)
             for a in range(n_arms) for b in range(a + 1, n_arms)]
    for fast, loop in zip((found.reconstruction_A, found.state_A, found.category_A, found.coupling_P),
                          (error, state, category, pairs)):
        np.testing.assert_allclose(fast.detach(), loop, rtol=1e-9)
    whole = max(n_arms - 1, 1) * sum(e + 0.5 * s + c for e, s, c in zip(error, state, category)) + 2 * sum(pairs)
    assert float(found.total(2.0, 0.5).detach()) == pytest.approx(whole)


@pytest.mark.parametrize("distance", DISTANCES)
def test_gradients(distance):
    arms = made(tau=0.5)
    with torch.no_grad():  # far from uniform, where the scaled distance is too steep for finite differences
        arms.category.weight_AIO *= 20
    given = [v.requires_grad_() for v in noise(arms, 4)]

    def loss(x, gumbel, normal, *parameters):
        seen = torch.func.functional_call(arms, dict(zip(names, parameters)), (x, gumbel, normal))
        return loss_terms(x, seen, distance).total()

    names, parameters = zip(*arms.named_parameters())
    assert torch.autograd.gradcheck(loss, (*given, *parameters), fast_mode=True)


@pytest.mark.parametrize("term", [lambda q, g: relax(q, g, 0.5), lambda q, g: category_divergence(q),
                                  lambda q, g: state_divergence(q, g),
                                  *(lambda q, g, d=d: squared_distance(q, g.log_softmax(-1), d) for d in DISTANCES)])
def test_gradients_of_terms(term):
    assert torch.autograd.gradcheck(term, (simplex(4, 3).requires_grad_(), simplex(4, 3, seed=1).requires_grad_()))


def test_the_scaled_distance_does_not_reward_a_collapse():
    """Rows that all move to one point of the simplex bring arms together in every geometry but the scaled one."""
    p, q = (torch.randn(50, 4, generator=draws(seed), dtype=torch.float64) for seed in (0, 1))
    for distance in DISTANCES:
        wide, narrow = (float(squared_distance((t * p).log_softmax(-1), (t * q).log_softmax(-1), distance))
                        for t in (1.0, 0.01))
        assert narrow > wide if distance == "scaled" else narrow < 1e-2 * wide


def test_arms_that_agree_are_at_distance_zero_and_order_does_not_matter():
    p, q = simplex(6, 3), simplex(6, 3, seed=1)
    for distance in DISTANCES:
        assert float(squared_distance(p, p, distance)) == 0 < float(squared_distance(p, q, distance))
        torch.testing.assert_close(squared_distance(p, q, distance), squared_distance(q, p, distance))


def test_aitchison_ignores_the_scale_of_a_composition():
    p, q = simplex(6, 3), simplex(6, 3, seed=1)
    torch.testing.assert_close(squared_distance(p + 1.0, q - 2.0, "aitchison"), squared_distance(p, q, "aitchison"))


def test_relaxed_samples_follow_the_categories_and_sharpen():
    log_prob = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64).log()
    gumbel = -torch.empty(20000, 3, dtype=torch.float64).exponential_(generator=draws()).log()
    cold, warm = relax(log_prob, gumbel, 0.05), relax(log_prob, gumbel, 5.0)
    np.testing.assert_allclose(cold.mean(0), [0.6, 0.3, 0.1], atol=0.015)
    torch.testing.assert_close(warm.sum(-1), torch.ones(20000, dtype=torch.float64))
    assert float(warm.max(-1).values.mean()) < 0.6 < 0.95 < float(cold.max(-1).values.mean())


def test_one_category_leaves_autoencoders_without_coupling():
    arms = made(n_components=1)
    x, gumbel, normal = noise(arms)
    for distance in DISTANCES:
        found = loss_terms(x, arms(x, gumbel, normal), distance)
        assert not found.category_A.any() and not found.coupling_P.any()
        torch.testing.assert_close(found.total(7.0), (found.reconstruction_A + found.state_A).sum())


def test_arms_do_not_see_each_other():
    arms = made()
    x, gumbel, normal = noise(arms)
    other = x.clone()
    other[1] += 1
    before, after = arms(x, gumbel, normal), arms(other, gumbel, normal)
    assert torch.equal(before.decoded_AND[0], after.decoded_AND[0])
    assert not torch.equal(before.decoded_AND[1], after.decoded_AND[1])


def test_float32_agrees_with_float64_and_inputs_stay():
    arms = made(dtype=torch.float32)
    given = noise(arms, dtype=torch.float32)
    kept = [v.clone() for v in given]
    for distance in DISTANCES:
        single = loss_terms(given[0], arms.float()(*given), distance).total().detach()
        double = [v.double() for v in given]
        torch.testing.assert_close(single.double(), loss_terms(double[0], arms.double()(*double), distance).total(),
                                   rtol=1e-3, atol=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(given, kept))


def test_coupling_gives_the_same_names_to_the_same_groups():
    """Without it every arm finds groups and numbers them as it likes."""
    options = {"n_components": 3, "hidden_dim": 16, "lr": 2e-2, "steps": 80, "distance": "aitchison", "augment": 0.2}
    together, apart = (CoupledAutoencoders(coupling=v, random_state=0, **options).fit(blobs()) for v in (1.0, 0.0))
    assert together.agreement_ > 0.95 > 0.7 > apart.agreement_
    assert len(set(zip(together.labels_, np.arange(90) % 3))) == 3 == len(set(together.labels_))
    assert together.history_["coupling"].shape == (80,)
    assert together.history_["reconstruction"][-1] < 0.5 * together.history_["reconstruction"][0]


def test_the_consensus_is_the_normalised_geometric_mean():
    x = blobs(12)
    model = CoupledAutoencoders(n_components=3, n_arms=3, hidden_dim=4, steps=2, random_state=0).fit(x)
    with torch.no_grad():
        prob = model.arms_.infer(torch.tensor(x).expand(3, -1, -1))[1].exp().numpy()
    centre = np.prod(prob, 0) ** (1 / 3)
    np.testing.assert_allclose(model.predict_proba(x), centre / centre.sum(1, keepdims=True))
    np.testing.assert_array_equal(model.predict(x), centre.argmax(1))
    np.testing.assert_array_equal(model.labels_, centre.argmax(1))
    agree = [(prob[a].argmax(1) == prob[b].argmax(1)).mean() for a, b in ((0, 1), (0, 2), (1, 2))]
    assert model.agreement_ == pytest.approx(np.mean(agree))


def test_states_are_the_means_given_the_consensus():
    x = blobs(6)
    model = CoupledAutoencoders(n_components=3, state_dim=4, hidden_dim=4, steps=1, random_state=0).fit(x)
    found = model.states(x)
    assert found.shape == (2, 6, 4)
    arm, h = model.arms_, x[2].tolist()
    for layer in (arm.encoder[0], arm.encoder[2]):
        h = [max(v, 0.0) for v in slow_linear(layer, 1, h)]
    one_hot = [float(k == model.labels_[2]) for k in range(3)]
    np.testing.assert_allclose(found[1, 2], slow_linear(arm.state, 1, h + one_hot)[:4])


def test_one_arm_is_a_mixture_vae_that_agrees_with_itself():
    model = CoupledAutoencoders(n_components=3, n_arms=1, hidden_dim=4, steps=3, random_state=0).fit(blobs(12))
    history = model.history_
    assert model.agreement_ == 1 and not history["coupling"].any()
    np.testing.assert_allclose(history["loss"], history["reconstruction"] + history["state"] + history["category"])


def test_agreement_of_a_category_agrees_with_a_loop():
    first, second = torch.tensor([0, 0, 1, 1, 1, 2]), torch.tensor([0, 1, 1, 1, 2, 2])
    counted = []
    for k in range(4):
        a, b = [int(v) == k for v in first], [int(v) == k for v in second]
        counted.append(sum(i and j for i, j in zip(a, b)) / max(sum(a), sum(b), 1))
    assert counted == [0.5, 2 / 3, 0.5, 0]
    assert category_agreement(first, second, 4).tolist() == pytest.approx(counted)


def test_a_pruned_category_leaves_the_others_as_they_were():
    arms = made()
    x, gumbel, normal = noise(arms)
    pruned = arms.without(1)
    with torch.no_grad():
        h, logits = arms.infer(x)[0], arms.category(arms.encoder(x))[..., [0, 2]]
        torch.testing.assert_close(pruned.infer(x)[1], (logits.softmax(-1) / 0.1).log_softmax(-1))
        c = torch.tensor([0.3, 0.0, 0.7], dtype=torch.float64).expand(2, 5, 3)
        torch.testing.assert_close(pruned.states(h, c[..., [0, 2]]), arms.states(h, c))
        torch.testing.assert_close(pruned.read(torch.cat([c[..., [0, 2]], normal], -1)),
                                   arms.read(torch.cat([c, normal], -1)))
    assert (arms.n_components, pruned.n_components) == (3, 2) and pruned(x, gumbel[..., :2], normal)


@pytest.mark.parametrize("prune_steps", [0, 2])
def test_pruning_stops_where_the_arms_agree(prune_steps):
    model = CoupledAutoencoders(n_components=6, hidden_dim=4, steps=2, min_agreement=0.9, prune_steps=prune_steps,
                                random_state=0).fit(blobs(30))
    left = model.n_components_
    assert 1 <= left < 6 and (left == 1 or model.category_agreement_.min() >= 0.9)
    assert model.predict_proba(blobs(30)).shape == (30, left)
    assert model.history_["loss"].shape == (2 + prune_steps * (6 - left),)
    assert CoupledAutoencoders(n_components=6, hidden_dim=4, steps=2, random_state=0).fit(blobs(30)).n_components_ == 6


def test_copies_are_the_rows_or_rows_with_noise_or_what_a_function_makes():
    x = torch.randn(500, 3, generator=draws())
    assert torch.equal(copies(x, 2, 0.0, draws()), torch.stack([x, x]))
    noisy = copies(x, 2, 0.3, draws())
    assert not torch.equal(noisy[0], noisy[1])
    assert float((noisy - x).std()) == pytest.approx(0.3, rel=0.05)
    turned = copies(x, 3, lambda rows, g: rows * torch.rand(1, generator=g), draws())
    assert turned.shape == (3, 500, 3) and len(torch.unique(turned[:, 0, 0])) == 3
    model = CoupledAutoencoders(steps=1, hidden_dim=2, augment=lambda rows, g: rows.flip(1), random_state=0)
    assert model.fit(blobs(9)).labels_.shape == (9,)


def test_same_random_state_same_bits_and_the_global_state_stays():
    x = blobs(20)
    before, kept = torch.get_rng_state(), x.copy()
    models = [CoupledAutoencoders(hidden_dim=4, steps=2, augment=0.1, batch_size=8, random_state=s).fit(x)
              for s in (3, 3, 4)]
    first, second, other = (m.predict_proba(x) for m in models)
    assert np.array_equal(first, second) and not np.allclose(first, other)
    assert torch.equal(before, torch.get_rng_state()) and np.array_equal(x, kept)
    single = CoupledAutoencoders(hidden_dim=4, steps=2, random_state=0).fit(x.astype(np.float32))
    assert single.predict_proba(x).dtype == np.float32


@pytest.mark.parametrize("option", [{"distance": "aitchison"}, {"distance": "euclidean"}, {"coupling": 0.3},
                                    {"beta": 0.2}, {"tau": 0.9}, {"temperature": 0.4}, {"lr": 0.1}, {"augment": 0.5},
                                    {"batch_size": 4}])
def test_every_option_reaches_the_training(option):
    plain, changed = (CoupledAutoencoders(**SMALL | {"steps": 3, "random_state": 0} | o).fit(blobs(9))
                      for o in ({}, option))
    assert not np.allclose(plain.history_["loss"], changed.history_["loss"], rtol=1e-7)


@pytest.mark.parametrize("wrong, said", [
    ({"n_components": 0}, "n_components is 0; expected 1 or more"), ({"batch_size": 1}, "batch_size is 1; expected 2"),
    ({"coupling": -1.0}, "coupling is -1.0"), ({"distance": "cosine"}, "distance is 'cosine'; expected 'scaled'"),
    ({"tau": 1.5}, "tau, temperature, lr are 1.5"), ({"temperature": 0.0}, "expected tau"), ({"lr": 0.0}, "above 0"),
    ({"augment": -0.1}, "augment is -0.1"), ({"min_agreement": 1.1}, "min_agreement is 1.1"),
    ({"n_arms": 1, "min_agreement": 0.5}, "two arms or more to prune by")])
def test_refuses_options(wrong, said):
    with pytest.raises(ValueError, match=said):
        CoupledAutoencoders(**wrong).fit(blobs(9))


def test_refuses_rows():
    with pytest.raises(ValueError, match=r"augment gives shape \(8, 2\); expected \(9, 2\)"):
        CoupledAutoencoders(steps=1, augment=lambda rows, g: rows[1:]).fit(blobs(9))
    with pytest.raises(NotFittedError):
        CoupledAutoencoders().predict_proba(blobs(9))


def test_example_runs():
    given = example(draws())
    assert given["estimator"].fit(given["X"]).states(given["X"]).shape == (2, 40, 2)
