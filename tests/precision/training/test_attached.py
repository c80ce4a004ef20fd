"""A recipe's training whose products are taken in few bits."""

import pytest
import torch

import mixwell
from mixwell.core.errors import MixwellError
from mixwell.kernels.packing import CHANGES
from mixwell.lm.training.loop import train
from tests.lm.tiny import tiny_config, tiny_data, tiny_model


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data(tmp_path_factory.mktemp("tokens"))


def trained(data, folder, **options):
    return train(tiny_model(), data, tiny_config(tokens=3 * 32, dtype="fp32", **options), folder).model


def test_a_training_takes_its_products_so_and_leaves_a_plain_model(data, tmp_path):
    whole, few = trained(data, tmp_path / "a"), trained(data, tmp_path / "b", arithmetic="float8")
    assert not any(CHANGES in layer._modules for layer in few.modules())
    names = set(whole.state_dict())
    assert set(few.state_dict()) == names
    moved = max(float((few.state_dict()[name] - value).abs().max()) for name, value in whole.state_dict().items())
    assert 1e-5 < moved < 0.05
    again = trained(data, tmp_path / "c", arithmetic="float8")
    assert all(torch.equal(again.state_dict()[name], value) for name, value in few.state_dict().items())


def test_what_cannot_be_is_refused(data, tmp_path):
    with pytest.raises(ValueError, match="fp32 with an arithmetic of its own"):
        tiny_config(arithmetic="float8", dtype="bf16")
    with pytest.raises(MixwellError, match="float9"):
        trained(data, tmp_path / "a", arithmetic="float9")


def test_it_is_no_conversion(tmp_path):
    with pytest.raises(MixwellError, match=r"float8 turns no checkpoint into another"):
        mixwell.apply("precision.training.float8", tiny_model(), out=tmp_path / "new")
