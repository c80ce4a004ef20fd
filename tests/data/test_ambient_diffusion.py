"""The loss against a loop, its minimum at the true denoiser, sampling, what samples are worth, refusals."""

import itertools
import math

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.data import ambient_diffusion as module
from mixwell.data.ambient_diffusion import Config, Noisy, Preconditioned, ambient_diffusion, sampled, worth


def fresh(seed=0):
    return torch.Generator().manual_seed(seed)


def shrink(std, factor=1.0):
    """The best denoiser of normals of this deviation, times a factor."""
    return lambda x, sigma: factor * x * (std**2 / (std**2 + sigma**2)).reshape(-1, *[1] * (x.ndim - 1))


def noised(count, level, seed=0, share=0.0, std=0.5):
    draws = fresh(seed)
    level_N = torch.full((count,), level)
    level_N[: int(share * count)] = 0
    clean = std * torch.randn(count, 1, generator=draws)
    return Noisy(clean + level_N[:, None] * torch.randn(count, 1, generator=draws), level_N)


@pytest.mark.parametrize("shape", [(6, 3), (6, 1, 2, 2)])
def test_the_loss_is_the_sum_written_down(shape):
    samples, level = torch.randn(shape, generator=fresh()), torch.tensor([0.0, 0.0, 0.3, 0.3, 5.0, 0.7])
    config = Config(log_mean=-0.5, log_std=0.8, data_std=0.6)
    found = ambient_diffusion(shrink(0.6), Noisy(samples, level), config, fresh(1))
    draws = fresh(1)
    sigmas = (-0.5 + 0.8 * torch.randn(6, generator=draws)).exp()
    noise = torch.randn(shape, generator=draws)
    total = 0.0
    for y, s, sigma, n in zip(samples.double(), level.tolist(), sigmas.tolist(), noise.double()):
        sigma = max(sigma, s)
        x = y + math.sqrt(sigma**2 - s**2) * n
        told = (1 - s**2 / sigma**2) * (0.36 / (0.36 + sigma**2)) * x + s**2 / sigma**2 * x
        weight = (sigma**2 + 0.36) / (sigma * 0.6) ** 2
        total += weight * float((told - y).square().mean()) / 6
    assert float(found) == pytest.approx(total, rel=1e-4)


def test_the_true_denoiser_of_clean_samples_is_best_even_from_noisy_ones_alone():
    data = noised(200_000, 0.4)
    config = Config(log_mean=0.0)
    losses = {factor: float(ambient_diffusion(shrink(0.5, factor), data, config, fresh(2)))
              for factor in (0.95, 1.0, 1.05)}
    assert losses[1.0] < min(losses[0.95], losses[1.05])
    noisy = float(ambient_diffusion(shrink(math.hypot(0.5, 0.4)), data, config, fresh(2)))
    assert noisy > losses[1.0]  # taking noisy samples for clean ones teaches another density


def test_at_its_own_level_a_sample_says_nothing_and_has_no_gradient():
    scale = torch.tensor(1.0, requires_grad=True)
    data = Noisy(torch.randn(5, 2, generator=fresh()), torch.full((5,), 1e3))
    loss = ambient_diffusion(lambda x, sigma: scale * x, data, Config(), fresh(1))
    loss.backward()
    assert loss.item() == 0 and scale.grad.item() == 0


def test_preconditioning_is_the_identity_without_noise_and_learns_with_a_gradient():
    network = Preconditioned(lambda x, log_sigma: torch.full_like(x, 2.0), data_std=0.7)
    x = torch.randn(4, 3, generator=fresh())
    for sigma in (1e-4, 0.5, 30.0):
        found = network(x, torch.full((4,), sigma))
        expected = 0.49 * x / (0.49 + sigma**2) + 2 * sigma * 0.7 / math.sqrt(0.49 + sigma**2)
        torch.testing.assert_close(found, expected)
    seen = []
    Preconditioned(lambda x, log_sigma: seen.append((x, log_sigma)) or x)(x, torch.full((4,), 2.0))
    torch.testing.assert_close(seen[0][0], x / math.sqrt(4.25))
    torch.testing.assert_close(seen[0][1], torch.full((4, 1), math.log(2) / 4))


