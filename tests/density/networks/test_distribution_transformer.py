"""Densities against loops, the network against one written out, symmetries, limits, and that it learns."""

import math

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from mixwell.density.networks.distribution_transformer import (
    Config,
    DistributionTransformer,
    Mixture,
    Simulated,
    example,
    flatten,
    train,
    unflatten,
)

SMALL = {"width": 8, "heads": 2, "layers": 2, "hidden_dim": 12, "embed_dim": 6}
OUTPUTS = ["free", "residual"]


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def mixture(seed=1, B=2, K=3, D=2):
    g = draws(seed)
    raw = 0.5 * torch.randn(B, K, D, D, generator=g, dtype=torch.float64)
    cholesky = raw.tril(-1) + raw.diagonal(dim1=-2, dim2=-1).exp().diag_embed()
    weights = torch.randn(B, K, generator=g, dtype=torch.float64).softmax(-1)
    return Mixture.of(weights, torch.randn(B, K, D, generator=g, dtype=torch.float64), cholesky)


def points(seed=2, B=2, N=5, X=1):
    return torch.randn(B, N, X, generator=draws(seed), dtype=torch.float64)


def stirred(seed=0, dim=2, **options):
    """A float64 module all of whose parameters are random, also those that start at zero."""
    module = DistributionTransformer(dim, 1, Config(**SMALL, **options), draws(seed)).double()
    g = draws(seed + 1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=g, dtype=torch.float64))
    return module


def same(one, two, tol=1e-10):
    for a, b in zip(one, two):
        torch.testing.assert_close(a, b, rtol=tol, atol=tol)


def test_log_density_agrees_with_a_loop_and_with_torch():
    given, theta = mixture(), points(3, 2, 4, 2)
    found = given.log_prob(theta)
    theirs = MixtureSameFamily(Categorical(given.weights_BK), MultivariateNormal(given.means_BKD,
                                                                                 given.covariances_BKDD))
    torch.testing.assert_close(found, theirs.log_prob(theta.transpose(0, 1)).T)
    for b in range(2):
        for s in range(4):
            total = 0.0
            for k in range(3):
                gap, cov = theta[b, s] - given.means_BKD[b, k], given.covariances_BKDD[b, k]
                square = float(gap @ torch.linalg.inv(cov) @ gap)
                total += float(given.weights_BK[b, k]) * math.exp(-square / 2) / (
                    2 * math.pi * math.sqrt(float(torch.linalg.det(cov))))
            assert abs(float(found[b, s]) - math.log(total)) < 1e-10


def attended(part, h, source, null):
    """One problem, one head and one component at a time."""
    q, k, v = part.query(h), part.key(source), part.value(source)
    size = q.shape[1] // part.heads
    out = torch.zeros_like(q)
    for i in range(len(h)):
        for head in range(part.heads):
            own = slice(head * size, (head + 1) * size)
            terms = [torch.exp(q[i, own] @ k[j, own] / math.sqrt(size)) for j in range(len(source))]
            total = sum(terms) + float(null)
            out[i, own] = sum(t * v[j, own] for j, t in enumerate(terms)) / total
    return part.out(out)


def slow(module, weights, means, cholesky, data):
    """The posterior of one problem by loops: weights, means, Cholesky factors."""
    D = means.shape[-1]
    rows = []
    for w, mean, factor in zip(weights, means, cholesky):
        rest = [factor[i, j] for i in range(D) for j in range(i)]
        rows.append(torch.stack([w.log(), *mean, *factor.diagonal().log(), *rest]))
    h, z = module.embed(torch.stack(rows)), module.embed_data(data)
    for block in module.blocks:
        normed = block.norms[0](h)
        h = h + attended(block.among, normed, normed, False)
        h = h + attended(block.data, block.norms[1](h), z, True)
        h = h + block.down(torch.nn.functional.gelu(block.up(block.norms[2](h))))
    logits, new_means, factors = [], [], []
    for k, raw in enumerate(module.unembed(h)):
        new = torch.zeros(D, D, dtype=torch.float64)
        rest = iter(raw[1 + 2 * D :])
        for i in range(D):
            for j in range(i):
                new[i, j] = next(rest)
            new[i, i] = raw[1 + D + i].exp()
        residual = module.config.output == "residual"
        logits.append(raw[0] + weights[k].log() if residual else raw[0])
        new_means.append(means[k] + cholesky[k] @ raw[1 : 1 + D] if residual else raw[1 : 1 + D])
        factors.append(cholesky[k] @ new if residual else new)
    weights = torch.stack(logits).exp()
    return weights / weights.sum(), torch.stack(new_means), torch.stack(factors)


