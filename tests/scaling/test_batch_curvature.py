"""The spiked law against random matrices, its regimes, Lanczos against eigenvalues, heavy ball on a quadratic."""

import numpy as np
import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.scaling.batch_curvature import Config, Curvature, batch_curvature, example, rate_and_momentum, ritz


@pytest.mark.parametrize("batch", [16, 40, 120, 400])
def test_the_seen_outlier_is_that_of_a_spiked_random_matrix(batch):
    size, outlier, deviation = 500, 2.0, 0.8
    draws = np.random.default_rng(batch).standard_normal((size, size))
    noise = (draws + draws.T) / np.sqrt(2) * deviation / np.sqrt(batch)
    noise[0, 0] += outlier
    top = np.linalg.eigvalsh(noise)[-1]
    law = Curvature(outlier, size * deviation**2)
    assert law.seen(batch) == pytest.approx(top, rel=0.04)
    assert (batch < law.critical_batch) == (batch in (16, 40))


def test_rates_are_linear_in_small_batches_and_level_in_large_ones():
    law = Curvature(1.0, 1000.0)
    assert law.seen(1000) == pytest.approx(2.0) and law.seen(999) == pytest.approx(2.0, rel=1e-3)  # no jump
    assert law.largest_rate(10**9) == pytest.approx(2.0)
    assert law.moved(0.1, 10, 40) == pytest.approx(0.2)  # under the edge: the square root of the batch
    steep = Curvature(1.0, 1000.0).moved(0.1, 1000, 2000)
    assert steep == pytest.approx(0.1 * 2 / 1.5)
    assert law.moved(0.1, 1000, 2000, adaptive=True) == pytest.approx(0.1 * (2 / 1.5) ** 0.5)


def test_the_fit_finds_what_was_planted():
    law = Curvature(3.0, 50.0)
    batches = np.array([16, 32, 64, 256])
    found = batch_curvature(batches, np.array([law.seen(batch) for batch in batches]), Config())
    small = np.array([1, 2, *batches])  # under the edge
    tops = np.array([law.seen(batch) for batch in small])
    assert batch_curvature(small, tops, Config(least_batch=16)) == found
    assert batch_curvature(small, tops, Config()).outlier > 1.05 * found.outlier
    assert (found.outlier, found.noise) == pytest.approx((3.0, 50.0))
    noisy = batch_curvature(**example(np.random.default_rng(0)))
    assert noisy.outlier == pytest.approx(2.0, rel=0.05) and noisy.noise == pytest.approx(100, rel=0.15)


def test_lanczos_finds_all_eigenvalues_once_and_the_trace_by_its_weights():
    draws = torch.randn(12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix = draws + draws.T
    matrix[0, 0] += 30
    found = ritz(lambda v: matrix @ v, 12, 12, torch.Generator().manual_seed(1))
    assert torch.allclose(found.values, torch.linalg.eigvalsh(matrix), atol=1e-8)
    assert float(found.weights.sum()) == pytest.approx(1)
    few = ritz(lambda v: matrix @ v, 12, 6, torch.Generator().manual_seed(1))
    assert float(few.values[-1]) == pytest.approx(float(found.values[-1]), rel=1e-4)
    flat = ritz(lambda v: 2 * v, 12, 5, torch.Generator().manual_seed(1))
    assert flat.values.tolist() == pytest.approx([2.0])


def test_heavy_ball_converges_at_its_best_speed():
    rate, momentum = rate_and_momentum(9.0, 1.0)
    assert (rate, momentum) == pytest.approx((0.25, 0.25))
    x, before = np.array([1.0, 1.0]), np.array([1.0, 1.0])
    for _ in range(40):
        x, before = x - rate * np.array([9.0, 1.0]) * x + momentum * (x - before), x
    assert abs(x).max() < 100 * momentum ** (40 / 2)


def test_refusals():
    for batches, tops, words in (([8, 8], [1, 2], "1 sizes of batch count"), ([8, 16], [1, -1], "is -1; expected"),
                                 ([8, 800], [9, 0.01], "noise covers it")):
        with pytest.raises(MixwellError, match=words):
            batch_curvature(np.array(batches), np.array(tops), Config())
    with pytest.raises(ValueError, match="expected at least 1"):
        Config(least_batch=0)
    with pytest.raises(ValueError, match="steps is 4 in 3"):
        ritz(lambda v: v, 3, 4, torch.Generator())
    with pytest.raises(ValueError, match="expected above 0"):
        rate_and_momentum(1.0, 2.0)
