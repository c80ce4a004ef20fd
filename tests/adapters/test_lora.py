"""LoRA against loops that anyone can check: dense, in experts, with DoRA, PiSSA and dropout."""

import math

import pytest
import torch
from torch.nn.functional import silu

from mixwell.adapters import files, lora
from mixwell.adapters.lora import Config, LoRA, principal
from mixwell.core.errors import MixwellError
from mixwell.core.rng import generator as seeded
from mixwell.core.routing import Context
from mixwell.experts.layers.moe import Config as MoEConfig
from mixwell.experts.layers.moe import MoE
from mixwell.kernels.linear import Linear
from tests.contracts._adapters import logits, model, moved
from tests.contracts._tools import fresh


def layer(bias=True):
    made = Linear(6, 5, bias, fresh(1))
    if bias:
        torch.nn.init.normal_(made.bias, generator=fresh(2))
    return made


def beside(network, config, targets="all-linear"):
    return moved(LoRA.attach(network, targets, config, fresh(3)), size=0.3)


def changed(weight, adapter, scale, expert=None):
    """W' of a row at a time, from the definition and in float64."""
    pick = (lambda t: t.detach().double()) if expert is None else (lambda t: t[expert].detach().double())
    weight, A, B = pick(weight), pick(adapter.A), pick(adapter.B)
    whole = weight + scale * B @ A
    if adapter.start_A is not None:
        whole = whole - scale * pick(adapter.start_B) @ pick(adapter.start_A)
    if adapter.magnitude is not None:
        lengths = pick(adapter.magnitude)
        whole = torch.stack([lengths[o] * whole[o] / whole[o].norm() for o in range(len(whole))])
    return whole


