"""Mask scores: gradients by hand, shares over a training, local budgets, pressure, a mask in bits, a task per mask."""

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.precision.sparse.mask_scores import (
    Config,
    MaskScores,
    kept_share,
    local_shares,
    masked,
    packed,
    risen,
    unpacked,
)
from mixwell.precision.sparse.sparsifier import network
from tests.contracts._tools import fresh


def test_scores_get_the_gradient_of_the_read_weight_times_the_weight(generator):
    model = network(generator)
    weight = model[0].weight.detach().clone()
    method = MaskScores(model, Config(share_kept=0.25, weights=("0.*",)), generator)
    with torch.no_grad():
        method.forms[0].scores.copy_(torch.randn(16, 8, generator=generator))
    method.advance(1.0)
    scores = method.forms[0].scores.detach()
    least = scores.flatten().sort(descending=True).values[31]
    mask = (scores >= least).float()
    assert int(mask.sum()) == 32
    torch.testing.assert_close(model[0].weight, weight * mask)
    x = torch.randn(5, 8, generator=generator)
    (model[0](x) ** 2).sum().backward()
    y = x @ (weight * mask).T + model[0].bias
    torch.testing.assert_close(method.forms[0].scores.grad, (2 * y).T @ x * weight)
    assert method.trained() == [method.forms[0].scores] and model[2].weight.grad is None


def test_shares_fall_by_a_cubic_and_nothing_is_cut_at_the_start(generator):
    config = Config(share_kept=0.2)
    assert [kept_share(done, config) for done in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.2 + 0.8 / 8, 0.2])
    model = network(generator)
    x = torch.randn(5, 8, generator=generator)
    before = model(x)
    method = MaskScores(model, config, generator)
    assert torch.equal(model(x), before)
    method.advance(0.0)
    assert torch.equal(model(x), before) and risen(0.5) == 0.875


def test_local_shares_follow_mean_sigmoids_and_sum_to_what_was_asked(generator):
    scores = [torch.full((4, 4), 2.0), torch.full((8, 4), -1.0)]
    a, b = (1 / (1 + 2.718281828459045 ** (-one / 2)) for one in (2.0, -1.0))
    found = local_shares(scores, 0.3, 2.0)
    assert found == pytest.approx([0.3 * 48 * a / (16 * a + 32 * b), 0.3 * 48 * b / (16 * a + 32 * b)], rel=1e-6)
    full = local_shares([torch.full((4, 4), 9.0), torch.full((8, 4), -9.0)], 0.5, 1.0)
    assert full[0] == 1.0 and full[0] * 16 + full[1] * 32 == pytest.approx(24)
    model = network(generator)
    method = MaskScores(model, Config(share_kept=0.5, shares="local", temperature=0.5), generator)
    with torch.no_grad():
        method.forms[0].scores.fill_(1.0)
    method.advance(1.0)
    kept = [int(mask.sum()) for mask in method.masks()]
    assert kept[0] / 128 > kept[1] / 64 and sum(kept) == pytest.approx(96, abs=1)


def test_pressure_rises_to_its_coefficient_on_the_mean_over_matrices(generator):
    method = MaskScores(network(generator), Config(pressure=8.0), generator)
    with torch.no_grad():
        method.forms[1].scores.fill_(1.0)
    method.advance(0.5)
    wanted = 8.0 * 0.875 * (0.5 + 1 / (1 + 2.718281828459045**-1.0)) / 2
    assert float(method.losses()["pressure"].detach()) == pytest.approx(wanted)


def test_a_task_is_a_bit_a_weight_beside_weights_that_are_shared(generator):
    model = network(generator)
    shared = {name: value.clone() for name, value in model.state_dict().items()}
    method = MaskScores(model, Config(share_kept=0.3, weights=("0.*", "2.*")), generator)
    for form in method.forms:
        with torch.no_grad():
            form.scores.copy_(torch.randn(form.scores.shape, generator=generator))
    method.advance(1.0)
    bits = [packed(mask) for mask in method.masks()]
    assert [len(one) for one in bits] == [16, 8]
    masks = {name: unpacked(one, shared[name].shape) for name, one in zip(("0.weight", "2.weight"), bits)}
    x = torch.randn(5, 8, generator=generator)
    inside = model(x)
    other = network(fresh(1))
    other.load_state_dict(masked(shared, masks))
    assert torch.equal(other(x), inside)
    mask = torch.rand(3, 7, generator=generator) < 0.5
    assert torch.equal(unpacked(packed(mask), (3, 7)), mask)


def test_refusals():
    with pytest.raises(ValueError, match=r"share_kept is 1.0; expected above 0 and below 1"):
        Config(share_kept=1.0)
    with pytest.raises(MixwellError, match="2 bytes came for a mask of 21; expected 3"):
        unpacked(torch.zeros(2, dtype=torch.uint8), (3, 7))
