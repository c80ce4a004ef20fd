import itertools
import math

import pytest
import torch
from scipy.stats import norm

from mixwell.density.latent.dynamic_mixture import (
    Config,
    DynamicMixture,
    Forecast,
    draw,
    emission,
    example,
    impute,
    train,
)


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def made(**options):
    """A net with two columns whose every parameter is stirred, so that none hides behind a zero."""
    model = DynamicMixture(2, Config(**{"n_clusters": 2, "hidden_dim": 3, "scale": 0.8, "alpha": 0.2, **options}),
                           draws()).double()
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if name != "log_scales_KD":
                parameter += 0.4 * torch.randn(parameter.shape, generator=draws(len(name)))
        model.static_K.copy_(torch.linspace(1, 2, len(model.static_K))).div_(model.static_K.sum())
    return model


def data(B=1, T=3, seed=1):
    g = draws(seed)
    return torch.randn(B, T, 2, generator=g, dtype=torch.float64), torch.rand(B, T, 2, generator=g) < 0.6


def filled(model, x, mask):
    """One series, value by value."""
    T, D = x.shape
    rows = torch.zeros_like(x)
    for t, i in itertools.product(range(T), range(D)):
        if mask[t, i]:
            rows[t, i] = x[t, i]
        elif model.config.imputation == "kernel":
            above = below = 0.0
            for j, s in itertools.product(range(D), range(T)):
                if mask[s, j]:
                    kernel = torch.exp(-model.log_alpha_D[j].exp() * (t - s) ** 2)
                    above = above + (1 if i == j else model.rho_DD[i, j]) * kernel * x[s, j]
                    below = below + kernel
            rows = rows.index_put((torch.tensor(t), torch.tensor(i)), torch.as_tensor(above / below))
    return rows


def run(net, rows):
    """States after each row, and the last carry, one step at a time."""
    carry, states = None, []
    for row in rows:
        out, carry = net(row[None, None], carry)
        states.append(out[0, 0])
    return states, carry


def heights(model, x, mask):
    """log p(x_t | c) as a list over steps of lists over clusters."""
    scale = model.log_scales_KD.exp()
    return [[sum((-0.5 * ((x[t, i] - model.means_KD[c, i]) / scale[c, i]) ** 2
                  - torch.log(scale[c, i] * math.sqrt(2 * math.pi)) for i in range(2) if mask[t, i]),
                 torch.zeros((), dtype=x.dtype))
             for c in range(model.config.n_clusters)] for t in range(len(x))]


def after(model, h, before):
    return model.to_posterior(torch.cat([h, before])).log_softmax(-1)


def prior(model, path):
    """log p(z_t | z_{1:t-1}) at each step of a path of one-hots or of relaxed ones."""
    K = model.config.n_clusters
    states = run(model.transition, path)[0][:-1]
    return [torch.full((K,), -math.log(K)).double(), *(model.to_next(h).log_softmax(-1) for h in states)]


def gate(model, h):
    return torch.as_tensor(model.config.gamma) if model.config.gamma is not None else model.to_gate(h)[0].sigmoid()


def enumerated(model, x, mask):
    """Terms and log p(x) at gamma = 0 of one series, by a sum over all paths of clusters."""
    K, T, H = model.config.n_clusters, len(x), model.config.hidden_dim
    rows = torch.cat([filled(model, x, mask), mask.double()], -1)
    h, height = run(model.encoder, rows)[0], heights(model, x, mask)
    gamma = [gate(model, v) for v in [torch.zeros(H, dtype=x.dtype), *h[:-1]]]
    eye, found = torch.eye(K, dtype=x.dtype), {"dynamic": 0, "transition": 0, "start": 0}
    weights, joint = torch.zeros(K, dtype=x.dtype), []
    for path in itertools.product(range(K), repeat=T):
        before = [torch.zeros(K, dtype=x.dtype)] + [eye[c] for c in path[:-1]]
        log_q = [after(model, h[t], before[t])[path[t]] for t in range(T)]
        log_p = [p[c] for p, c in zip(prior(model, [eye[c] for c in path]), path)]
        q = sum(log_q).exp()
        found["dynamic"] -= q * sum((1 - gamma[t]) * height[t][path[t]] for t in range(T))
        found["start"] += q * (log_q[0] - log_p[0])
        found["transition"] += q * sum(log_q[t] - log_p[t] for t in range(1, T))
        joint.append(sum(log_p) + sum(height[t][path[t]] for t in range(T)))
        for c in path:
            weights = weights + q * eye[c] / T
    found["static"] = -sum(gamma[t] * weights[c] * height[t][c] for t in range(T) for c in range(K))
    return found | {"weights_K": weights}, torch.stack(joint).logsumexp(0)


