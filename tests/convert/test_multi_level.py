"""Steps between levels: every tensor against a loop, the way back, twins, and functions that stay."""

import pytest
import torch

from mixwell.convert.multi_level import Config, multi_level, needs, promises
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.errors import MixwellError
from mixwell.core.rng import generator as seeded
from mixwell.lm.config import ModelConfig
from mixwell.lm.model import LanguageModel
from tests.contracts._conversions import calibration, logits

TOKENS = torch.randint(0, 13, (3, 10), generator=seeded(2))
MOE = {"method": "experts.layers.moe", "num_experts": 3, "hidden_dim": 6, "router": {"method": "top_k", "k": 2}}
DENSE = {"method": "experts.layers.swiglu", "hidden_dim": 10}


def model(seed=0, **changes):
    """A whole model in which nothing is left at zero or one."""
    arch = {"vocab_size": 13, "dim": 8, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 4,
            "channel_mixer": DENSE, "max_positions": 32} | changes
    made = LanguageModel(ModelConfig(**arch), seeded(seed)).to_checkpoint()
    draws = seeded(seed + 1)
    tensors = {n: t + 0.3 * torch.randn(t.shape, generator=draws) for n, t in made.tensors.items()}
    return made.derive(tensors=tensors)


def step(checkpoint, other=None, **options):
    text = calibration(models=lambda name: other)
    return multi_level(checkpoint, Config(**options), seeded(0), text)


def up(checkpoint, before=None, **options):
    named = {} if before is None else {"before": "large"}
    return step(checkpoint, before, way="up", **{"share": 1.0, **named, **options})


def halved_by_loop(weight, outputs, inputs):
    """Rows are averaged and columns summed over the pairs named."""
    result = torch.zeros(len(outputs), len(inputs), dtype=torch.float64)
    for i, (a, b) in enumerate(outputs):
        for j, (c, d) in enumerate(inputs):
            result[i, j] = sum(weight[r, s].double() for r in (a, b) for s in (c, d)) / 2
    return result


