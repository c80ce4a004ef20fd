"""A recipe's training whose products are taken in few bits."""

import pytest
import torch

import mixwell
from mixwell.core.errors import MixwellError
from mixwell.kernels.packing import CHANGES
from mixwell.lm.training.loop import train
from tests.lm.tiny import MOE, tiny_config, tiny_data, tiny_model


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


def test_a_training_that_went_on_later_draws_as_if_it_had_not_stopped(data, tmp_path):
    options = {"arithmetic": "dual_activations", "eval_every": 1, "eval_tokens": 64}
    whole = trained(data, tmp_path / "a", **options)
    config = tiny_config(tokens=3 * 32, dtype="fp32", **options)
    train(tiny_model(), data, config, tmp_path / "b", until=0.5)
    again = trained(data, tmp_path / "b", **options).state_dict()
    assert all(torch.equal(again[name], value) for name, value in whole.state_dict().items())


@pytest.mark.parametrize("arithmetic", ["float8", "dual_activations"])
def test_experts_that_nobody_chose_stop_no_training(data, tmp_path, arithmetic):
    many = {**MOE, "num_experts": 64, "router": {"method": "top_k", "k": 1}}  # more than a batch has tokens
    config = tiny_config(tokens=3 * 32, dtype="fp32", arithmetic=arithmetic)
    result = train(tiny_model(layers=(many,)), data, config, tmp_path)
    assert all(bool(value.isfinite().all()) for value in result.model.state_dict().values())


def test_what_cannot_be_is_refused(data, tmp_path):
    with pytest.raises(ValueError, match="fp32 with an arithmetic of its own"):
        tiny_config(arithmetic="float8", dtype="bf16")
    with pytest.raises(MixwellError, match="float9"):
        trained(data, tmp_path / "a", arithmetic="float9")


def test_it_is_no_conversion(tmp_path):
    with pytest.raises(MixwellError, match=r"float8 turns no checkpoint into another"):
        mixwell.apply("precision.training.float8", tiny_model(), out=tmp_path / "new")
