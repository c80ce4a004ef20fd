"""Mixing models: experts are the sources' blocks, gates against states by hand, mergekit-moe's YAML, refusals."""

import dataclasses

import pytest
import torch

from mixwell.convert.mixture_of_models import Config, Expert, mixture_of_models, needs, promises
from mixwell.core.errors import MixwellError
from mixwell.core.rng import generator as seeded
from mixwell.lm.model import LanguageModel
from mixwell.lm.tokenizer import Tokenizer
from tests.contracts._conversions import block, calibration, dense_model, output, spec, whole

GATE, DOWN, ROUTER = (f"layers.1.channel_mixer.{n}" for n in ("gate_up_proj", "down_proj", "router.weight"))


def other(name):
    return dense_model(seeded(sum(map(ord, name))))


def mixed(generator, base=None, **options):
    experts = options.pop("experts", (Expert(source_model="x"), Expert(source_model="y"), Expert(source_model="z")))
    config = Config(**{"experts": experts, "gate_mode": "random", **options})
    return mixture_of_models(base or dense_model(generator), config, generator, calibration(models=other))


def reader(generator):
    """A base model that reads text."""
    tokenizer = Tokenizer.train(["one two three four five six", "red green blue"] * 4, 270)
    base = dense_model(generator)
    arch = {**base.arch, "vocab_size": tokenizer.vocab_size}
    tensors = {name: value for name, value in base.tensors.items() if "channel_mixer" in name}
    return dataclasses.replace(whole(base.derive(arch=arch, tensors=tensors)), files=tokenizer.save_files())


def test_every_expert_is_a_sources_block_and_the_rest_the_bases(generator):
    base = dense_model(generator)
    after = mixed(generator, base)
    for e, name in enumerate("xyz"):
        assert torch.equal(after.tensors[GATE][e], other(name).tensors[GATE])
        assert torch.equal(after.tensors[DOWN][e], other(name).tensors[DOWN])
    assert after.tensors["embed.weight"] is base.tensors["embed.weight"]
    x = torch.randn(6, generator=generator)
    p = torch.softmax(after.tensors[ROUTER].double() @ x.double(), 0)
    chosen = p.topk(2).indices.tolist()
    wanted = sum(p[e] / p[chosen].sum() * block(after.tensors[GATE][e], after.tensors[DOWN][e], x) for e in chosen)
    torch.testing.assert_close(output(after, 1, x[None])[0], wanted, rtol=1e-4, atol=1e-4)
    assert promises(Config(experts=(Expert(source_model="a"),) * 2, gate_mode="even")) == {}


def test_a_one_hot_gate_gives_the_sources_block_and_an_even_one_the_mean(generator):
    after = mixed(generator, experts_per_token=1)
    rows = torch.zeros(3, 6)
    rows[1] = 1e3
    after = after.derive(tensors={**after.tensors, ROUTER: rows})
    x = torch.rand(4, 6, generator=generator)
    torch.testing.assert_close(output(after, 1, x), output(other("y"), 1, x))
    gateless = mixed(generator, gate_mode="even", experts_per_token=3)
    mean = sum(output(other(name), 1, x) for name in "xyz") / 3
    torch.testing.assert_close(output(gateless, 1, x), mean)


@pytest.mark.parametrize("mode", ["hidden", "normed", "cheap_embed"])
def test_gates_are_the_mean_states_of_the_prompts(generator, mode):
    base = reader(generator)
    model = LanguageModel.from_checkpoint(base, dtype=torch.float32)
    read = {"stream": [], "normed": []}
    for layer in model.layers:
        layer.register_forward_pre_hook(lambda m, given: read["stream"].append(given[0][0].mean(0)))
        layer.channel_mixer.register_forward_pre_hook(lambda m, given: read["normed"].append(given[0].mean(0)))

    def states(text):
        for found in read.values():
            found.clear()
        ids = torch.tensor([model.tokenizer.prompt(text)])
        model(ids)
        if mode == "cheap_embed":
            return [model.embed(ids)[0].mean(0)] * 2
        return list(read["stream" if mode == "hidden" else "normed"])

    experts = (Expert(source_model="x", positive_prompts=("one two", "six"), negative_prompts=("red",)),
               Expert(source_model="y", positive_prompts=("green blue",)))
    config = Config(experts=experts, gate_mode=mode)

    def found_model(name):
        return dataclasses.replace(base, tensors={**base.tensors, GATE: base.tensors[GATE] + len(name)})

    after = mixture_of_models(base, config, generator, calibration(models=found_model))
    for layer in range(2):
        first = (states("one two")[layer] + states("six")[layer]) / 2 - states("red")[layer]
        second = states("green blue")[layer]
        rows = torch.stack([first / first.norm(), second / second.norm()])
        torch.testing.assert_close(after.tensors[f"layers.{layer}.channel_mixer.router.weight"], rows.detach(),
                                   rtol=1e-4, atol=1e-5)


