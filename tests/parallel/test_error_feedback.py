"""Error feedback follows its recursion, reaches the optimum where naive compression stalls, and steps as its theory."""

import math

import pytest
import torch

from mixwell.core.rng import generator
from mixwell.parallel.error_feedback import Config, error_feedback, example, step_size
from tests.parallel._stalling import check_that_naive_compression_stalls, quadratics


def problem():
    given = example(generator(0))
    return [given[name].double() for name in ("x_D", "curve_CDD", "slope_CD")]


def by_hand(x, curves, slopes, keep, rounds, weighted, mean):
    """EF21 in plain floats."""
    n, d = len(curves), len(x)
    tops = [float(torch.linalg.eigvalsh(curve)[-1]) for curve in curves]
    weights = [top / sum(tops) if weighted else 1 / n for top in tops]
    whole = float(torch.linalg.eigvalsh(sum(curves) / n)[-1])
    middle = sum(tops) / n if mean == "arithmetic" else math.sqrt(sum(top * top for top in tops) / n)
    theta = 1 - math.sqrt(1 - keep / d)
    beta = (1 - keep / d) / theta
    step = 1 / (whole + middle * math.sqrt(beta / theta))
    x, curves, slopes = x.tolist(), curves.tolist(), slopes.tolist()
    known = [[0.0] * d for _ in range(n)]

    def listen():
        for i in range(n):
            grad = [sum(curves[i][r][c] * x[c] for c in range(d)) - slopes[i][r] for r in range(d)]
            gap = [grad[r] / (n * weights[i]) - known[i][r] for r in range(d)]
            for r in sorted(range(d), key=lambda place: -abs(gap[place]))[:keep]:
                known[i][r] += gap[r]

    listen()
    for _ in range(rounds):
        x = [x[r] - step * sum(weights[i] * known[i][r] for i in range(n)) for r in range(d)]
        listen()
    return torch.tensor(x, dtype=torch.float64), torch.tensor(known, dtype=torch.float64)


@pytest.mark.parametrize("keep", [1, 2, 4])
@pytest.mark.parametrize("weighted, mean", [(False, "arithmetic"), (False, "quadratic"), (True, "arithmetic")])
def test_rounds_are_those_of_a_plain_loop(keep, weighted, mean):
    found = error_feedback(*problem(), Config(keep=keep, rounds=15, weighted=weighted, mean=mean))
    x, known = by_hand(*problem(), keep, 15, weighted, mean)
    torch.testing.assert_close(found.x_D, x, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(found.known_CD, known, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("weighted", [False, True])
def test_all_entries_are_gradient_descent(weighted):
    x, curves, slopes = problem()
    found = error_feedback(x, curves, slopes, Config(keep=4, rounds=30, weighted=weighted))
    whole, slope = curves.mean(0), slopes.mean(0)
    step = 1 / torch.linalg.eigvalsh(whole)[-1]
    for _ in range(30):
        x = x - step * (whole @ x - slope)
    torch.testing.assert_close(found.x_D, x)


def test_the_arithmetic_mean_gives_the_longer_step():
    smooth = torch.tensor([1.0, 1.0, 10.0])
    xi = math.sqrt(0.75) / (1 - math.sqrt(0.75))
    assert step_size(smooth, 2.0, 0.25, "arithmetic") == pytest.approx(1 / (2 + 4 * xi))
    assert step_size(smooth, 2.0, 0.25, "quadratic") == pytest.approx(1 / (2 + math.sqrt(34) * xi))
    equal = torch.full((3,), 5.0)
    assert step_size(equal, 2.0, 0.25, "arithmetic") == pytest.approx(step_size(equal, 2.0, 0.25, "quadratic"))


@pytest.mark.parametrize("weighted", [False, True])
def test_it_converges_where_naive_compression_stalls(weighted):
    curves, slopes, best = quadratics()
    found = error_feedback(torch.zeros(3).double(), curves, slopes, Config(rounds=600, weighted=weighted))
    torch.testing.assert_close(found.x_D, best, rtol=0, atol=1e-8)
    check_that_naive_compression_stalls()


def test_refusals():
    with pytest.raises(ValueError, match="keep is 5 of 4 entries; expected 1 to 4"):
        error_feedback(*problem(), Config(keep=5))
    with pytest.raises(ValueError, match="keep is 0; expected at least 1"):
        Config(keep=0)
    with pytest.raises(ValueError, match="mean is 'geometric'; expected one of"):
        Config(mean="geometric")
    with pytest.raises(ValueError, match="set mean: arithmetic"):
        Config(weighted=True, mean="quadratic")
    x, curves, slopes = problem()
    with pytest.raises(ValueError, match="a client has no curvature"):
        error_feedback(x, 0 * curves, slopes, Config())
