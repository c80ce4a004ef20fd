"""Minimal experts: two thirds of each alike, the rest dealt out in turn, the gate's weight, refusals."""

import pytest
import torch

from mixwell.convert.minimal_experts import Config, deal, minimal_experts, promises
from mixwell.core.errors import MixwellError
from tests.contracts._conversions import block, dense_model, output, spec

GATE, DOWN = "layers.1.channel_mixer.gate_up_proj", "layers.1.channel_mixer.down_proj"


def test_two_thirds_are_the_loudest_and_the_rest_comes_in_turn():
    loud = torch.tensor([1.0, 9, 2, 8, 3, 7, 4, 6, 5, 0])
    found = deal(loud, Config(hidden_dim=6, num_experts=2))
    order = [1, 3, 5, 7, 8, 6, 4, 2]
    assert [own.tolist() for own in found] == [[*order[:4], 8, 4], [*order[:4], 6, 2]]
    assert len(deal(loud, Config(hidden_dim=3, num_experts=4))) == 4
    assert deal(loud, Config(hidden_dim=4, num_experts=2))[1].tolist() == [1, 3, 5, 8]


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_token_visits_one_expert_with_its_weight(generator, scale):
    dense = dense_model(generator)
    after = minimal_experts(dense, Config(hidden_dim=3, num_experts=3, scale=scale), generator)
    x = torch.randn(4, 6, generator=generator)
    rows = after.tensors["layers.1.channel_mixer.router.weight"].double()
    gate_up, down = dense.tensors[GATE], dense.tensors[DOWN]
    loud = [float(gate_up[i].norm() * gate_up[8 + i].norm() * down[:, i].norm()) for i in range(8)]
    order = sorted(range(8), key=lambda i: -loud[i])
    for x_D, y_D in zip(x, output(after, 1, x)):
        p = torch.softmax(rows @ x_D.double(), 0)
        e = int(p.argmax())
        units = [*order[:2], order[2 + e]]
        part = block(gate_up[[*units, *(8 + i for i in units)]], down[:, units], x_D)
        torch.testing.assert_close(y_D, scale * p[e] * part, rtol=1e-4, atol=1e-4)
    assert spec(after, 1)["router"] == {"method": "top_k", "k": 1} and "balance" not in spec(after, 1)


def test_balance_layers_and_refusals(generator):
    config = Config(hidden_dim=3, balance={"switch": 0.1}, layers=(0,))
    after = minimal_experts(dense_model(generator), config, generator)
    assert spec(after, 0)["balance"] == {"switch": 0.1} and spec(after, 1)["method"] == "experts.layers.swiglu"
    assert promises(Config(hidden_dim=3)) == {}
    with pytest.raises(MixwellError, match="4 experts of 6 units take 12 different ones; the block has 8"):
        minimal_experts(dense_model(generator), Config(hidden_dim=6), generator)
    for options in ({"hidden_dim": 2}, {"hidden_dim": 3, "num_experts": 1}, {"hidden_dim": 3, "scale": 0.0}):
        with pytest.raises(ValueError, match="expected"):
            Config(**options)
