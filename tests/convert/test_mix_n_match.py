"""Mix'n'Match: a cut model is the nested one at that width, layer by layer; dense blocks; refusals."""

import pytest
import torch

from mixwell.convert.mix_n_match import Config, mix_n_match, promises
from mixwell.core.checkpoint import channel_mixers, with_channel_mixers
from mixwell.core.errors import MixwellError
from tests.contracts._conversions import block, dense_model, mixer, output, sparse_model, spec

GATE, DOWN = "layers.1.channel_mixer.gate_up_proj", "layers.1.channel_mixer.down_proj"


def nested_model(generator):
    dense = dense_model(generator)
    specs = [{"method": "matformer", "hidden_dim": 8} for _ in channel_mixers(dense.arch)]
    return dense.derive(arch=with_channel_mixers(dense.arch, specs))


@pytest.mark.parametrize("make", [nested_model, dense_model])
def test_a_cut_model_is_the_nested_one_at_its_width(generator, make):
    whole = make(generator)
    after = mix_n_match(whole, Config(widths=(4, 3)), generator)
    x = torch.randn(4, 6, generator=generator)
    gate_up, down = whole.tensors[GATE], whole.tensors[DOWN]
    wanted = torch.stack([block(gate_up[[0, 1, 2, 8, 9, 10]], down[:, :3], row) for row in x])
    torch.testing.assert_close(output(after, 1, x), wanted, rtol=1e-4, atol=1e-4)
    assert [s["hidden_dim"] for s in channel_mixers(after.arch)] == [4, 3]
    assert spec(after, 0)["method"] == "experts.layers.swiglu"
    if make is nested_model:
        nested = mixer(whole, 0)
        torch.testing.assert_close(output(after, 0, x), nested.at_width(x.double(), 4))


def test_one_width_for_all_and_the_full_width(generator):
    whole = nested_model(generator)
    same = mix_n_match(whole, Config(widths=8), generator)
    assert torch.equal(same.tensors[GATE], whole.tensors[GATE]) and promises(Config(widths=1)) == {}


def test_refuses_what_it_cannot_do(generator):
    with pytest.raises(MixwellError, match="layer 0 has 8 hidden units; expected a width of that at most, got 9"):
        mix_n_match(dense_model(generator), Config(widths=9), generator)
    with pytest.raises(MixwellError, match="3 widths for 2 layers"):
        mix_n_match(dense_model(generator), Config(widths=(1, 2, 3)), generator)
    with pytest.raises(MixwellError, match="cuts nested and dense blocks"):
        mix_n_match(sparse_model(generator), Config(widths=2), generator)
    with pytest.raises(ValueError, match="expected at least 1"):
        Config(widths=(1, 0))
