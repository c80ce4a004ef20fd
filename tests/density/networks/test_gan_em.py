"""GAN-EM: losses against loops over rows and outputs, what each step may move, groups found, and refusals."""

import copy
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from mixwell.density.networks.gan_em import (
    AdversarialMixture,
    Config,
    Networks,
    e_step,
    example,
    fake_loss,
    generator_loss,
    m_step,
    real_loss,
)


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


LOGITS = torch.randn(7, 4, generator=draws(), dtype=torch.float64)
W = torch.rand(7, 3, generator=draws(1), dtype=torch.float64)
K = torch.tensor([0, 2, 1, 1, 0, 2, 2])


def bce(logit, target):
    """Binary cross-entropy of a sigmoid output."""
    p = 1 / (1 + math.exp(-logit))
    return -math.log(p if target else 1 - p)


def test_losses_are_weighted_binary_cross_entropies():
    real = fake = made = 0.0
    for n in range(7):
        for c in range(4):
            logit = float(LOGITS[n, c])
            real += (float(W[n, c]) if c < 3 else 2.0) * bce(logit, c < 3) / 28
            fake += bce(logit, c == 3) / 28
            made += bce(logit, c == int(K[n])) / 28
    assert float(real_loss(LOGITS, W)) == pytest.approx(real)
    assert float(fake_loss(LOGITS)) == pytest.approx(fake)
    assert float(generator_loss(LOGITS, K)) == pytest.approx(made)


@pytest.mark.parametrize("loss", [lambda t: real_loss(t, W), fake_loss, lambda t: generator_loss(t, K)])
def test_gradients_agree_with_finite_differences(loss):
    assert torch.autograd.gradcheck(loss, LOGITS.clone().requires_grad_())


def test_steps_move_their_own_networks_alone():
    config = Config(n_components=3, gan_steps=2, e_steps=2, batch=8, hidden=8)
    x, w = torch.randn(20, 2, generator=draws(2)), torch.full((20, 3), 1 / 3)
    networks = Networks(2, config, draws(3))
    before = copy.deepcopy(networks.state_dict())

    def moved():
        now = networks.state_dict()
        return {name.partition(".")[0] for name in before if not torch.equal(before[name], now[name])}

    e_step(networks, config, 1e-3, draws())
    assert moved() == {"encoder"}
    before = copy.deepcopy(networks.state_dict())
    m_step(networks, x, w, config, 1e-3, draws())
    assert moved() == {"generator", "discriminator"}


def test_the_encoder_tells_what_the_generator_makes():
    config = Config(e_steps=150, hidden=16, batch=32)
    networks = Networks(2, config, draws(1))
    with torch.no_grad():
        networks.generator[4].bias.zero_()
        networks.generator[0].weight[:, 0] += 1.0
    first = e_step(networks, Config(e_steps=1, hidden=16), 1e-2, draws())
    assert e_step(networks, config, 1e-2, draws()) < 0.2 < first
    made, k = networks.draw(400, draws(4))
    assert (networks.encoder(made).argmax(1) == k).float().mean() > 0.95
    assert abs(k.float().mean() - 0.5) < 0.1
    torch.testing.assert_close(networks.draw_of(k[:5], draws(5)), networks.draw_of(k[:5], draws(5)))


def test_groups_are_found_and_drawn():
    made = example(draws())
    model, x = made["estimator"].fit(made["X"]), made["X"]
    truth = x[:, 0] > 4
    assert adjusted_rand_score(truth, model.labels_) > 0.9
    assert (model.predict(x) == model.labels_).all() and model.encoder_losses_[-1] < 0.3
    drawn, k = model.sample(400)
    sides = [drawn[k == c, 0].mean() for c in (0, 1)]
    assert abs(sides[0] - sides[1]) > 4


def test_the_state_decides_all_draws():
    options = {"rounds": 1, "gan_steps": 2, "e_steps": 2, "batch": 8, "hidden": 4}
    x = torch.randn(20, 2, generator=draws(6)).double().numpy()
    one, same, other = (AdversarialMixture(random_state=s, **options).fit(x).predict_proba(x) for s in (3, 3, 4))
    assert (one == same).all() and (one != other).any()


def test_refuses():
    for wrong in ({"n_components": 0}, {"rounds": 0}, {"gan_steps": 0}, {"e_steps": 0}, {"batch": 0}, {"hidden": 0},
                  {"noise_dim": 0}, {"lr": 0.0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} is 0.*; expected above 0"):
            AdversarialMixture(**wrong).fit(np.zeros((4, 2)))
