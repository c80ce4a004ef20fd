"""Upcycling: copies that compute the dense function, re-initialised units in the stated number, and refusals."""

import pytest
import torch

from mixwell.convert._parts import dense_example
from mixwell.convert.upcycle import Config, example, promises, reinitialise, upcycle
from mixwell.core.checkpoint import Checkpoint, channel_mixers, with_channel_mixers
from mixwell.core.errors import MixwellError
from mixwell.core.routing import Context
from mixwell.experts.layers.moe import Config as MoEConfig
from mixwell.experts.layers.moe import MoE
from mixwell.experts.layers.swiglu import Config as DenseConfig
from mixwell.experts.layers.swiglu import SwiGLU

GATE, DOWN, ROUTER = (f"layers.1.channel_mixer.{n}" for n in ("gate_up_proj", "down_proj", "router.weight"))


@pytest.fixture
def dense(generator):
    return example(generator)["checkpoint"]


def load(layer, tensors, number):
    prefix = f"layers.{number}.channel_mixer."
    layer.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    return layer


def test_the_function_is_preserved_at_step_0(dense, generator):
    sparse = upcycle(dense, Config(num_experts=4), generator)
    spec = dict(channel_mixers(sparse.arch)[1])
    assert spec.pop("method") == "experts.layers.moe"
    x = torch.randn(9, 6, generator=generator)
    before = load(SwiGLU(6, DenseConfig(hidden_dim=5)), dense.tensors, 1)(x, Context()).y_TD
    after = load(MoE(6, MoEConfig(**spec)), sparse.tensors, 1)(x, Context()).y_TD
    torch.testing.assert_close(after, before)
    assert promises(Config())["max_logit_error"] <= 1e-3


def test_copies_take_no_memory_and_the_dense_model_stays(dense, generator):
    before = {k: v.clone() for k, v in dense.tensors.items()}
    sparse = upcycle(dense, Config(num_experts=4), generator)
    assert sparse.tensors[GATE].untyped_storage().data_ptr() == dense.tensors[GATE].untyped_storage().data_ptr()
    assert all(torch.equal(before[k], v) for k, v in dense.tensors.items())


def test_parameter_count_equals_the_formula(dense, generator):
    sparse = upcycle(dense, Config(num_experts=4), generator)
    count = sum(t.numel() for t in sparse.tensors.values())
    assert count == 2 * (4 * 3 * 6 * 5 + 4 * 6)


def test_balance_rules_are_carried_and_by_default_left_to_the_layer(dense, generator):
    spec = channel_mixers(upcycle(dense, Config(num_experts=4, balance={"z_loss": 0.5}), generator).arch)[1]
    assert spec["balance"] == {"z_loss": 0.5}
    assert "balance" not in channel_mixers(upcycle(dense, Config(num_experts=4), generator).arch)[1]


def test_some_layers_only(dense, generator):
    sparse = upcycle(dense, Config(num_experts=4, layers=(1,)), generator)
    methods = [s["method"] for s in channel_mixers(sparse.arch)]
    assert methods == ["experts.layers.swiglu", "experts.layers.moe"]
    assert sparse.tensors[ROUTER].shape == (4, 6) and "layers.0.channel_mixer.router.weight" not in sparse.tensors


@pytest.mark.parametrize("router, names", [
    ({"method": "loss_free_bias"}, {"weight", "bias"}),
    ({"method": "recurrent"}, {"weight"}),
    ({"method": "hash", "vocab_size": 16}, {"table_V"}),
])
def test_any_router_brings_its_own_tensors(dense, generator, router, names):
    sparse = upcycle(dense, Config(num_experts=4, router=router), generator)
    prefix = "layers.1.channel_mixer.router."
    assert names <= {n.removeprefix(prefix) for n in sparse.tensors if n.startswith(prefix)}


@pytest.mark.parametrize("share, count", [(0.0, 0), (0.4, 2), (1.0, 5)])
def test_reinitialises_the_stated_share_of_hidden_units(dense, generator, share, count):
    gate_up = dense.tensors[GATE].expand(3, -1, -1)
    down = dense.tensors[DOWN].expand(3, -1, -1)
    new_gate_up, new_down = reinitialise(gate_up, down, share, generator)
    for e in range(3):
        rows = (new_gate_up[e] != gate_up[e]).all(-1)
        columns = (new_down[e] != down[e]).all(0)
        assert columns.sum() == count
        assert torch.equal(rows[:5], columns) and torch.equal(rows[5:], columns)
        assert torch.equal(new_gate_up[e][~rows], gate_up[e][~rows])


