import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.signal import fftconvolve
from torch.autograd import gradcheck
from torch.distributions import MultivariateNormal

from mixwell.density.networks._mixtures import (
    choose_nodes,
    convolve,
    densities,
    evaluate,
    fit_relu,
    reduce_mixture,
)
from mixwell.density.networks.mixture_convolution import (
    Config,
    Convolution,
    Mixture,
    MixtureConvolutionNet,
    ScaleNorm,
    example,
)

SMALL = Config(channels=(2,), components=(4,), kernel_components=3)


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def made(items=2, channels=2, count=9, dim=2, seed=0, positive=False, spread=2.0):
    g = draws(seed)
    weights = torch.randn(items, channels, count, generator=g, dtype=torch.float64)
    positions = spread * torch.randn(items, channels, count, dim, generator=g, dtype=torch.float64)
    factors = 0.5 * torch.randn(items, channels, count, dim, dim, generator=g, dtype=torch.float64)
    covariances = factors @ factors.mT + 0.3 * torch.eye(dim, dtype=torch.float64)
    return Mixture(weights.abs() + 0.1 if positive else weights, positions, covariances)


def net(config=SMALL, dim=2, channels=2, classes=3):
    return MixtureConvolutionNet(channels, classes, dim, config, draws()).double().eval()


def parts(mixture):
    return [p.clone().requires_grad_() for p in mixture]


def moments(mixture):
    a, b, c = mixture
    mass = a.sum(-1)
    second = (a[..., None, None] * (c + b[..., None] * b[..., None, :])).sum(2)
    return mass, (a[..., None] * b).sum(2), second


def same(one, two, **tolerance):
    for p, q in zip(one, two):
        torch.testing.assert_close(p, q, **tolerance)


def test_convolution_agrees_with_a_grid():
    f, k = made(1, 1, 5), made(1, 1, 4, seed=1, spread=1.0)
    step, axis = 0.1, torch.arange(-12, 12.05, 0.1, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)[None, None]
    on_f, on_k, found = (evaluate(m, grid).view(len(axis), -1).numpy() for m in (f, k, convolve(f, k)))
    wanted = fftconvolve(on_f, on_k, mode="same") * step**2
    assert np.abs(wanted).max() > 0.1 and np.abs(found - wanted).max() < 1e-3


@pytest.mark.parametrize("dim", [2, 3])
def test_convolution_agrees_with_loops(dim):
    data, kernel = made(2, 3, 2, dim), made(4, 3, 5, dim, seed=1)
    found = convolve(data, kernel)
    assert found.weights_BCN.shape == (2, 4, 30)
    pairs = [(i, n, k) for i in range(3) for n in range(2) for k in range(5)]
    for b, o in ((0, 0), (1, 3)):
        wanted = [[data[p][b, i, n] + kernel[p][o, i, k] for i, n, k in pairs] for p in (1, 2)]
        wanted.insert(0, [data[0][b, i, n] * kernel[0][o, i, k] for i, n, k in pairs])
        same([p[b, o] for p in found], [torch.stack(p) for p in wanted])


@pytest.mark.parametrize("dim", [2, 3])
def test_values_agree_with_torchs_normal_far_from_the_origin_too(dim):
    m, x = made(dim=dim), made(dim=dim, seed=3).positions_BCND
    normal = MultivariateNormal(m.positions_BCND[:, :, None], m.covariances_BCNDD[:, :, None])
    wanted = normal.log_prob(x[..., None, :]).exp()
    torch.testing.assert_close(densities(*m[1:], x), wanted)
    torch.testing.assert_close(densities(m.positions_BCND + 1e4, m.covariances_BCNDD, x + 1e4), wanted, rtol=1e-6,
                               atol=1e-9)
    single = densities(m.positions_BCND.float(), m.covariances_BCNDD.float(), x.float())
    torch.testing.assert_close(single.double(), wanted, rtol=1e-3, atol=1e-6)