@pytest.mark.parametrize("output", OUTPUTS)
def test_the_network_agrees_with_loops_forward_and_gradient(output):
    module, prior = stirred(output=output, dim=3), mixture(B=1, D=3)
    data = points(B=1, N=3).requires_grad_()
    found = module(prior, data)
    fast = (found.weights_BK[0], found.means_BKD[0], found.cholesky_BKDD[0])
    loop = slow(module, prior.weights_BK[0], prior.means_BKD[0], prior.cholesky_BKDD[0], data[0])
    same(fast, loop)
    weighed = [sum((torch.arange(v.numel()).view_as(v) * v).sum() for v in values) for values in (fast, loop)]
    one, two = (torch.autograd.grad(v, data)[0] for v in weighed)
    torch.testing.assert_close(one, two)


@pytest.mark.parametrize("output", OUTPUTS)
def test_the_losses_have_the_right_gradient(output):
    module, theta, data = stirred(output=output), points(3, 2, 1, 2)[:, 0], points(N=2)
    prior = mixture(K=2)

    def both(log_weights, means, data, bias):
        module.embed[0].bias = bias
        return tuple(module.losses(Simulated(prior._replace(log_weights_BK=log_weights, means_BKD=means), theta, data)))

    inputs = [v.clone().requires_grad_() for v in (prior.log_weights_BK, prior.means_BKD, data)]
    assert torch.autograd.gradcheck(both, (*inputs, module.embed[0].bias))


@pytest.mark.parametrize("output", OUTPUTS)
def test_components_keep_their_order_and_data_have_none(output):
    module, prior, data, order = stirred(output=output), mixture(), points(), torch.tensor([2, 0, 1])
    found = module(prior, data)
    same(module(Mixture(*(v[:, order] for v in prior)), data), [v[:, order] for v in found])
    same(module(prior, data[:, [3, 1, 4, 0, 2]]), found)


def test_masked_data_are_absent_and_their_number_is_seen():
    module, prior, data = stirred(), mixture(), points()
    mask = torch.tensor([[True, True, False, True, False], [True, True, False, True, False]])
    padded = data.masked_fill(~mask[..., None], math.nan)
    found = module(prior, data[:, [0, 1, 3]])
    same(module(prior, padded, mask), found)
    same(module(prior, data, torch.zeros_like(mask)), module(prior, data[:, :0]))
    twice = module(prior, data[:, [0, 1, 3, 0, 1, 3]])
    assert float((twice.means_BKD - found.means_BKD).abs().min().detach()) > 1e-4


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_component_without_weight_is_absent(output):
    module, prior, data = stirred(output=output), mixture(), points()
    weights = torch.cat([prior.weights_BK, torch.zeros(2, 1, dtype=torch.float64)], 1)
    more = Mixture.of(weights, torch.cat([prior.means_BKD, torch.full((2, 1, 2), 9.0).double()], 1),
                      torch.cat([prior.cholesky_BKDD, torch.eye(2).double().expand(2, 1, 2, 2)], 1))
    found = module(more, data)
    same([v[:, :3] for v in found], module(prior, data))
    assert bool((found.weights_BK[:, 3] == 0).all())
    losses = module.losses(Simulated(more, points(3, 2, 1, 2)[:, 0], data))
    (losses.posterior + losses.prior).backward()
    assert all(bool(p.grad.isfinite().all()) for p in module.parameters())


def test_untrained_residual_outputs_give_the_prior_back():
    module, prior = DistributionTransformer(2, 1, Config(**SMALL, output="residual"), draws()).double(), mixture()
    for data in (points(), points()[:, :0]):
        same(module(prior, data), prior, 1e-12)


def test_untrained_blocks_are_the_identity():
    module, prior = DistributionTransformer(2, 1, Config(**SMALL), draws()).double(), mixture()
    same(module(prior, points()), module.reconstruct(prior), 1e-12)


def test_flattening_is_undone():
    prior = mixture(D=3)
    same(unflatten(flatten(prior), prior), prior, 1e-12)
    same(unflatten(torch.zeros_like(flatten(prior)), prior, residual=True), prior, 1e-12)


@pytest.mark.parametrize(("K", "N"), [(1, 1), (4, 7)])
def test_sizes_are_free_and_one_module_takes_any_prior(K, N):
    prior, data = mixture(K=K), points(N=N)
    kept = [v.clone() for v in (*prior, data)]
    found = stirred()(prior, data)
    torch.testing.assert_close(found.weights_BK.sum(-1), torch.ones(2, dtype=torch.float64))
    assert found.means_BKD.shape == (2, K, 2) and bool((found.cholesky_BKDD.triu(1) == 0).all())
    assert all(torch.equal(a, b) for a, b in zip(kept, (*prior, data)))


