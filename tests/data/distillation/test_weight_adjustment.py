"""The move's length and direction, the statistics against loops, the gradient of the pixels, refusals."""

import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from mixwell.core.errors import MixwellError
from mixwell.data.compact import ConvNet, Images, Training, trained
from mixwell.data.distillation.weight_adjustment import (
    Config,
    adjusted,
    mismatch,
    norms_of,
    spread,
    synthesis_loss,
    synthesised,
    weight_adjustment,
)


def fresh(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def data():
    classes = torch.arange(3).repeat(20)
    images = torch.rand(60, 1, 8, 8, generator=fresh()) + 0.5 * classes[:, None, None, None]
    return Images(images, classes)


@pytest.fixture(scope="module")
def teacher(data):
    return trained(ConvNet(1, 8, 3, fresh(1), width=4), data, Training(steps=30), fresh(2))


def moved_by(teacher, moved):
    return [b.detach() - a.detach() for a, b in zip(teacher.parameters(), moved.parameters())]


def length(parts):
    return math.sqrt(sum(float(part.double().square().sum()) for part in parts))


def test_the_move_climbs_the_loss_of_its_own_batch_within_its_length(data, teacher):
    start = data.rows(torch.tensor([0, 1, 2]))
    config = Config(distance=0.3, ascents=4)
    before = [weight.clone() for weight in teacher.parameters()]
    once = adjusted(teacher, start, dataclasses.replace(config, ascents=1), fresh())
    loss = functional.cross_entropy(teacher(start.images_NCHW), start.classes_N)
    slopes = torch.autograd.grad(loss, list(teacher.parameters()))
    size = length(slopes)
    for change, slope in zip(moved_by(teacher, once), slopes):
        torch.testing.assert_close(change, 0.3 * slope / size, atol=1e-6, rtol=1e-4)

    def cost(network):
        return float(functional.cross_entropy(network(start.images_NCHW), start.classes_N))

    sides = {name: adjusted(teacher, start, dataclasses.replace(config, direction=name), fresh(3))
             for name in ("directed", "random", "none")}
    assert length(moved_by(teacher, sides["random"])) == pytest.approx(0.3, rel=1e-4)
    assert 0.2 < length(moved_by(teacher, sides["directed"])) <= 0.3001
    assert length(moved_by(teacher, sides["none"])) == 0
    assert cost(sides["directed"]) > max(cost(sides["random"]), cost(teacher))
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(teacher.buffers(), sides["directed"].buffers()))


def test_statistics_are_lengths_of_differences(data, teacher):
    norm, x = norms_of(teacher)[0], torch.randn(5, 4, 3, 3, generator=fresh(4)).double()
    means, variances = [], []
    for channel in range(4):
        own = x[:, channel].flatten().tolist()
        mean = sum(own) / len(own)
        means.append(mean - float(norm.running_mean[channel]))
        variances.append(sum((value - mean) ** 2 for value in own) / len(own) - float(norm.running_var[channel]))
    expected = math.hypot(*means) + 11 * math.hypot(*variances)
    assert float(mismatch(norm, x, 11.0)) == pytest.approx(expected, rel=1e-5)


def test_the_loss_weighs_the_first_norm_apart(data, teacher):
    images, classes = data.rows(torch.arange(6))
    entered = {}
    hooks = [norm.register_forward_pre_hook(lambda n, x, i=i: entered.update({i: x[0]}))
             for i, norm in enumerate(norms_of(teacher))]
    told = functional.cross_entropy(teacher(images), classes)
    for hook in hooks:
        hook.remove()
    own = [mismatch(norm, entered[i], 2.0) for i, norm in enumerate(norms_of(teacher))]
    config = Config(statistics=0.3, variance=2.0, first=5.0)
    found = synthesis_loss(teacher, images, classes, config)
    assert float(found) == pytest.approx(float(told + 0.3 * (5 * own[0] + own[1])), rel=1e-5)
    assert not any(norm._forward_pre_hooks for norm in norms_of(teacher))
    wide = ConvNet(1, 8, 3, fresh(1), width=4).double().eval()
    pixels = images[:2].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: synthesis_loss(wide, x, classes[:2], config), (pixels,), atol=1e-4)


def test_synthesis_lowers_the_loss_inside_the_range_and_no_steps_keep_the_images(data, teacher):
    start = data.rows(torch.tensor([0, 1, 2]))
    config = Config(steps=25, lr=0.05, shift=1)
    made = synthesised(teacher, start, (0.0, 2.0), config, fresh(5))
    assert float(made.min()) >= 0 and float(made.max()) <= 2
    assert synthesis_loss(teacher, made, start.classes_N, config) < \
        synthesis_loss(teacher, start.images_NCHW, start.classes_N, config)
    kept = weight_adjustment(data, lambda draws: ConvNet(1, 8, 3, draws, width=4),
                             Config(per_class=2, steps=0, teacher_steps=5), fresh(6))
    rows = [tuple(image.flatten().tolist()) for image in data.images_NCHW]
    for image, label in zip(kept.images_MCHW, kept.classes_M):
        assert data.classes_N[rows.index(tuple(image.flatten().tolist()))] == label


def test_spread_is_the_mean_distance_inside_classes():
    features = torch.tensor([[0.0, 0], [3, 4], [1, 1], [1, 2], [1, 3]])
    assert spread(features, torch.tensor([0, 0, 1, 1, 1])) == pytest.approx((5 + 4 / 3) / 2)


def test_refusals(data):
    with pytest.raises(MixwellError, match="no batch norm with running statistics"):
        norms_of(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)))
    for values in ({"per_class": 0}, {"ascents": 0}, {"teacher_steps": 0}, {"direction": "up"}, {"distance": -1},
                   {"steps": -1}, {"lr": 0}, {"statistics": -1}, {"variance": -1}, {"first": -1}, {"shift": -1}):
        with pytest.raises(ValueError, match="expected"):
            Config(**values)