CONFIGS = [Config(rank=2, alpha=6.0), Config(rank=2, alpha=6.0, rslora=True), Config(rank=2, start="gaussian"),
           Config(rank=2, dora=True), Config(rank=2, start="pissa"), Config(rank=2, start="pissa", dora=True)]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_layer_agrees_with_a_loop(config):
    network = layer()
    there = beside(network, config)
    scale = config.alpha / (math.sqrt(2) if config.rslora else 2)
    x = torch.randn(4, 6, generator=fresh(4))
    whole = changed(network.weight, there.adapters["weight"], scale)
    expected = [[sum(whole[o, i] * x[n, i].double() for i in range(6)) + network.bias[o].double() for o in range(5)]
                for n in range(4)]
    torch.testing.assert_close(network(x).double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(there.delta_weight("weight").double(), whole - network.weight.double(), rtol=1e-4,
                               atol=1e-5)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("tokens", [1, 9])
def test_experts_agree_with_a_loop_over_tokens(config, tokens):
    network = MoE(6, MoEConfig(num_experts=4, hidden_dim=5, router={"method": "top_k", "k": 2}), fresh(1)).eval()
    there = beside(network, config)
    scale = config.alpha / (math.sqrt(2) if config.rslora else 2)
    x = torch.randn(tokens, 6, generator=fresh(4))
    mixed = network(x, Context())
    expected = torch.zeros(tokens, 6, dtype=torch.float64)
    for t in range(tokens):
        for expert, weight in zip(mixed.routing.indices_TK[t].tolist(), mixed.routing.weights_TK[t].double()):
            into = changed(network.gate_up_proj, there.adapters["gate_up_proj"], scale, expert)
            out_of = changed(network.down_proj, there.adapters["down_proj"], scale, expert)
            gate, up = (into @ x[t].double()).chunk(2)
            expected[t] += weight * (out_of @ (silu(gate) * up))
    torch.testing.assert_close(mixed.y_TD.double(), expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(network(x, Context()).y_TD, mixed.y_TD, rtol=1e-5, atol=1e-6)


def test_gradients_in_experts_are_those_of_built_weights():
    """As if W + s B A had been built and differentiated, which is what the layer never does."""
    network = MoE(6, MoEConfig(num_experts=4, hidden_dim=5), fresh(1)).double()
    there = LoRA.attach(network, "all-linear", Config(rank=2, alpha=6.0), fresh(3))
    network.double()
    moved(there, size=0.3)
    x = torch.randn(9, 6, generator=fresh(4), dtype=torch.float64, requires_grad=True)
    mixed = network(x, Context())
    parameters = [p for adapter in there.adapters.values() for p in (adapter.A, adapter.B)]
    found = torch.autograd.grad(mixed.y_TD.square().sum(), [x, *parameters])
    into, out_of = ((network.get_parameter(n) + 3.0 * there.adapters[n].B @ there.adapters[n].A)
                    for n in ("gate_up_proj", "down_proj"))
    gate, up = torch.einsum("ehd,td->teh", into, x).chunk(2, -1)
    y_TED = torch.einsum("edf,tef->ted", out_of, silu(gate) * up)
    dense = network.router(x, Context()).dense_TE()
    y = (dense[..., None] * y_TED).sum(1)
    expected = torch.autograd.grad(y.square().sum(), [x, *parameters])
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other)


def test_dora_takes_the_length_as_a_constant():
    network = layer()
    there = beside(network, Config(rank=2, dora=True))
    adapter = there.adapters["weight"]
    x = torch.randn(4, 6, generator=fresh(4))
    (grad,) = torch.autograd.grad(network(x).sum(), adapter.B)
    whole = network.weight + 4.0 * adapter.B @ adapter.A
    gain = (adapter.magnitude / whole.norm(dim=1)).detach()
    expected = 4.0 * gain[:, None] * (x @ adapter.A.T).sum(0)
    torch.testing.assert_close(grad, expected.expand(5, 2))


def test_pissa_begins_at_the_largest_directions():
    weight = torch.randn(5, 6, generator=fresh(1))
    A, B = principal(weight, 2, 4.0)
    U, S, Vh = torch.linalg.svd(weight.double())
    best = (U[:, :2] * S[:2]) @ Vh[:2]
    torch.testing.assert_close((4.0 * B @ A).double(), best, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close((A @ A.T).diagonal(), (B.T @ B).diagonal())


def test_a_start_that_is_loaded_is_not_computed_again(tmp_path, monkeypatch):
    there = moved(LoRA.attach(model(), None, Config(rank=2, start="pissa", dora=True), seeded(3)))
    apart = logits(there.model)
    files.save(there, tmp_path / "saved")
    monkeypatch.setattr(lora, "principal", None)  # a decomposition of every weight
    again = files.load(tmp_path / "saved", model())
    assert torch.equal(logits(again.model), apart)


def test_full_rank_reaches_every_matrix():
    network = layer(bias=False)
    there = LoRA.attach(network, "all-linear", Config(rank=5, alpha=5.0), fresh(3))
    wanted = torch.randn(5, 6, generator=fresh(5))
    adapter = there.adapters["weight"]
    with torch.no_grad():
        adapter.B.copy_((wanted - network.weight) @ torch.linalg.pinv(adapter.A))
        adapter.A.copy_(torch.linalg.pinv(adapter.B) @ (wanted - network.weight))
    torch.testing.assert_close(network.weight + there.delta_weight("weight"), wanted, rtol=1e-4, atol=1e-4)


def test_dropout_draws_from_the_pass_and_only_in_training():
    network = MoE(6, MoEConfig(num_experts=2, hidden_dim=5), fresh(1))
    there = LoRA.attach(network, "gate_up_proj", Config(rank=2, dropout=0.5), fresh(3))
    moved(there, size=0.5)
    x = torch.randn(9, 6, generator=fresh(4))
    site = there.adapters["gate_up_proj"]
    draws = [site.now.enter(network, (x, Context(generator=seed and fresh(seed))), {}) or network(
        x, site.context).y_TD.detach() for seed in (7, 7, 8, None)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    network.eval()
    assert torch.equal(network(x, Context(generator=fresh(7))).y_TD, draws[3])
    assert not torch.equal(draws[0], draws[3])


def test_patterns_choose_rank_and_alpha():
    config = Config(rank=2, rank_pattern={"qkv": 3, "layers.1.*": 4}, alpha_pattern={"re:.*down_proj": 1.0})
    there = LoRA.attach(model(), None, config, seeded(3))
    ranks = {name: adapter.A.shape[0] for name, adapter in there.adapters.items()}
    assert ranks["layers.1.sequence_mixer.qkv.weight"] == 3 and ranks["layers.1.sequence_mixer.out.weight"] == 4
    assert ranks["layers.0.channel_mixer.down_proj"] == 2
    assert there.adapters["layers.0.channel_mixer.down_proj"].scale == 0.5
    assert there.num_parameters == sum(a.A.numel() + a.B.numel() for a in there.adapters.values())


def test_it_stands_beside_int8_and_packed_weights():
    from mixwell.kernels.packing import prepack
    from mixwell.precision.int8 import Config as Int8
    from mixwell.precision.int8 import int8

    plain = model(sparse=True)
    network = type(plain).from_checkpoint(int8(plain.to_checkpoint(), Int8(), fresh()))
    base = logits(network)
    there = LoRA.attach(network, None, Config(rank=2, dora=True), seeded(3))
    torch.testing.assert_close(logits(network), base, rtol=1e-5, atol=1e-6)
    moved(there)
    assert not torch.allclose(logits(network), base, atol=1e-3)
    with pytest.raises(MixwellError, match="is quantised; merge into full weights"):
        there.merge()
    packed = beside(plain, Config(rank=2, dora=True)).model
    before = logits(packed)
    prepack(packed)
    torch.testing.assert_close(logits(packed), before, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("options, message", [
    ({"rank": 0}, "rank is 0"), ({"alpha": 0.0}, "alpha is 0.0"), ({"dropout": 1.0}, "dropout is 1.0"),
    ({"alpha_pattern": {"qkv": 0.0}}, "alpha_pattern: qkv is 0.0")])
def test_refuses_what_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)


def test_refuses_a_rank_above_the_width():
    with pytest.raises(MixwellError, match=r"rank is 17 at layers.0.sequence_mixer.qkv.weight, a matrix of 48 x 16"):
        LoRA.attach(model(), "qkv", Config(rank=17), fresh())


@pytest.mark.parametrize("option, value", [("rank_pattern", 3), ("alpha_pattern", 2.0)])
def test_a_pattern_that_fits_nothing_is_refused(option, value):
    config = Config(**{option: {"up_prj": value}})
    target = lora.example(torch.Generator().manual_seed(0))["target"]
    with pytest.raises(MixwellError, match=f"{option}: nothing that is adapted fits 'up_prj'"):
        LoRA.build([target], config, torch.Generator())
