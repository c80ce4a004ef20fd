"""Scores against a loop, what is kept and where it lies in a canvas, refusals."""

import math

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.core.rng import spawn
from mixwell.data.compact import ConvNet, Images, Training, trained
from mixwell.data.distillation import collages as module
from mixwell.data.distillation.collages import Config, collages


def fresh(seed=0):
    return torch.Generator().manual_seed(seed)


def build(draws):
    return ConvNet(1, 4, 3, draws, width=4, blocks=1)


@pytest.fixture(scope="module")
def data():
    classes = torch.arange(3).repeat(12)
    images = torch.rand(36, 1, 4, 4, generator=fresh()) + 0.7 * classes[:, None, None, None]
    return Images(images, classes)


def test_scores_are_the_mean_length_of_the_errors(data):
    config = Config(per_class=1, networks=2, steps=8)
    found = module.el2n(data, build, config, fresh(1))
    expected = [0.0] * 36
    for draws in spawn(fresh(1), 2):
        network = trained(build(draws), data, Training(steps=8), draws).double()
        for place, (image, label) in enumerate(zip(data.images_NCHW.double(), data.classes_N)):
            logits = network(image[None])[0].tolist()
            share = [math.exp(x) / sum(map(math.exp, logits)) for x in logits]
            share[label] -= 1
            expected[place] += math.sqrt(sum(x * x for x in share)) / 2
    torch.testing.assert_close(found.double(), torch.tensor(expected).double(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("keep", module.ORDERS)
def test_kept_images_lie_in_order_in_their_class_canvases(data, keep):
    config = Config(per_class=2, tiles=2, keep=keep, networks=1, steps=8)
    made = collages(data, build, config, fresh(2))
    assert made.images_MCHW.shape == (6, 1, 4, 4) and made.classes_M.tolist() == [0, 0, 1, 1, 2, 2]
    score = module.scores(data, build, config, fresh(2))
    for label in range(3):
        own = [place for place in range(36) if data.classes_N[place] == label]
        wanted = sorted(own, key=lambda place: float(score[place]))[:8]
        for number, place in enumerate(wanted):
            canvas = made.images_MCHW[2 * label + number // 4, 0]
            row, column = divmod(number % 4, 2)
            for i in range(2):
                for j in range(2):
                    part = data.images_NCHW[place, 0, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
                    assert float(canvas[2 * row + i, 2 * column + j]) == pytest.approx(float(part.mean()), abs=1e-6)
    hard = module.el2n(data, build, config, fresh(2))
    assert torch.equal(score, {"easiest": hard, "hardest": -hard}.get(keep, score))


def test_one_tile_is_the_plain_subset(data):
    made = collages(data, build, Config(per_class=12, tiles=1, keep="any"), fresh(3))
    assert made.tiles == 1
    rows = {tuple(image.flatten().tolist()) for image in made.images_MCHW}
    assert rows == {tuple(image.flatten().tolist()) for image in data.images_NCHW}


def test_refusals(data):
    with pytest.raises(MixwellError, match="images of 4 x 4 cannot hold 3 tiles a side"):
        collages(data, build, Config(per_class=1, tiles=3), fresh())
    for values in ({"per_class": 0}, {"tiles": 0}, {"networks": 0}, {"steps": 0}, {"keep": "best"}):
        with pytest.raises(ValueError, match="expected"):
            Config(**values)