def slow_relu(mixture, slack):
    a, b, c = mixture
    rows = []
    for item in range(len(a)):
        for channel in range(a.shape[1]):
            w, m, s = a[item, channel], b[item, channel], c[item, channel]
            coarse = [v if v > 0 else slack * w.abs().max() for v in w]
            for i in range(len(w)):
                bumps = [MultivariateNormal(m[j], s[j]).log_prob(m[i]).exp() for j in range(len(w))]
                value = sum(v * e for v, e in zip(w, bumps))
                above = sum(v * e for v, e in zip(coarse, bumps))
                rows.append(coarse[i] * value.clamp(min=0) / (above if above > 0 else 1.0))
    return torch.stack(rows).view_as(a)


@pytest.mark.parametrize("slack", [0.0, 0.1])
def test_relu_agrees_with_loops_forward_and_gradient(slack):
    given = parts(made(1, 2, 5))
    fast, slow = fit_relu(Mixture(*given), slack).weights_BCN, slow_relu(given, slack)
    torch.testing.assert_close(fast, slow)
    assert 0 < int((fast == 0).sum()) < fast.numel()
    probe = torch.arange(1.0, 11.0, dtype=torch.float64).view_as(fast)
    for one, two in zip(*(torch.autograd.grad((v * probe).sum(), given) for v in (fast, slow))):
        torch.testing.assert_close(0.5 * (one + one.mT) if one.ndim == 5 else one,
                                   0.5 * (two + two.mT) if two.ndim == 5 else two)


def test_relu_keeps_a_positive_mixture_and_scales_with_it():
    m = made(positive=True)
    same(fit_relu(m, 0.1), m)
    m = made()
    torch.testing.assert_close(fit_relu(m._replace(weights_BCN=7 * m.weights_BCN), 0.1).weights_BCN,
                               7 * fit_relu(m, 0.1).weights_BCN)


def test_relu_lies_between_nothing_and_the_positive_part_and_nearer_to_the_truth():
    m, coarse = made(8, 1), made(8, 1)
    coarse = coarse._replace(weights_BCN=coarse.weights_BCN.relu())
    fitted = fit_relu(m)
    assert bool((fitted.weights_BCN >= 0).all()) and bool((fitted.weights_BCN <= coarse.weights_BCN + 1e-12).all())
    axis = torch.linspace(-7, 7, 41, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis).expand(8, 1, -1, -1)
    error = [(evaluate(v, grid) - evaluate(m, grid).relu()).square().mean() for v in (fitted, coarse)]
    assert error[0] < 0.5 * error[1]


def test_relu_of_a_negative_mixture_is_nothing():
    m = made(positive=True)
    m = m._replace(weights_BCN=-m.weights_BCN)
    assert float(fit_relu(m, 0.1).weights_BCN.abs().max()) == 0


def slow_step(group, count):
    """One EM step on a list of (weight, position, covariance), weights above 0, by hand."""
    clusters = [[i] for i in range(len(group))]
    while len(clusters) > count:
        gaps = {(x, y): min(float((group[i][1] - group[j][1]).detach().square().sum()) for i in clusters[x]
                            for j in clusters[y]) for y in range(len(clusters)) for x in range(y + 1, len(clusters))}
        x, y = min(gaps, key=gaps.get)
        clusters[y] += clusters.pop(x)
    kept = [group[max(c, key=lambda i: float(group[i][0].detach()))] for c in clusters]
    total, sums = sum(g[0] for g in group), [[0, 0, 0] for _ in kept]
    for a, b, c in group:
        kl = [torch.distributions.kl_divergence(MultivariateNormal(b, c), MultivariateNormal(n, s)) for _, n, s in kept]
        near = [k for k in range(len(kept)) if kl[k] < 0.5 or kl[k] == min(kl)]
        logits = torch.stack([kept[k][0].log() - 4 * a / total * kl[k] for k in near])
        for k, r in zip(near, logits.softmax(0)):
            for p, v in enumerate((1.0, b, c + b[:, None] * b)):
                sums[k][p] = sums[k][p] + r * a * v
    means = [s[1] / s[0] for s in sums]
    return [(s[0], m, s[2] / s[0] - m[:, None] * m) for s, m in zip(sums, means)]


