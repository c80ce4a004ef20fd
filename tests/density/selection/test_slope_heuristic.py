"""Slope heuristic: lines by reweighted least squares, the slope of large models, exact limits, refusals."""

import numpy as np
import pytest
import torch

from mixwell.density import slope_heuristic
from mixwell.density.selection.slope_heuristic import Config, example


def models(noise=0.2, slope=0.8):
    k = np.arange(1, 16)
    d = 3.0 * k - 1
    return d, -500 + 200 * np.minimum(k, 4) + slope * d + noise * np.random.default_rng(0).normal(size=15)


def line(x, y, huber):
    """Huber's line by numpy's weighted fits."""
    w = np.ones(len(x))
    for _ in range(20):
        slope, level = np.polyfit(x, y, 1, w=np.sqrt(w))
        off = np.abs(y - level - slope * x)
        scale = huber * np.median(off) / 0.6745
        w = np.array([1.0 if o <= scale else scale / o for o in off])
    return slope


@pytest.mark.parametrize("least, huber", [(2, 1.345), (3, 1.345), (6, 1.345), (3, 0.5), (3, 1e9)])
def test_it_agrees_with_loops(least, huber):
    d, y = models(noise=3.0)
    y[10] += 30
    slopes = [max(line(d[i:], y[i:], huber), 0.0) for i in range(15 - least + 1)]
    choices = [int(np.argmin(2 * s * d - y)) for s in slopes]
    runs, start = [], 0
    for i in range(1, len(choices) + 1):
        if i == len(choices) or choices[i] != choices[start]:
            runs.append((i - start, start))
            start = i
    length, start = max(runs, key=lambda run: run[0])
    chosen, slope, criterion = slope_heuristic(y, d, Config(min_models=least, huber=huber))
    assert slope == pytest.approx(slopes[start + length // 2], rel=1e-6)
    np.testing.assert_allclose(criterion, 2 * slope * d - y)
    assert chosen == criterion.argmin()


def test_the_slope_is_read_off_the_large_models():
    d, y = models()
    chosen, slope, _ = slope_heuristic(y, d)
    assert chosen == 3 and slope == pytest.approx(0.8, abs=0.05)


def test_exact_lines_order_and_scale():
    d, y = models(noise=0.0)
    chosen, slope, criterion = slope_heuristic(y, d)
    assert chosen == 3 and slope == pytest.approx(0.8, rel=1e-9)
    order = np.random.default_rng(1).permutation(15)
    shuffled, same, other = slope_heuristic(y[order], d[order])
    assert order[shuffled] == 3 and same == pytest.approx(slope)
    np.testing.assert_allclose(other, criterion[order])
    assert slope_heuristic(7 * y, d)[0] == 3 and slope_heuristic(7 * y, d)[1] == pytest.approx(7 * slope)


def test_a_falling_line_costs_nothing():
    d = np.arange(1.0, 9)
    chosen, slope, _ = slope_heuristic(-d, d)
    assert (chosen, slope) == (0, 0.0)


def test_an_outlier_moves_a_robust_line_less():
    d, y = models(noise=0.0)
    y[12] += 50
    robust, plain = (slope_heuristic(y, d, Config(min_models=8, huber=h))[1] for h in (1.345, 1e9))
    assert abs(robust - 0.8) < 0.1 < abs(plain - 0.8)


def test_refusals():
    with pytest.raises(ValueError, match="at least four"):
        slope_heuristic([1.0, 2.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="1 of them not finite"):
        slope_heuristic([1.0, 2.0, 3.0, -np.inf], [1.0, 2.0, 3.0, 4.0])
    with pytest.raises(ValueError, match=r"got 4 models.*at least min_models=9"):
        slope_heuristic([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0], Config(min_models=9))
    with pytest.raises(ValueError, match=r"min_models=1, huber=1\.345; expected at least 2 and above 0"):
        Config(min_models=1)


def test_example():
    assert slope_heuristic(**example(torch.Generator().manual_seed(0)))[0] == 2