@pytest.mark.parametrize("options", [{}, {"cell": "gru", "gamma": 0.3}, {"imputation": "zero", "n_clusters": 3}])
def test_terms_agree_with_all_paths(options):
    model, (x, mask) = made(path="hard", **options), data()
    with torch.no_grad():
        loop, _ = enumerated(model, x[0], mask[0])
        one = model(x, mask, draws())
        for name in ("dynamic", "static", "start", "weights_K"):
            torch.testing.assert_close(getattr(one, name), loop[name])
        many = [v.expand(1000, -1, -1) for v in (x, mask)]
        means = torch.stack([model(*many, draws(s)).transition for s in range(12)])
        error = float(means.std()) / 12**0.5
        assert abs(float(means.mean() - loop["transition"])) < 3 * error < 0.15 * float(loop["transition"])


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("scales", ["fixed", "learned"])
def test_gradients_agree_with_a_loop(cell, scales):
    model, (x, mask) = made(path="mean", cell=cell, scales=scales), data()
    loop, _ = enumerated(model, x[0], mask[0])
    h = run(model.encoder, torch.cat([filled(model, x[0], mask[0]), mask[0].double()], -1))[0]
    z, path, kl = torch.zeros(2, dtype=x.dtype), [], 0
    for state in h:
        path.append((after(model, state, z), z := after(model, state, z).exp()))
    for t, (p, (log_q, q)) in enumerate(zip(prior(model, [q for _, q in path]), path)):
        kl = kl + ((q * (log_q - p)).sum() if t else 0)
    slow = loop["dynamic"] + loop["static"] + 0.7 * (loop["start"] + kl)
    fast = model(x, mask).loss(0.7)
    torch.testing.assert_close(fast, slow)
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert ("log_scales_KD" in named) == (scales == "learned")
    for one, two in zip(*(torch.autograd.grad(v, list(named.values())) for v in (fast, slow))):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-9)


def test_parts_pass_gradcheck():
    x, mask = data(1, 3)
    g = draws(3)
    alpha, rho, means, scales = (torch.rand(s, generator=g, dtype=torch.float64).add(0.2).requires_grad_()
                                 for s in ((2,), (2, 2), (3, 2), (3, 2)))
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda *v: impute(v[0], mask, *v[1:]), (x, alpha, rho))
    assert torch.autograd.gradcheck(lambda *v: emission(v[0], mask, *v[1:]), (x, means, scales))


def test_the_bound_lies_below_and_meets_log_p_with_one_cluster():
    x, mask = data(1, 4)
    for K in (1, 2):
        model = made(gamma=0.0, n_clusters=K)
        with torch.no_grad():
            found, height = enumerated(model, x[0], mask[0])
            gap = float(height + found["dynamic"] + found["static"] + found["transition"] + found["start"])
            assert gap > 0.01 if K == 2 else abs(gap) < 1e-12
            if K == 1:
                assert float(model(x, mask, draws()).loss()) == pytest.approx(-float(height))


def test_filling_is_a_kernel_mean_and_keeps_what_is_known():
    model, (x, mask) = made(), data(2, 5)
    found = impute(x, mask, model.log_alpha_D.exp(), model.rho_DD)
    for row, value, seen in zip(found, x, mask):
        torch.testing.assert_close(row, filled(model, value, seen))
    assert torch.equal(found[mask], x[mask])
    none = torch.zeros_like(mask)
    assert float(impute(x, none, model.log_alpha_D.exp(), model.rho_DD).detach().abs().max()) == 0
    assert float((made(alpha=0.4).log_alpha_D - made().log_alpha_D).detach()[0]) == pytest.approx(math.log(2))


