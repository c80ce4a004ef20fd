"""The student's walk and its gradient against loops, the penalty, starts, every part on and off, refusals."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from mixwell.core.errors import MixwellError
from mixwell.data.compact import ConvNet, Images, drawn
from mixwell.data.distillation import smooth_experts as module
from mixwell.data.distillation.smooth_experts import Config, Segment, smooth_experts

SMALL = Config(per_class=1, epochs=4, latest=2, steps=4, experts=1, rounds=0)


def fresh(seed=0):
    return torch.Generator().manual_seed(seed)


def linear(draws):
    return nn.Sequential(nn.Flatten(), drawn(nn.Linear, draws, 4, 3))


@pytest.fixture(scope="module")
def data():
    classes = torch.arange(3).repeat(10)
    images = torch.rand(30, 1, 2, 2, generator=fresh()) + 0.5 * classes[:, None, None, None]
    return Images(images, classes)


def softmax_slopes(w, b, rows, labels):
    """Gradient of the mean cross-entropy of a linear map, in float64."""
    p = (rows @ w.T + b).softmax(-1) - torch.eye(len(w)).double()[labels]
    return p.T @ rows / len(labels), p.mean(0)


def walked(images, labels, lr, segment, config):
    """The matching loss of a linear network, written down step by step."""
    w, b = (weight.double() for weight in segment.begin)
    start, move = (w, b), (torch.zeros_like(w), torch.zeros_like(b))
    half = config.latest // 2
    scale = 1.0
    if config.balance:
        far = segment.epoch - half
        scale = math.log(far + 8, 5) if far >= 0 else 1 / math.log(8 - far, 5)
    total = 0.0
    for step in range(1, config.steps + 1):
        slopes = softmax_slopes(w, b, images, labels)
        move = tuple(config.momentum * m + scale * s for m, s in zip(move, slopes))
        w, b = w - lr * move[0], b - lr * move[1]
        every = config.steps // config.ahead
        middle = config.between and step % every == 0 and step // every < config.ahead
        if middle or step == config.steps:
            target = segment.targets[-1 if step == config.steps else step // every - 1]
            off = sum(((x - y) ** 2).sum() for x, y in zip((w, b), target))
            total = total + off / sum(((x - y) ** 2).sum() for x, y in zip(start, target))
    return total


@pytest.mark.parametrize("changes", [{}, {"between": False}, {"balance": False, "momentum": 0.5},
                                     {"ahead": 3, "steps": 7, "latest": 2}])
def test_matching_is_the_walk_written_down_with_its_gradient(data, changes):
    config = dataclasses.replace(SMALL, **changes)
    shell = linear(fresh(1)).double()
    way = module.expert(linear(fresh(1)), data, config, fresh(2))
    way = [tuple(weight.double() for weight in weights) for weights in way]
    for epoch in range(config.latest):
        segment = Segment(epoch, module.perturbed(way[epoch], 0.5, fresh(3)), tuple(way[epoch + 1 :][: config.ahead]))
        pixels = torch.rand(3, 1, 2, 2, generator=fresh(4)).double().requires_grad_()
        labels, lr = torch.arange(3), torch.tensor(0.3).double().requires_grad_()
        found = module.matching_loss(shell, Images(pixels, labels), lr, segment, config)
        expected = walked(pixels.flatten(1), labels, lr, segment, config)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
        for one, other in zip(torch.autograd.grad(found, (pixels, lr)), torch.autograd.grad(expected, (pixels, lr))):
            torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-10)


def test_the_penalty_is_of_the_length_of_each_images_gradient(data):
    network = linear(fresh(5)).double()
    weight = network[1].weight.detach()
    length = math.sqrt(sum(float(weight[:, pixel].sum()) ** 2 for pixel in range(4)))
    penalty = module.gradient_penalty(network, data.images_NCHW.double())
    assert penalty.item() == pytest.approx((length - 1) ** 2, rel=1e-9)
    plain = nn.functional.cross_entropy(network(data.images_NCHW.double()), data.classes_N)
    wide = Images(data.images_NCHW.double(), data.classes_N)
    for epoch, share in ((0, 0.5), (1, 0.55), (9, 0.95), (10, 1.0), (30, 1.0)):
        found = module.expert_loss(network, wide, epoch, Config(penalty=3.0))
        assert float(found) == pytest.approx(share * float(plain) + 3 * (length - 1) ** 2, rel=1e-6)
    assert module.expert_loss(network, wide, 0, Config(penalty=0.0, clip=False)) == plain


def test_clipped_and_penalised_experts_take_smaller_steps(data):
    config = dataclasses.replace(SMALL, expert_lr=0.1, expert_momentum=0.0, expert_batch=5)
    ways = {clip: module.expert(linear(fresh(1)), data, dataclasses.replace(config, clip=clip, penalty=0.0), fresh(2))
            for clip in (True, False)}
    assert len(ways[True]) == 5

    def first_step(way):
        return sum(float((a - b).square().sum()) for a, b in zip(way[0], way[1]))

    assert first_step(ways[True]) < 0.5 * first_step(ways[False])


def test_starts_are_real_images_and_representative_ones_near_the_centres(data):
    shell = linear(fresh(1))
    weights = tuple(shell.parameters())
    far = torch.cat([torch.zeros(5, 2), torch.full((5, 2), 9.0)]) + 0.1 * torch.randn(10, 2, generator=fresh(6))
    near = module.central(far, 2, fresh(7)).tolist()
    for group in (range(5), range(5, 10)):
        middle = far[list(group)].mean(0)
        assert min(group, key=lambda i: float((far[i] - middle).norm())) in near
    assert sorted(module.central(far, 10, fresh(7)).tolist()) == list(range(10))
    for start in module.STARTS:
        config = dataclasses.replace(SMALL, per_class=3, start=start)
        places = module.start_of(data, shell, weights, config, fresh(8))
        assert data.classes_N[places].tolist() == [0] * 3 + [1] * 3 + [2] * 3 and len(set(places.tolist())) == 9


def test_a_perturbed_start_moves_matrices_in_proportion_and_leaves_vectors(data):
    weights = (torch.ones(30, 30), torch.ones(3))
    moved = module.perturbed(weights, 2.0, fresh(9))
    assert float((moved[0] - 1).norm()) == pytest.approx(2, rel=1e-4) and torch.equal(moved[1], weights[1])
    assert torch.equal(module.perturbed(weights, 0.0, fresh(9))[0], weights[0])


def test_rounds_bring_the_student_nearer_and_learn_the_step(data):
    config = Config(per_class=1, epochs=6, latest=1, steps=4, experts=1, expert_lr=0.2, expert_batch=10, lr=0.05,
                    perturb=0.0, image_lr=0.3, step_lr=0.05, start="real")
    ways = [module.expert(linear(draws), data, config, draws) for draws in module.spawn(seeded(), 1)]
    segment = Segment(0, ways[0][0], tuple(ways[0][1:3]))
    losses, steps = [], []
    for rounds in (0, 60):
        made = smooth_experts(data, linear, dataclasses.replace(config, rounds=rounds), fresh(10))
        small = Images(made.images_MCHW, made.classes_M)
        losses.append(float(module.matching_loss(linear(fresh()), small, torch.tensor(made.lr), segment, config)))
        steps.append(made.lr)
    assert losses[1] < 0.5 * losses[0]
    assert steps[0] == pytest.approx(0.05) and steps[1] != steps[0]


def seeded():
    """The generator of a call, after the shell was built with it."""
    draws = fresh(10)
    linear(draws)
    return draws


def test_refusals(data):
    with pytest.raises(MixwellError, match="keeps statistics beside its weights"):
        smooth_experts(data, lambda draws: ConvNet(1, 2, 3, draws, blocks=1), SMALL, fresh())
    with pytest.raises(MixwellError, match="an expert diverged in epoch"):
        smooth_experts(data, linear, dataclasses.replace(SMALL, expert_lr=1e30), fresh())
    for values in ({"per_class": 0}, {"experts": 0}, {"expert_batch": 0}, {"ahead": 0}, {"latest": 0}, {"rounds": -1},
                   {"steps": 1}, {"epochs": 3}, {"start": "mean"}, {"expert_lr": 0}, {"lr": 0}, {"image_lr": 0},
                   {"penalty": -1}, {"perturb": -1}, {"step_lr": -1}, {"momentum": 1}, {"expert_momentum": 1}):
        with pytest.raises(ValueError, match="expected"):
            Config(**values)