def test_float32_agrees_with_float64():
    prior, data, theta = mixture(), points(), points(3, 2, 4, 2)
    double = stirred()(prior, data).log_prob(theta)
    single = stirred().float()(Mixture(*(v.float() for v in prior)), data.float()).log_prob(theta.float())
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-4)


def test_samples_have_the_moments_of_the_mixture():
    given = mixture()
    drawn = given.sample(20000, draws(5))
    assert torch.equal(drawn, given.sample(20000, draws(5)))
    mean = torch.einsum("bk,bkd->bd", given.weights_BK, given.means_BKD)
    torch.testing.assert_close(drawn.mean(1), mean, rtol=0, atol=0.05)
    gap = given.means_BKD - mean[:, None]
    around = given.covariances_BKDD + gap[..., :, None] * gap[..., None, :]
    cov = torch.einsum("bk,bkde->bde", given.weights_BK, around)
    torch.testing.assert_close(torch.stack([torch.cov(v.T) for v in drawn]), cov, rtol=0, atol=0.1)


def line(count, generator):
    """Two components on a line and one noisy look at theta, or none."""
    prior = Mixture(torch.full((count, 2), 0.5).log(), torch.randn(count, 2, 1, generator=generator),
                    0.5 * torch.ones(count, 2, 1, 1))
    theta = prior.sample(1, generator)[:, 0]
    data = theta[:, None] + 0.2 * torch.randn(count, 1, 1, generator=generator)
    return Simulated(prior, theta, data, torch.rand(count, 1, generator=generator) < 0.8)


@pytest.mark.parametrize(("output", "prior_weight"), [("free", 1.0), ("residual", 0.0)])
def test_training_beats_the_prior_and_repeats(output, prior_weight):
    def run(steps):
        g = draws()
        module = DistributionTransformer(1, 1, Config(width=8, heads=2, layers=1, hidden_dim=16, embed_dim=16,
                                                      output=output, prior_weight=prior_weight), g)
        return module, list(train(module, line, steps=steps, batch=64, lr=2e-2, generator=g))

    module, losses = run(40)
    assert run(2)[1] == run(2)[1]
    with torch.no_grad():
        given = line(500, draws(9))
        prior = float(-given.prior.log_prob(given.theta_BD[:, None]).mean())
        found = module.losses(given)
    assert float(found.posterior) < prior - 0.2
    if output == "free":
        assert float(found.prior) < float(losses[0].prior)


def test_the_prior_loss_is_weighed():
    def left(prior_weight):
        module = DistributionTransformer(1, 1, Config(**{**SMALL, "layers": 1}, prior_weight=prior_weight), draws())
        *_, last = train(module, line, steps=15, batch=16, lr=1e-2, generator=draws())
        return float(last.prior)

    assert left(5.0) < left(0.0)


def test_refuses():
    module, prior, data = stirred(), mixture(), points()
    with pytest.raises(ValueError, match="the prior has 3 columns; expected 2"):
        module(mixture(D=3), data)
    with pytest.raises(ValueError, match=r"data has shape \(2, 5, 2\); expected \(2, points, 1\)"):
        module(prior, points(X=2))
    with pytest.raises(ValueError, match=r"mask has shape \(2, 4\)"):
        module(prior, data, torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="point of the simplex"):
        Mixture.of(1.00015 * prior.weights_BK, prior.means_BKD, prior.cholesky_BKDD)
    Mixture.of(1.00005 * prior.weights_BK, prior.means_BKD, prior.cholesky_BKDD)  # rounding of float32
    with pytest.raises(ValueError, match="lower triangular"):
        Mixture.of(prior.weights_BK, prior.means_BKD, prior.cholesky_BKDD.mT)
    with pytest.raises(ValueError, match="shapes are"):
        Mixture.of(prior.weights_BK, prior.means_BKD[..., :1], prior.cholesky_BKDD)
    with pytest.raises(ValueError, match="dim is 0"):
        DistributionTransformer(0, 1)
    with pytest.raises(ValueError, match="multiple of heads, 3"):
        Config(heads=3)
    for wrong in ({"layers": 0}, {"output": "both"}, {"prior_weight": -1.0}):
        with pytest.raises(ValueError, match="expected"):
            Config(**wrong)


def test_example_runs():
    given = example(draws())
    assert given["module"](given["prior"], given["data_BNX"]).covariances_BKDD.shape == (2, 3, 2, 2)