@pytest.mark.parametrize("options", [{}, {"cell": "gru"}, {"gamma": 0.3, "imputation": "zero"}])
def test_forecast_agrees_with_a_loop(options):
    model, (x, mask) = made(path="mean", **options), data()
    with torch.no_grad():
        ahead = model.forecast(x, mask, 3, 2, draws())
        h, state = run(model.encoder, torch.cat([filled(model, x[0], mask[0]), mask[0].double()], -1))
        z, path = torch.zeros(2, dtype=x.dtype), []
        for v in h:
            path.append(z := after(model, v, z).exp())
        out, carry = run(model.transition, path)
        out, h = out[-1], h[-1]
        for s in range(3):
            p, gamma = model.to_next(out).softmax(-1), gate(model, h)
            psi = (1 - gamma) * p + gamma * model.static_K
            torch.testing.assert_close(ahead.weights_BSK[0, s], psi)
            torch.testing.assert_close(ahead.mean_BSD[0, s], psi[0] * model.means_KD[0] + psi[1] * model.means_KD[1])
            (out,), carry = (v if i else [v[0, 0]] for i, v in enumerate(model.transition(p[None, None], carry)))
            row = torch.cat([psi @ model.means_KD, torch.ones(2)])
            (h,), state = (v if i else [v[0, 0]] for i, v in enumerate(model.encoder(row[None, None], state)))


def test_samples_and_density_follow_the_mixture():
    model, (x, mask) = made(), data()
    ahead = model.forecast(x, mask, 2, 8000, draws())
    assert ahead.samples_BPSD.shape == (1, 8000, 2, 2)
    torch.testing.assert_close(ahead.samples_BPSD.mean(1), ahead.mean_BSD, rtol=0, atol=0.04)
    square = ahead.weights_BSK @ (ahead.means_KD**2 + ahead.scales_KD**2)
    torch.testing.assert_close(ahead.samples_BPSD.square().mean(1), square, rtol=0.05, atol=0)
    torch.testing.assert_close(ahead.weights_BSK.sum(-1), torch.ones(1, 2, dtype=torch.float64))
    at, seen = torch.tensor([[[0.3, -1.0], [2.0, 0.1]]]).double(), torch.tensor([[[True, True], [False, True]]])
    for s, columns in ((0, (0, 1)), (1, (1,))):
        slow = sum(float(ahead.weights_BSK[0, s, c]) * math.prod(norm.pdf(at[0, s, i], ahead.means_KD[c, i], 0.8)
                                                                 for i in columns) for c in range(2))
        assert float(ahead.log_prob(at, seen)[0, s]) == pytest.approx(math.log(slow), rel=1e-6)
    zero = Forecast(*ahead).log_prob(at, torch.zeros_like(seen))
    torch.testing.assert_close(zero, torch.zeros_like(zero), rtol=0, atol=1e-12)


def test_gamma_one_forecasts_the_static_weights_and_gamma_zero_ignores_them():
    x, mask = data(2)
    still, moving = made(gamma=1.0), made(gamma=0.0)
    torch.testing.assert_close(still.forecast(x, mask, 2, 1, draws()).weights_BSK, still.static_K.expand(2, 2, 2))
    before = moving.forecast(x, mask, 2, 4, draws()).weights_BSK
    moving.static_K.copy_(torch.tensor([1.0, 0.0]))
    assert torch.equal(before, moving.forecast(x, mask, 2, 4, draws()).weights_BSK)
    assert not still(x, mask, draws()).dynamic.any() and not moving(x, mask, draws()).static.any()


def cycle(count, g):
    """Two regimes in turn, one value of two columns missing in each step at chance."""
    sign = torch.randint(2, (count, 1), generator=g) * 2.0 - 1
    x = (sign * (-1.0) ** torch.arange(6))[..., None] + 0.2 * torch.randn(count, 6, 2, generator=g)
    return x[:, :5], torch.rand(count, 5, 2, generator=g) < 0.6, x[:, 5]


def test_weights_follow_the_cluster_that_comes_next():
    """Columns' means are 0 in every step ahead, yet the forecast of a cycle is near its next regime."""
    g = draws(4)
    x, mask, after = cycle(200, g)
    model = DynamicMixture(2, Config(n_clusters=2, hidden_dim=8, scale=0.4, cell="gru"), g)
    terms = list(train(model, x, mask, steps=40, batch=32, lr=4e-2, anneal_steps=10, generator=g))
    x, mask, after = cycle(200, g)
    ahead = model.forecast(x, mask, 1, 4, g)
    assert float((ahead.mean_BSD[:, 0] - after).square().mean().sqrt()) < 0.5
    assert float(terms[-1].loss()) < float(terms[0].loss()) and not terms[-1].dynamic.requires_grad
    regime = model.cluster(x, mask)[..., 0] > 0.5
    seen = mask.any(-1)
    agree = float((regime == (x[..., 0] > 0))[seen].float().mean())
    assert max(agree, 1 - agree) > 0.95


