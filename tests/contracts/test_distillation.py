"""What every method that makes a data set small promises (family `data.distillation`), and what sets are made of."""

import math

import pytest
import torch
from torch import nn

from mixwell.core.errors import MixwellError
from mixwell.data.compact import (
    Compact,
    ConvNet,
    Images,
    Training,
    accuracy,
    check,
    cropped,
    cut,
    joined,
    softly,
    trained,
)
from tests.contracts._tools import cases, fresh, poisoned_memory, same_config

METHODS = cases("data.distillation")


@pytest.mark.parametrize("entry", METHODS)
def test_a_few_images_of_each_class_the_same_for_one_generator(entry):
    values = entry.module().example(fresh())
    before = values["data"].images_NCHW.clone()
    with poisoned_memory():
        first = entry.load()(**values, generator=fresh(1))
    second = entry.load()(**values, generator=fresh(1))
    assert torch.equal(first.images_MCHW, second.images_MCHW) and torch.equal(before, values["data"].images_NCHW)
    assert same_config(values["config"])
    each = values["config"].per_class
    assert first.classes_M.tolist() == [label for label in range(2) for _ in range(each)]
    assert first.images_MCHW.shape == (2 * each, *before.shape[1:]) and torch.isfinite(first.images_MCHW).all()
    seen = first.training()
    assert len(seen.classes_N) == 2 * each * first.tiles**2 and seen.images_NCHW.shape[1:] == before.shape[1:]


@pytest.mark.parametrize("entry", METHODS)
def test_too_few_images_of_a_class_end_in_one_line(entry):
    values = entry.module().example(fresh())
    classes = values["data"].classes_N
    scarce = torch.cat([torch.nonzero(classes == 0), torch.nonzero(classes == 1)[:1]]).flatten()
    values["data"] = values["data"].rows(scarce)
    with pytest.raises(MixwellError, match=r"class 1 has 1 images; \d+ of each are needed"):
        entry.load()(**values, generator=fresh())


def test_tiles_are_cut_where_they_were_joined():
    whole = torch.arange(2 * 3 * 4 * 6.0).reshape(2, 3, 4, 6)
    parts = cut(whole, 2)
    assert torch.equal(parts[1], whole[0, :, :2, 3:]) and torch.equal(parts[6], whole[1, :, 2:, :3])
    assert torch.equal(joined(parts, 2), whole)
    seen = Compact(whole, torch.tensor([4, 7]), 2).training()
    assert seen.classes_N.tolist() == [4] * 4 + [7] * 4 and seen.images_NCHW.shape == (8, 3, 4, 6)
    plain = Compact(whole, torch.tensor([4, 7]))
    assert plain.training().images_NCHW is whole and math.isnan(plain.lr)


def test_crops_keep_their_area_and_whole_ones_are_the_images():
    ramp = torch.linspace(-1, 1, 16).expand(200, 1, 16, 16).contiguous()
    assert cropped(ramp, 1.0, fresh()) is ramp
    seen = cropped(ramp, 0.25, fresh())
    side = (seen[:, 0, 0, -2] - seen[:, 0, 0, 1]) / (ramp[0, 0, 0, -2] - ramp[0, 0, 0, 1])
    assert 0.45 < float(side.min()) < 0.6 and 0.9 < float(side.max()) <= 1.05
    middle = seen[:, 0, 0].mean(1)
    assert middle.abs().max() > 0.2 and abs(float(middle.mean())) < 0.05


def test_soft_labels_are_the_divergence_of_softened_outputs():
    logits, images = torch.randn(5, 3, generator=fresh()), torch.randn(5, 3, generator=fresh(1))
    found = softly(logits, nn.Identity(), images, 2.0)
    total = 0.0
    for told, wanted in zip(logits.double() / 2, images.double() / 2):
        p = [math.exp(w) / sum(math.exp(v) for v in wanted) for w in wanted]
        q = [math.exp(w) / sum(math.exp(v) for v in told) for w in told]
        total += sum(a * math.log(a / b) for a, b in zip(p, q))
    assert float(found) == pytest.approx(total / 5, rel=1e-4)


def test_a_network_learns_two_brightnesses_with_hard_and_with_soft_labels():
    classes = torch.arange(2).repeat(30)
    images = torch.rand(60, 1, 8, 8, generator=fresh()) + classes[:, None, None, None]
    data = Images(images, classes)
    quick = Training(steps=40, batch=16, lr=1e-2, decay=0.0, least_area=0.5)
    teacher = trained(ConvNet(1, 8, 2, fresh(2), width=4), data, quick, fresh(3))
    assert accuracy(teacher, data) > 0.95
    soft = Training(steps=60, batch=16, lr=3e-2, temperature=2.0)
    wrong = Images(images, 1 - classes)  # which no soft label tells of
    student = trained(ConvNet(1, 8, 2, fresh(4), width=4, norm=False), wrong, soft, fresh(5), teacher)
    assert accuracy(student, data) > 0.9


def test_bad_images_and_trainings_end_in_one_line():
    images, classes = torch.rand(4, 1, 2, 2), torch.tensor([0, 0, 1, 1])
    whole = "whole numbers from 0"
    for data, told in ((Images(images[:3], classes), r"expected \[N, C, H, W\] and \[N\]"),
                       (Images(images / 0, classes), "not finite"), (Images(images, classes / 2), whole),
                       (Images(images, classes - 1), whole)):
        with pytest.raises(MixwellError, match=told):
            check(data, 1)
    for values in ({"steps": 0}, {"batch": 0}, {"lr": 0}, {"decay": -1}, {"temperature": 0}, {"least_area": 0}):
        with pytest.raises(ValueError, match="expected"):
            Training(**values)