def slow_reduce(a, b, c, count, size):
    """One mixture, by recursion."""
    low, high, codes = b.detach().amin(0), b.detach().amax(0), []
    for p in b.detach():
        cell = ((p - low) / (high - low) * 65535).round().long().tolist()
        codes.append(sum(((v >> bit) & 1) << (bit * len(cell) + d) for d, v in enumerate(cell) for bit in range(16)))
    rows = [(a[i], b[i], c[i]) for i in sorted(range(len(a)), key=codes.__getitem__) if a[i] > 0]
    leaves = [[] for _ in range(2 ** math.ceil(math.log2(len(a) / size)))]
    for rank, row in enumerate(rows):
        leaves[rank * len(leaves) // len(rows)].append(row)

    def node(leaves):
        if len(leaves) == 1:
            return {"own": leaves[0], "children": ()}
        children = [node(leaves[: len(leaves) // 2]), node(leaves[len(leaves) // 2 :])]
        group = children[0]["own"] + children[1]["own"]
        return {"own": slow_step(group, size) if len(group) > size else group, "children": children}

    taken = [node(leaves)]
    while len(taken) < count // size:
        inner = [t for t in taken if t["children"]]
        split = max(inner, key=lambda t: float(sum(g[0].detach() for g in t["own"])) if len(t["own"]) == size else -1.0)
        taken = [t for t in taken if t is not split] + list(split["children"])
    return [g for t in taken for g in t["own"]]


@pytest.mark.parametrize(("dim", "count", "size", "empty"), [(2, 6, 2, 0), (3, 4, 4, 0), (2, 3, 1, 0), (2, 4, 2, 4)])
def test_reduction_agrees_with_loops_forward_and_gradient(dim, count, size, empty):
    m = made(1, 1, 13, dim, positive=True, spread=1.0)
    m.weights_BCN[..., 3 : 3 + empty] = 0
    given = parts(m)
    found = reduce_mixture(Mixture(*given), count, size)
    assert found.weights_BCN.shape == (1, 1, count)
    slow = [torch.stack(p) for p in zip(*slow_reduce(*(p[0, 0] for p in given), count, size))]
    order, other = found.weights_BCN[0, 0].argsort(), slow[0].argsort()
    found = [p[0, 0][order] for p in found]
    same(found, [p[other] for p in slow])
    grads = [torch.autograd.grad(sum((p.sin() * p).sum() for p in v), given) for v in (found, slow)]
    for one, two in zip(*grads):
        torch.testing.assert_close(one + one.mT if one.ndim == 5 else one, two + two.mT if two.ndim == 5 else two)


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_reduction_keeps_mass_mean_and_covariance_exactly(dim, size):
    m = fit_relu(made(3, 2, 21, dim))
    assert bool((m.weights_BCN == 0).any())
    for count in (4, 8, 20):
        found = reduce_mixture(m, count, size)
        assert found.weights_BCN.shape == (3, 2, count)
        same(moments(found), moments(m), rtol=1e-12, atol=1e-12)
        assert bool((torch.linalg.eigvalsh(found.covariances_BCNDD) > 0.2).all())


def test_reduction_to_as_many_changes_nothing_and_to_one_takes_the_moments():
    m = made(positive=True)
    same(reduce_mixture(m, 9, 1), m, rtol=0, atol=0)
    same(reduce_mixture(m, 12, 4), m, rtol=0, atol=0)
    a, b, c = reduce_mixture(m, 1, 1)
    mass, first, second = moments(m)
    mean = first / mass[..., None]
    torch.testing.assert_close(b[:, :, 0], mean)
    torch.testing.assert_close(c[:, :, 0], second / mass[..., None, None] - mean[..., None] * mean[..., None, :])
    torch.testing.assert_close(a[..., 0], mass)


def test_an_empty_mixture_stays_empty_with_finite_gradients():
    m = made(positive=True)
    m.weights_BCN[0] = 0
    given = parts(m)
    found = reduce_mixture(Mixture(*given), 4)
    assert not found.weights_BCN[0].any() and bool((found.weights_BCN[1] > 0).all())
    grads = torch.autograd.grad(sum(p.square().sum() for p in found), given)
    assert all(bool(p.isfinite().all()) for p in (*found, *grads))


def test_full_heavy_nodes_give_way_first():
    mass = torch.tensor([[10.0, 6, 4, 1, 5, 3, 1]])
    weights = torch.stack([mass / 2, mass / 2], -1)
    assert choose_nodes(weights, 3).tolist() == [[2, 3, 4]]
    weights[0, 1] = torch.tensor([6.0, 0.0])
    assert choose_nodes(weights, 3).tolist() == [[1, 5, 6]]
    assert choose_nodes(weights, 1).tolist() == [[0]] and choose_nodes(weights, 4).tolist() == [[3, 4, 5, 6]]


def test_gradients():
    m = made(1, 1, 5)
    assert gradcheck(lambda *p: fit_relu(Mixture(*p), 0.1).weights_BCN, parts(m))
    assert gradcheck(lambda *p: tuple(convolve(Mixture(*p), made(1, 1, 2, seed=1))), parts(m), fast_mode=True)
    full = made(1, 1, 5, positive=True, spread=0.5)
    assert gradcheck(lambda *p: tuple(reduce_mixture(Mixture(*p), 2)), parts(full))


def test_gradient_of_the_network_reaches_every_parameter():
    model = net(replace(SMALL, kernel_components=2))
    names = [n for n, _ in model.named_parameters()]
    mixture = made(1, 2, 4)

    def logits(*values):
        return torch.func.functional_call(model, dict(zip(names, values)), (mixture,))

    values = [p.detach().clone().requires_grad_() for p in model.parameters()]
    assert gradcheck(logits, values, fast_mode=True)
    grads = torch.autograd.grad(logits(*values).square().sum(), values)
    assert all(float(g.abs().max()) > 0 for g in grads)


@pytest.mark.parametrize("dim", [2, 3])
def test_a_shift_of_the_input_shifts_every_layer_and_no_logit(dim):
    model, m, shift = net(dim=dim), made(dim=dim), torch.arange(1.0, dim + 1, dtype=torch.float64)
    moved = m._replace(positions_BCND=m.positions_BCND + shift)
    torch.testing.assert_close(model(moved), model(m))
    layer = model.convolutions[0]
    one, two = (reduce_mixture(fit_relu(layer(v)), 4) for v in (m, moved))
    same(two, one._replace(positions_BCND=one.positions_BCND + shift))


def test_sizes_of_space_and_of_values_change_no_logit():
    model, m = net(), made()
    for scaled in (Mixture(m.weights_BCN, 3 * m.positions_BCND, 9 * m.covariances_BCNDD),
                   m._replace(weights_BCN=5 * m.weights_BCN)):
        torch.testing.assert_close(model(scaled), model(m))


def test_order_of_components_and_company_of_items_change_no_logit():
    model, m = net(), made()
    order = torch.randperm(9, generator=draws(4))
    torch.testing.assert_close(model(Mixture(*(p[:, :, order] for p in m))), model(m))
    torch.testing.assert_close(model(Mixture(*(p[1:] for p in m))), model(m)[1:])


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("count", [1, 5])
def test_kernels_start_as_a_centre_and_a_ring(dim, count):
    config = Config(kernel_components=count, radius=2.0)
    layer = Convolution(3, 2, dim, config, draws()).double()
    a, b, c = layer.kernels()
    assert a.shape == (2, 3, count) and c.shape == (2, 3, count, dim, dim)
    torch.testing.assert_close(b.norm(dim=-1)[0, 0], torch.tensor([0.0] + [2.0] * (count - 1), dtype=torch.float64))
    if dim == 2:  # evenly spread
        torch.testing.assert_close(b[:, :, 1:].sum(-2), torch.zeros(2, 3, 2, dtype=torch.float64), atol=1e-6, rtol=0)
    with torch.no_grad():
        layer.factors.zero_()
    torch.testing.assert_close(layer.kernels().covariances_BCNDD[1, 2, 0],
                               0.05 * 4 / 9 * torch.eye(dim, dtype=torch.float64))
    m = made(channels=3, dim=dim)
    torch.testing.assert_close(layer(m).weights_BCN.sum(-1), m.weights_BCN.sum(-1) @ a.sum(-1).T / 3)


def test_scale_norm_follows_the_mean_variance_in_training_alone():
    norm, m = ScaleNorm().double(), made(40)
    variance = float(m.covariances_BCNDD.diagonal(dim1=-2, dim2=-1).mean())
    found = norm(m)
    assert float(norm.variance) == pytest.approx(1 + 0.04 * (variance - 1))
    torch.testing.assert_close(found.covariances_BCNDD, m.covariances_BCNDD / norm.variance)
    torch.testing.assert_close(found.positions_BCND, m.positions_BCND / norm.variance.sqrt())
    norm.eval()(m)
    assert float(norm.variance) == pytest.approx(1 + 0.04 * (variance - 1))
    for _ in range(300):
        norm.train()(m)
    assert float(norm.variance) == pytest.approx(variance, rel=1e-3)


def test_every_option_reaches_the_network():
    m = made(count=6)
    base = net()(m)
    for options in ({"channels": (3,)}, {"channels": (2, 2), "components": (4, 4)}, {"components": (6,)},
                    {"kernel_components": 4}, {"radius": 1.5}, {"node_size": 1}, {"slack": 0.5}):
        other = net(replace(SMALL, **options))(m)
        assert other.shape == base.shape and bool(other.isfinite().all()) and not torch.allclose(other, base)


def test_same_generator_same_bits_and_inputs_untouched():
    m = made()
    kept = [p.clone() for p in m]
    torch.testing.assert_close(net()(m), net()(m), rtol=0, atol=0)
    same(m, kept, rtol=0, atol=0)
    other = MixtureConvolutionNet(2, 3, 2, SMALL, draws(1)).double().eval()
    assert not torch.allclose(other(m), net()(m))


def test_float32_agrees_with_float64():
    m = made()
    single = net().float()(Mixture(*(p.float() for p in m)))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), net()(m), rtol=1e-4, atol=1e-4)


def test_refuses():
    for wrong in ({"channels": (4,)}, {"components": (32, 0)}, {"components": (32, 9)}, {"kernel_components": 0},
                  {"node_size": 0}, {"radius": 0.0}, {"slack": -0.1}):
        with pytest.raises(ValueError, match="expected"):
            Config(**wrong)
    m = made()
    with pytest.raises(ValueError, match=r"expected \(B, 1, N\), \(B, 1, N, 2\)"):
        net(channels=1)(m)
    with pytest.raises(ValueError, match="not positive definite"):
        net()(m._replace(covariances_BCNDD=-m.covariances_BCNDD))
    with pytest.raises(ValueError, match="expected none below 0"):
        reduce_mixture(m, 4)
    with pytest.raises(ValueError, match="n_components is 3; expected a multiple of node_size 2"):
        reduce_mixture(fit_relu(m), 3)
    with pytest.raises(ValueError, match="dim, channels_in, n_classes are 4, 1, 2"):
        MixtureConvolutionNet(1, 2, 4)


def test_example_runs():
    given = example(draws())
    assert given["module"](given["mixture"]).shape == (2, 3)