def test_redrawn_weights_keep_mean_and_spread(generator):
    gate_up = (3 + 0.5 * torch.randn(1, 400, 50, generator=generator))
    down = torch.randn(1, 50, 200, generator=generator)
    fresh, _ = reinitialise(gate_up, down, 1.0, generator)
    assert abs(fresh.mean() - 3) < 0.02 and abs(fresh.std() - 0.5) < 0.02


def test_noise_makes_every_expert_another_and_no_promise(dense, generator):
    config = Config(num_experts=3, noise=0.1)
    gate_up = upcycle(dense, config, generator).tensors[GATE]
    assert not torch.equal(gate_up[0], gate_up[1])
    assert 0.05 < (gate_up[0] - dense.tensors[GATE]).std() / dense.tensors[GATE].std() < 0.2
    assert promises(config) == {} == promises(Config(reinitialise=0.5)) == promises(Config(router={"k": 1}))


def test_refuses_what_it_cannot_do(dense, generator):
    sparse = upcycle(dense, Config(num_experts=4), generator)
    with pytest.raises(MixwellError, match="a mixture already"):
        upcycle(sparse, Config(), generator)
    with pytest.raises(MixwellError, match="layers names 7"):
        upcycle(dense, Config(layers=(7,)), generator)
    quantised = Checkpoint(dense.arch, {**dense.tensors, f"{GATE}.scale": torch.ones(10, 1)})
    with pytest.raises(MixwellError, match="quantise last"):
        upcycle(quantised, Config(), generator)


@pytest.mark.parametrize("option", [{"bias": True}, {"activation": "gelu"}, {"gated": False}])
def test_refuses_blocks_that_experts_could_not_copy(dense, generator, option):
    specs = [dict(spec) | option for spec in channel_mixers(dense.arch)]
    other = Checkpoint(with_channel_mixers(dense.arch, specs), dense.tensors)
    with pytest.raises(MixwellError, match=r"layer 0 has a dense block with .*; upcycling takes .* only"):
        upcycle(other, Config(num_experts=4), generator)


@pytest.mark.parametrize("router", [{"k": 2}, {"k": 4}, {"k": 4, "renormalise": False}])
def test_virtual_groups_take_whole_copies_and_keep_the_function(generator, router):
    before = dense_example(generator, 6)
    config = Config(num_experts=6, granularity=2, router={"method": "top_k", **router})
    after = upcycle(before, config, generator)
    spec = dict(channel_mixers(after.arch)[1])
    assert spec["hidden_dim"] == 3 and after.tensors[GATE].shape == (6, 6, 6)
    x = torch.randn(9, 6, generator=generator)
    layer = load(MoE(6, MoEConfig(**{k: v for k, v in spec.items() if k != "method"})), after.tensors, 1)
    mixed = layer(x, Context())
    copies = mixed.routing.indices_TK.sort(-1).values // 2
    assert torch.equal(copies[:, ::2], copies[:, 1::2])  # a slice comes with the other slice of its copy
    assert len(copies.unique()) > 1
    wanted = load(SwiGLU(6, DenseConfig(hidden_dim=6)), before.tensors, 1)(x, Context()).y_TD
    if router.get("renormalise") is False:
        assert (mixed.y_TD - wanted).norm() < 0.2 * wanted.norm() and promises(config) == {}
    else:
        torch.testing.assert_close(mixed.y_TD, wanted, rtol=1e-4, atol=1e-4)
        assert promises(config)["max_logit_error"] <= 1e-3


@pytest.mark.parametrize("options, message", [
    ({"granularity": 3}, "a divisor of num_experts"),
    ({"granularity": 2, "router": {"k": 3}}, "a multiple of granularity"),
    ({"granularity": 2, "router": {"method": "sinkhorn", "k": 2}}, "by 'sinkhorn'"),
])
def test_refuses_groups_that_would_be_torn(options, message):
    with pytest.raises(ValueError, match=message):
        Config(num_experts=8, **options)


def test_refuses_units_that_do_not_fall_into_slices(dense, generator):
    with pytest.raises(MixwellError, match="5 hidden units do not fall into 2 slices"):
        upcycle(dense, Config(num_experts=4, granularity=2), generator)


@pytest.mark.parametrize("options", [{"num_experts": 1}, {"reinitialise": 1.5}, {"noise": -1.0}])
def test_refuses_options_out_of_range(options):
    with pytest.raises(ValueError, match="expected"):
        Config(**options)


def test_one_mixer_a_layer_must_be_listed():
    with pytest.raises(MixwellError, match="make them agree"):
        channel_mixers({"num_layers": 3, "channel_mixer": [{}]})
    assert with_channel_mixers({"num_layers": 2}, [{"a": 1}, {"a": 1}])["channel_mixer"] == {"a": 1}
