import math

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture

from mixwell.density.latent.slot_mixture import Config, SlotMixture, example


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def made(**options):
    own = {"density": "complete"} if options.get("mode") == "plain" else {}
    config = Config(**{"n_slots": 2, "iterations": 3, "hidden_dim": 8, **own, **options})
    return SlotMixture(3, config, draws()).double()


def points(sets=2, count=12, seed=1):
    return torch.randn(sets, count, 3, generator=draws(seed), dtype=torch.float64)


def start(sets=2, slots=2):
    return torch.randn(sets, slots, 3, generator=draws(2), dtype=torch.float64)


def slow(module, x, mean):
    """One set, by loops over features and slots."""
    config, K, N = module.config, len(mean), len(x)
    learned = config.mode == "learned"
    var = [(2 * module.start_log_scale_D).exp() for _ in range(K)]
    mean, pi = list(mean), [torch.tensor(1 / K, dtype=torch.float64)] * K
    keys = values = list(x)
    if learned:
        keys = [module.to_key(module.norm_x(v)) for v in x]
        values = [module.to_value(module.norm_x(v)) for v in x]
    for i in range(config.iterations + (config.gradient == "last")):
        if config.gradient == "last" and i == config.iterations:
            mean, var, pi = ([v.detach() for v in w] for w in (mean, var, pi))
        rows = []
        for k in range(K):
            centre, width = mean[k], var[k]
            if learned:
                normed = module.norm_slot(torch.cat([mean[k], 0.5 * var[k].log()]))
                mean[k] = normed[:3]
                centre, width = module.to_query(normed[:3]), (2 * module.to_query(normed[3:])).exp()
            square = torch.stack([((v - centre) ** 2 / width).sum() for v in keys])
            if config.density == "tempered":
                rows.append(pi[k] * torch.exp(-square / math.sqrt(3)))
            else:
                rows.append(pi[k] * torch.exp(-0.5 * square) / torch.sqrt((2 * math.pi * width).prod()))
        joint = torch.stack(rows)
        gamma = joint / joint.sum(0)
        for k in range(K):
            mass = gamma[k].sum()
            new = sum(gamma[k, n] * values[n] for n in range(N)) / mass
            if learned:
                g = module.gru(new[None], mean[k][None])[0]
                new = g + module.mlp(module.norm_mlp(g))
            var[k] = (sum(gamma[k, n] * (values[n] - new) ** 2 for n in range(N)) / mass).clamp(min=config.floor)
            mean[k], pi[k] = new, mass / N
    slots = torch.stack([torch.cat([m, 0.5 * v.log()]) for m, v in zip(mean, var)])
    return module.out(slots) if learned else slots


@pytest.mark.parametrize("mode", ["learned", "plain"])
@pytest.mark.parametrize("density", ["tempered", "complete"])
@pytest.mark.parametrize("gradient", ["unrolled", "last"])
def test_agrees_with_a_loop_forward_and_gradient(mode, density, gradient):
    module, x, mean = made(mode=mode, density=density, gradient=gradient), points(1), start(1)
    x.requires_grad_()
    fast, loop = module(x, start_BKD=mean).slots[0], slow(module, x[0], mean[0])
    torch.testing.assert_close(fast, loop)
    weight = torch.arange(float(fast.numel()), dtype=torch.float64).view_as(fast)
    one, two = (torch.autograd.grad((v * weight).sum(), x)[0] for v in (fast, loop))
    torch.testing.assert_close(one, two, rtol=1e-7, atol=1e-8)


def test_a_plain_step_is_scikit_learns():
    x, mean = points(1, 40), start(1)
    found = made(mode="plain", iterations=1, gradient="unrolled")(x, start_BKD=mean)
    theirs = GaussianMixture(2, covariance_type="diag", means_init=mean[0], precisions_init=np.ones((2, 3)),
                             weights_init=[0.5, 0.5], max_iter=1, reg_covar=0)
    with pytest.warns(Warning):
        theirs.fit(x[0].numpy())
    np.testing.assert_allclose(found.mean_BKD[0].detach(), theirs.means_, rtol=1e-9)
    np.testing.assert_allclose(found.variance_BKD[0].detach(), theirs.covariances_, rtol=1e-9)
    np.testing.assert_allclose(found.weights_BK[0].detach(), theirs.weights_, rtol=1e-9)


def test_the_likelihood_rises_at_every_plain_iteration():
    heights = made(mode="plain", iterations=12)(points(3, 30), start_BKD=start(3)).log_likelihood_BI
    assert heights.shape == (3, 13) and float(heights.diff(dim=-1).detach().min()) > -1e-12


def test_slots_hold_sizes_that_means_alone_cannot_tell():
    """Two clouds around one centre differ only in their spread, and each gets a slot of its own."""
    x = points(1, 400)
    x[:, :200] *= 0.05
    module = made(mode="plain", iterations=60)
    found = module(x, start_BKD=torch.tensor([[[0.0, 0, 0], [0.5, 0.5, 0.5]]], dtype=torch.float64))
    scales = found.slots[0, :, 3:].exp().mean(-1).sort().values.detach()
    np.testing.assert_allclose(scales, [0.05, 1.0], rtol=0.15)
    assert float(found.mean_BKD.detach().norm(dim=-1).max()) < 0.3


def test_slots_follow_the_order_of_their_starts_and_ignore_that_of_features():
    module, x, mean = made(), points(), start()
    found = module(x, start_BKD=mean)
    torch.testing.assert_close(module(x.flip(1), start_BKD=mean.flip(1)).slots, found.slots.flip(1))
    torch.testing.assert_close(found.resp_BKN.sum(1), torch.ones(2, 12, dtype=torch.float64))
    torch.testing.assert_close(found.weights_BK.sum(1), torch.ones(2, dtype=torch.float64))


def test_one_plain_slot_is_the_mean_and_the_spread():
    x = points()
    found = made(mode="plain", n_slots=1)(x, draws())
    torch.testing.assert_close(found.slots[:, 0, :3], x.mean(1))
    torch.testing.assert_close(found.slots[:, 0, 3:].exp(), x.std(1, correction=0))


def test_repeated_features_stop_at_the_floor():
    found = made(mode="plain", floor=1e-3)(torch.ones(1, 5, 3, dtype=torch.float64), draws())
    assert bool(found.slots.isfinite().all()) and float(found.variance_BKD.detach().max()) == pytest.approx(1e-3)


def test_same_generator_same_slots():
    module, x = made(), points()
    torch.testing.assert_close(module(x, draws(5)).slots, module(x, draws(5)).slots, rtol=0, atol=0)
    assert not torch.equal(module(x, draws(5)).slots, module(x, draws(6)).slots)
    torch.testing.assert_close(made()(x, draws(5)).slots, module(x, draws(5)).slots, rtol=0, atol=0)


def test_refuses():
    with pytest.raises(ValueError, match=r"x has shape \(2, 12, 2\); expected \(sets, features, 3\)"):
        made()(points()[..., :2])
    with pytest.raises(ValueError, match=r"start has shape \(2, 5, 3\)"):
        made()(points(), start_BKD=start(2, 5))
    for wrong in ({"mode": "hard"}, {"gradient": "none"}, {"density": "flat"}, {"n_slots": 0}, {"floor": 0.0}):
        with pytest.raises(ValueError, match="expected"):
            Config(**wrong)
    with pytest.raises(ValueError, match="dim is 0"):
        SlotMixture(0)


def test_example_runs():
    given = example(draws())
    assert given["module"](given["x_BND"], given["generator"]).slots.shape == (2, 3, 4)