def test_random_gates_have_their_spread(generator):
    rows = mixed(generator).tensors[ROUTER]
    within = mixed(generator, gate_mode="uniform_random").tensors[ROUTER]
    assert 0.5 < rows.std() < 1.5 and within.abs().max() <= 6 ** -0.5 and within.abs().max() > 0.3


def test_noise_scale_shared_experts_mean_and_type(generator):
    experts = (Expert(source_model="x", noise_scale=0.1), Expert(source_model="y", residual_scale=0.5))
    after = mixed(generator, experts=experts, shared_experts=(Expert(source_model="z"),), rest="mean", dtype="bfloat16")
    moved = after.tensors[GATE][0].float() - other("x").tensors[GATE]
    assert 0.05 < moved.std() < 0.2
    assert torch.equal(after.tensors[DOWN][1], (0.5 * other("y").tensors[DOWN]).bfloat16())
    assert torch.equal(after.tensors["layers.1.channel_mixer.shared_down_proj"], other("z").tensors[DOWN].bfloat16())
    name = "layers.0.sequence_mixer.out.weight"
    mean = (other("x").tensors[name] + other("y").tensors[name]) / 2
    assert torch.equal(after.tensors[name], mean.bfloat16()) and spec(after, 0)["shared_experts"] == 1
    assert after.tensors[ROUTER].dtype == torch.float32


YAML = """
base_model: base
gate_mode: uniform_random
dtype: float32
experts_per_token: 1
architecture: mixtral
experts:
  - {source_model: x, positive_prompts: [one, two], negative_prompts: [three]}
  - {source_model: y, positive_prompts: [four], residual_scale: 0.9}
"""


def test_reads_the_yaml_of_mergekit_moe(generator, tmp_path):
    path = tmp_path / "moe.yml"
    path.write_text(YAML)
    config = Config(config=str(path))
    assert needs(config).models == ("x", "y", "base") and needs(config).files == (str(path),)
    base = dense_model(seeded(sum(map(ord, "base"))))
    after = mixture_of_models(base, config, generator, calibration(models=other))
    assert after.arch["architecture"] == "mixtral" and spec(after, 0)["router"]["k"] == 1
    torch.testing.assert_close(after.tensors[DOWN][1], 0.9 * other("y").tensors[DOWN])
    with pytest.raises(MixwellError, match="base_model base is another model than the one handed in"):
        mixture_of_models(dense_model(generator), config, generator, calibration(models=other))
    for text, message in (("experts: [", "is no YAML"), ("config: a", "a further file"),
                          ("expert: []", "unknown key 'expert'"), ("- 1", "expected keys and values")):
        path.write_text(text)
        with pytest.raises(MixwellError, match=message):
            needs(config)


def test_refuses_models_of_another_shape_and_options_that_cannot_be(generator):
    config = Config(experts=(Expert(source_model="x"), Expert(source_model="y")), gate_mode="even")
    with pytest.raises(MixwellError, match=r"layers.0.channel_mixer.gate_up_proj of shape \(12, 6\)"):
        mixture_of_models(dense_model(generator), config, generator,
                          calibration(models=lambda name: dense_model(generator, 6)))

    def fewer(name):
        return other(name).derive(tensors={"embed.weight": other(name).tensors["embed.weight"]})

    with pytest.raises(MixwellError, match="x has no "):
        mixture_of_models(dense_model(generator), config, generator, calibration(models=fewer))
    with pytest.raises(MixwellError, match="no tokenizer to read prompts"):
        mixed(generator, experts=(Expert(source_model="x", positive_prompts=("a",)),) * 2, gate_mode="hidden")
    two = (Expert(source_model="x"),) * 2
    for options in ({"experts": two[:1]}, {"experts": two}, {"experts": two, "config": "a"},
                    {"experts": two, "gate_mode": "even", "experts_per_token": 3}):
        with pytest.raises(ValueError, match=r"expected two|positive_prompts|leave them out|of 2 experts"):
            Config(**options)