def test_training_repeats_weighs_divergences_and_keeps_static_weights():
    x, mask, _ = cycle(20, draws(4))

    def done(anneal_steps=0, steps=4, **options):
        model = DynamicMixture(2, Config(**{"n_clusters": 2, "hidden_dim": 3, "path": "mean", **options}), draws())
        return model, list(train(model, x, mask, steps=steps, batch=8, anneal_steps=anneal_steps, generator=draws()))

    (model, terms), (again, _) = done(), done()
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))
    expected = torch.full((2,), 0.5)
    for step in terms:
        expected = 0.9 * expected + 0.1 * step.weights_K
    torch.testing.assert_close(model.static_K, expected)
    free, late = done(kl_weight=0.0)[0], done(anneal_steps=10**9)[0]
    torch.testing.assert_close(free.means_KD, late.means_KD)
    assert not torch.equal(free.to_next[0].weight, model.to_next[0].weight)
    assert float(done(kl_weight=50.0, steps=8)[1][-1].start) < float(done(kl_weight=0.0, steps=8)[1][-1].start)


def test_draws_are_relaxed_hard_or_the_mean():
    log_q = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).log().expand(20000, 3)
    warm, cold, hard, mean = (draw(log_q, *v, draws()) for v in (("gumbel", 1.0), ("gumbel", 1e-3), ("hard", 1.0),
                                                                ("mean", 1.0)))
    torch.testing.assert_close(mean, log_q.exp())
    torch.testing.assert_close(warm.sum(-1), torch.ones(20000, dtype=torch.float64))
    assert float(warm.amax(-1).mean()) < 0.9 < 0.99 < float(cold.amax(-1).mean())
    assert torch.equal(hard, hard.round()) and torch.equal(hard.argmax(-1), warm.argmax(-1))
    torch.testing.assert_close(hard.mean(0), log_q[0].exp(), rtol=0, atol=0.012)
    logits = log_q[:5].clone().requires_grad_()
    one, two = (torch.autograd.grad(draw(logits, p, 1.0, draws())[:, 0].sum(), logits)[0] for p in ("hard", "gumbel"))
    torch.testing.assert_close(one, two)


def test_what_is_missing_is_not_read():
    model, (x, mask) = made(), data(2, 4)
    holes = x.masked_fill(~mask, math.nan)
    kept, seen = holes.clone(), mask.clone()
    one, two = model(holes, mask, draws()), model(x, mask, draws())
    assert all(torch.equal(a, b) for a, b in zip(one, two))
    one.loss().backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.requires_grad)
    model.forecast(holes, mask, 2, 2, draws())
    assert torch.equal(holes.nan_to_num(), kept.nan_to_num()) and torch.equal(mask, seen)
    assert not torch.equal(model(x, mask, draws(1)).transition, two.transition)


def test_clusters_are_a_filter_without_filled_values():
    model, (x, mask) = made(imputation="zero", n_clusters=3), data(2, 5)
    found = model.cluster(x, mask)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 5, dtype=torch.float64))
    torch.testing.assert_close(model.cluster(x[:, :3], mask[:, :3]), found[:, :3])


def test_float32_agrees_with_float64():
    model, (x, mask) = made(path="mean"), data(3, 4)
    double = model(x, mask)
    for one, two in zip(model.float()(x.float(), mask), double):
        torch.testing.assert_close(one.double(), two, rtol=1e-4, atol=1e-5)


def test_refuses():
    model, (x, mask) = made(), data()
    with pytest.raises(ValueError, match=r"x has shape \(1, 3, 1\); expected \(series, steps, 2\)"):
        model(x[..., :1], mask)
    with pytest.raises(ValueError, match=r"mask has shape \(1, 3, 2\) and type torch.float64"):
        model.cluster(x, mask.double())
    with pytest.raises(ValueError, match="steps is 0 and samples 1"):
        model.forecast(x, mask, 0, 1)
    with pytest.raises(ValueError, match="dim is 0"):
        DynamicMixture(0)
    for wrong in ({"cell": "rnn"}, {"imputation": "mean"}, {"path": "all"}, {"scales": "none"}, {"n_clusters": 0},
                  {"hidden_dim": 0}, {"alpha": 0.0}, {"temperature": 0.0}, {"scale": math.nan}, {"gamma": 1.5},
                  {"kl_weight": -1.0}):
        with pytest.raises(ValueError, match=rf"{next(iter(wrong))} .*expected"):
            Config(**wrong)


def test_example_runs():
    given = example(draws())
    module = given.pop("module")
    assert bool(module(**given).loss() > 0)
