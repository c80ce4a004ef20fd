"""Model stock against the paper's formula for two models, its limits, rows, and small changes."""

import math

import pytest
import torch

from mixwell.merge.model_stock import Config, model_stock


def test_two_models_go_as_far_as_their_angle_says(generator):
    base = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    changes = [torch.randn(5, 6, generator=generator, dtype=torch.float64) for _ in range(2)]
    cosine = float((changes[0] * changes[1]).sum() / (changes[0].norm() * changes[1].norm()))
    t = 2 * cosine / (1 + cosine)
    found = model_stock([base + change for change in changes], base, Config(), generator)
    torch.testing.assert_close(found, base + t * (changes[0] + changes[1]) / 2)


def test_orthogonal_changes_give_the_base_and_equal_ones_their_mean(generator):
    base, change = torch.zeros(2, 2), torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    other = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    assert torch.equal(model_stock([change, other], base, Config(), generator), base)
    torch.testing.assert_close(model_stock([change, change, change], base, Config(), generator), change)
    assert torch.equal(model_stock([change, -change], base, Config(), generator), base)  # singular


def test_rows_have_angles_of_their_own(generator):
    base = torch.zeros(2, 2)
    first = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    second = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    found = model_stock([first, second], base, Config(filter_wise=True), generator)
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.0], [0.0, 0.0]]))


def test_the_floor_draws_small_changes_back_to_the_base(generator):
    base, change = torch.zeros(4), torch.full((4,), 2.5e-4)
    usual = model_stock([change, change], base, Config(), generator)
    fine = model_stock([change, change], base, Config(floor=1e-20), generator)
    torch.testing.assert_close(fine, change)
    assert math.isclose(float(usual[0] / change[0]), 0.4, rel_tol=1e-3)
    with pytest.raises(ValueError, match="floor is 0"):
        Config(floor=0)