def neighbours(count, unit=1):
    return [(2 * unit * (n // unit) + n % unit, 2 * unit * (n // unit) + n % unit + unit) for n in range(count)]


def test_every_matrix_of_a_layer_is_halved_as_by_a_loop():
    large = model()
    small = step(large, depth=False)
    heads, channels = neighbours(16, 4), neighbours(4)  # 4 + 2 + 2 heads of width 4
    expected = {
        "sequence_mixer.qkv.weight": (heads, channels), "sequence_mixer.out.weight": (channels, neighbours(8, 4)),
        "channel_mixer.gate_up_proj": (neighbours(10), channels), "channel_mixer.down_proj": (channels, neighbours(5))}
    for name, pairs in expected.items():
        full = f"layers.1.{name}"
        wanted = halved_by_loop(large.tensors[full], *pairs)
        torch.testing.assert_close(small.tensors[full].double(), wanted, rtol=1e-5, atol=1e-6)
    gains, embed = large.tensors["layers.1.channel_norm.weight"], large.tensors["embed.weight"]
    torch.testing.assert_close(small.tensors["layers.1.channel_norm.weight"], (gains[::2] + gains[1::2]) / 2)
    torch.testing.assert_close(small.tensors["embed.weight"], (embed[:, ::2] + embed[:, 1::2]) / 2)
    assert small.arch["num_kv_heads"] == 1 and small.arch["num_layers"] == 2
    assert logits(small, TOKENS).shape == (3, 10, 13)


def test_layers_are_averaged_two_by_two_and_copied_back():
    large = model(num_layers=4)
    small = step(large, width=False)
    name = "sequence_mixer.out.weight"
    mean = (large.tensors[f"layers.2.{name}"] + large.tensors[f"layers.3.{name}"]) / 2
    torch.testing.assert_close(small.tensors[f"layers.1.{name}"], mean)
    assert small.arch["num_layers"] == 2 and small.arch["dim"] == 8
    back = up(small, width=False)
    assert all(torch.equal(back.tensors[f"layers.{layer}.{name}"], mean) for layer in (2, 3))


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": True, "embed_scale": 3.0}, {"channel_mixer": MOE},
                                     {"channel_mixer": [DENSE, MOE], "learned_positions": True, "norm": "layer"}])
def test_down_undoes_up_and_width_alone_keeps_the_function(changes):
    small = model(**changes)
    large = up(small, depth=False)
    torch.testing.assert_close(logits(large, TOKENS), logits(small, TOKENS), rtol=1e-4, atol=1e-4)
    whole = up(small)
    for back in (step(large, depth=False), step(whole)):
        assert {**back.arch} == {**small.arch, "architecture": "auto"}
        assert all(torch.equal(back.tensors[name], tensor) for name, tensor in small.tensors.items())


@pytest.mark.parametrize("share, alike", [(1.0, True), (0.5, False)])
def test_twins_stay_alike_in_training_unless_the_large_model_is_mixed_in(share, alike):
    large = model()
    small = step(large)
    grown = up(small, large if share < 1 else None, share=share)
    trained = LanguageModel.from_checkpoint(grown, dtype=torch.float64)
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        trained.loss(TOKENS[:, :-1], TOKENS[:, 1:]).nats.backward()
        optimizer.step()
    gate_up = trained.layers[0].channel_mixer.gate_up_proj
    apart = float((gate_up[::2] - gate_up[1::2]).detach().abs().max())
    assert (apart < 1e-8) == alike


def test_the_large_model_counts_by_what_is_left_of_the_share():
    large = model()
    small = step(large)
    pure = up(small)
    found = up(small, large, share=0.25)
    for name, tensor in found.tensors.items():
        torch.testing.assert_close(tensor, 0.75 * large.tensors[name] + 0.25 * pure.tensors[name])


def test_says_what_it_needs_and_promises():
    exact = Config(way="up", share=1.0, depth=False)
    assert promises(exact)["max_logit_error"] > 0 and promises(Config()) == {}
    assert needs(Config(way="up", before="run/large")).models == ("run/large",) and not needs(exact).models


@pytest.mark.parametrize("options", [{"width": False, "depth": False}, {"share": 0.0}, {"way": "up"},
                                     {"before": "large"}, {"way": "up", "share": 1.0, "before": "large"}])
def test_refuses_options_that_do_not_fit(options):
    with pytest.raises(ValueError, match="expected"):
        Config(**options)


@pytest.mark.parametrize("changes, message", [
    ({"num_layers": 3}, "num_layers is 3; expected an even number"),
    ({"num_kv_heads": 1}, "num_kv_heads is 1; expected an even number"),
    ({"channel_mixer": {**DENSE, "hidden_dim": 9}}, "hidden_dim is 9; expected an even number"),
    ({"channel_mixer": [DENSE, MOE]}, "neighbouring layers differ in their channel_mixer"),
    ({"channel_mixer": {**MOE, "shared_experts": 1}}, "shared_gate_up_proj has no known half"),
    ({"sequence_mixer": {"method": "sequence.attention", "head_dim": 2}}, "sequence_mixer .* has no known half"),
    ({"sequence_mixer": {"method": "sequence.attention", "qk_norm": "full"}}, "sequence_mixer .* has no known half"),
    ({"channel_mixer": {"method": "experts.layers.matformer", "hidden_dim": 8}}, "channel_mixer .* has no known half"),
])
def test_refuses_what_it_cannot_halve(changes, message):
    with pytest.raises(MixwellError, match=message):
        step(model(**changes))


def test_refuses_a_large_model_of_another_shape():
    with pytest.raises(MixwellError, match=r"large has .* name the model that went down"):
        up(step(model()), model(channel_mixer={**DENSE, "hidden_dim": 12}), share=0.5)
    assert isinstance(step(model()), Checkpoint)