def test_sampling_gives_back_the_density_of_its_denoiser():
    config = Config(steps=40, least=0.01, most=20.0, bend=5.0)
    sigma = module.schedule(config)
    assert len(sigma) == 41 and float(sigma[0]) == pytest.approx(20, rel=1e-5) and float(sigma[-1]) == 0
    assert float(sigma[1]) == pytest.approx((20**0.2 + (0.01**0.2 - 20**0.2) / 39) ** 5, rel=1e-4)
    found = sampled(shrink(0.5), torch.randn(4000, 1, generator=fresh()), config)
    assert float(found.std()) == pytest.approx(0.5, rel=0.05)


def test_information_of_one_normal_and_of_far_ones_is_known():
    one = torch.zeros(1, dtype=torch.float64)
    assert float(module.information(one, 0.5)) == pytest.approx(4, rel=1e-6)
    far = torch.tensor([-20.0, 20.0], dtype=torch.float64)
    half = torch.eye(2, dtype=torch.float64) / 2
    torch.testing.assert_close(module.information(far, 1.0), half, rtol=1e-4, atol=1e-6)
    told = worth(one, 0.5, 1.0, clean=10.0, noisy=30.0)
    assert float(told.bound) == pytest.approx(1 / (40 + 30 / 1.25))
    assert float(told.clean) == pytest.approx(10 + 30 * 0.2) and float(told.marginal) == pytest.approx(0.2)


def test_information_is_the_variance_of_the_score():
    means = torch.tensor([-0.6, 0.3, 1.0], dtype=torch.float64)
    draws = means[torch.randint(3, (200_000,), generator=fresh())]
    x = (draws + 0.7 * torch.randn(200_000, generator=fresh(1))).requires_grad_(False)
    part = torch.exp(-((x[:, None] - means) ** 2) / (2 * 0.49))
    score = part / part.sum(1, keepdim=True) * (x[:, None] - means) / 0.49
    torch.testing.assert_close(module.information(means, 0.7), score.T @ score / 200_000, rtol=0.03, atol=0.01)


def test_noisy_samples_alone_are_worth_less_with_every_component_and_a_few_clean_ones_mend_it():
    means = [0.5 * torch.arange(K, dtype=torch.float64) for K in range(1, 6)]
    alone = [worth(mean, 0.2, 0.8, clean=0.0, noisy=1000.0) for mean in means]
    for fewer, more in itertools.pairwise(alone):
        assert more.clean < 0.45 * fewer.clean
    mixed = worth(means[-1], 0.2, 0.8, clean=100.0, noisy=900.0)
    assert mixed.marginal > 30 * alone[-1].marginal and 100 < float(mixed.clean) < 1000
    step = worth(means[-1], 0.2, 0.8, clean=100.0, noisy=901.0).clean - mixed.clean
    assert float(mixed.marginal) == pytest.approx(float(step), rel=1e-2)


def test_refusals():
    with pytest.raises(MixwellError, match=r"levels of shape \(2,\) came for 3 samples"):
        ambient_diffusion(shrink(1.0), Noisy(torch.ones(3, 1), torch.zeros(2)), Config(), fresh())
    with pytest.raises(MixwellError, match="a sample has the noise -1"):
        ambient_diffusion(shrink(1.0), Noisy(torch.ones(1, 1), -torch.ones(1)), Config(), fresh())
    for samples, means in ((0.0, [0.0, 1.0]), (5.0, [1.0, 1.0])):
        with pytest.raises(MixwellError, match="do not tell the means apart"):
            worth(torch.tensor(means, dtype=torch.float64), 0.5, 0.5, clean=samples, noisy=0.0)
    for values in ({"log_std": 0}, {"data_std": 0}, {"steps": 1}, {"least": 0}, {"most": 0.001}, {"bend": 0}):
        with pytest.raises(ValueError, match="expected"):
            Config(**values)
