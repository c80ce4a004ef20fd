"""Fisher merging: the exact Fisher of a softmax, pooled least squares where it is exact, norm, floor, refusals."""

import pytest
import torch

from mixwell.merge.fisher import Config, diagonal, fisher


def logistic(parameters, x):
    return (parameters["w"] @ x).log_softmax(-1).unsqueeze(0)


def test_the_fisher_is_the_exact_expectation_over_labels(generator):
    w = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    rows = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    found = diagonal(logistic, {"w": w}, rows, Config(), generator)["w"]
    expected = torch.zeros(3, 4, dtype=torch.float64)
    for x in rows:
        p = (w @ x).softmax(-1)
        for unit in range(3):  # E_y (1[y = unit] - p)^2 x^2 = p (1 - p) x^2
            expected[unit] += p[unit] * (1 - p[unit]) * x**2 / 6
    torch.testing.assert_close(found, expected)


def test_drawn_labels_come_to_the_same_in_the_mean(generator):
    w = torch.randn(3, 4, generator=generator)
    rows = torch.randn(2, 4, generator=generator)
    exact = diagonal(logistic, {"w": w}, rows, Config(), generator)["w"]
    drawn = diagonal(logistic, {"w": w}, rows.repeat(1500, 1), Config(most_classes=1), generator)["w"]
    torch.testing.assert_close(drawn, exact, rtol=0.25, atol=0.02)


def test_diagonal_regressions_merge_to_the_pooled_least_squares(generator):
    rows = [torch.randn(20, 3, generator=generator, dtype=torch.float64) for _ in range(2)]
    rows = [torch.linalg.qr(own).Q * torch.rand(3, generator=generator, dtype=torch.float64) for own in rows]
    targets = [torch.randn(20, generator=generator, dtype=torch.float64) for _ in range(2)]
    models = [{"w": torch.linalg.lstsq(x, y[:, None]).solution[:, 0]} for x, y in zip(rows, targets)]
    sure = [{"w": x.square().sum(0)} for x in rows]  # the Fisher of a Gaussian, diagonal for orthogonal columns
    found = fisher(models, sure, Config(normalize=False, floor=0.0))["w"]
    pooled = torch.linalg.lstsq(torch.cat(rows), torch.cat(targets)[:, None]).solution[:, 0]
    torch.testing.assert_close(found, pooled, rtol=1e-8, atol=1e-8)


def test_equal_fishers_give_the_mean_norms_the_scale_and_the_floor_the_first_model(generator):
    models = [{"w": torch.randn(5, generator=generator)} for _ in range(2)]
    flat = {"w": torch.ones(5)}
    mean = fisher(models, [flat, flat], Config(weight=(1.0, 3.0), floor=0.0))["w"]
    torch.testing.assert_close(mean, (models[0]["w"] + 3 * models[1]["w"]) / 4)
    loud = {"w": 1000 * torch.ones(5)}
    even = fisher(models, [flat, loud], Config(floor=0.0))["w"]
    torch.testing.assert_close(even, (models[0]["w"] + models[1]["w"]) / 2)
    blank = {"w": torch.zeros(5)}
    torch.testing.assert_close(fisher(models, [blank, blank], Config())["w"], models[0]["w"])
    torch.testing.assert_close(fisher(models, [blank, blank], Config(floor=0.0))["w"],
                               (models[0]["w"] + models[1]["w"]) / 2)


def test_refusals(generator):
    with pytest.raises(ValueError, match="no example came"):
        diagonal(logistic, {"w": torch.ones(3, 4)}, [], Config(), generator)
    with pytest.raises(ValueError, match="floor is -1"):
        Config(floor=-1)
