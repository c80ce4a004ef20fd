"""What recipes ask of a training: steps and epochs, accumulated gradients, frozen parts, activation checkpointing."""

import dataclasses
import json

import pytest
import torch

from mixwell.core.config import from_dict, to_dict
from mixwell.core.errors import MixwellError
from mixwell.core.rng import generator
from mixwell.lm.config import ModelConfig
from mixwell.lm.model import LanguageModel
from mixwell.lm.training import loop
from mixwell.lm.training.loop import TrainConfig, train
from mixwell.lm.training.sampler import Batch, Sampler
from tests.contracts._tools import cases, example
from tests.lm import tiny
from tests.lm.tiny import DENSE, MOE, tiny_data, tiny_model

PLAIN = {**MOE, "balance": {}}  # without losses whose statistics are a micro-batch's own


def tiny_config(**options):
    """Without states saved on the way, which nothing here asks for."""
    return tiny.tiny_config(**{"save_every": 0} | options)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data(tmp_path_factory.mktemp("tokens") / "tokens")


@pytest.mark.parametrize(("budget", "steps"), [({"steps": 3}, 3), ({"epochs": 1}, None), ({"epochs": 0.5}, None)])
def test_steps_and_epochs_are_budgets(data, tmp_path, budget, steps):
    windows = sum((data.count(domain, "train") - 1) // 8 for domain in data.domains)
    expected = steps or int(budget["epochs"] * windows) // 16
    result = train(tiny_model(), data, tiny_config(**{"tokens": None, "batch_size": 16} | budget), tmp_path)
    assert result.tokens == expected * 128
    assert result.metrics[-1]["step"] == expected


def test_an_epoch_is_of_the_domains_that_are_read(data, tmp_path):
    config = tiny_config(tokens=None, epochs=2, batch_size=16)
    result = train(tiny_model(), data, config, tmp_path, weights={"words": 1.0})
    windows = (data.count("words", "train") - 1) // 8
    assert result.tokens == 2 * windows // 16 * 128 == result.ledger["words"]


def grads_after(model, data, config, folder, monkeypatch, batch=None):
    """Gradients of the first step, as the optimizer gets them, and the line that tells of it."""
    found = {}

    def keep(self, lr, norm=0.0, clip=0.0):
        found.update({name: master.grad.clone() for name, master in self._masters.items() if master.grad is not None})

    monkeypatch.setattr(loop.MasterAdamW, "step", keep)
    if batch is not None:
        monkeypatch.setattr(Sampler, "batch", lambda self: batch)
    result = train(model, data, dataclasses.replace(config, tokens=None, steps=1), folder)
    return found, result.metrics[-1]


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_gradients_are_those_of_the_big_batch(data, tmp_path, monkeypatch, parts):
    config = tiny_config(dtype="fp32")
    whole, line = grads_after(tiny_model(layers=(DENSE, PLAIN)), data, config, tmp_path / "1", monkeypatch)
    config = dataclasses.replace(config, accumulate=parts)
    sum_, other = grads_after(tiny_model(layers=(DENSE, PLAIN)), data, config, tmp_path / "n", monkeypatch)
    assert whole.keys() == sum_.keys()
    for name, grad in whole.items():
        torch.testing.assert_close(sum_[name], grad, rtol=1e-4, atol=1e-6)
    assert other["loss_nats"] == pytest.approx(line["loss_nats"], rel=1e-5)


def test_parts_with_fewer_targets_weigh_less(data, tmp_path, monkeypatch):
    """Three of four rows of targets are left out in most places: the mean is over targets, not over micro-batches."""
    batch = Sampler(data, None, 4, 8, 0).batch()
    targets = batch.targets_BT.clone()
    targets[0, 2:] = targets[1, :7] = targets[2, :] = -100
    masked = Batch(batch.tokens_BT, targets, batch.domains_B)
    model = tiny_model(layers=(DENSE, PLAIN))
    model.loss(masked.tokens_BT, masked.targets_BT).nats.backward()
    config = tiny_config(dtype="fp32", accumulate=4)
    found, line = grads_after(tiny_model(layers=(DENSE, PLAIN)), data, config, tmp_path, monkeypatch, masked)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)
    logits = model(masked.tokens_BT).logits_BTV
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
    assert line["loss_nats"] == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(("patterns", "held"), [
    ("embed*", {"embed.weight"}),
    ("model.embed*", {"embed.weight"}),
    (["layers.0.*", "*router*"], {"layers.0.", "router"}),
])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_what_is_frozen_stays_and_the_rest_learns_as_before(data, tmp_path, monkeypatch, patterns, held, dtype):
    config = tiny_config(dtype=dtype, freeze=patterns)
    with monkeypatch.context() as patched:
        free, _ = grads_after(tiny_model(), data, tiny_config(dtype=dtype), tmp_path / "free", patched)
        own, _ = grads_after(tiny_model(), data, config, tmp_path / "frozen", patched)
    assert own and all(torch.equal(grad, free[name]) for name, grad in own.items())
    before = tiny_model().cast(torch.bfloat16 if dtype == "bf16" else torch.float32).state_dict()
    result = train(tiny_model(), data, config, tmp_path / "run")
    for name, value in result.model.state_dict().items():
        frozen = any(part in name for part in held)
        assert torch.equal(value, before[name]) == frozen, name
        assert (name not in own) == frozen, name
    assert all(parameter.requires_grad for parameter in result.model.parameters()), "free again for the next training"


def test_a_frozen_router_keeps_the_bias_that_follows_the_load(data, tmp_path):
    biased = {**MOE, "router": {"method": "loss_free_bias", "k": 1, "update_rate": 0.1}}
    for patterns, moved in (((), True), ("*router*", False)):
        model = tiny_model(layers=(DENSE, biased))
        (name,) = [name for name, _ in model.named_buffers() if "bias" in name]
        before = model.get_buffer(name).clone()
        train(model, data, tiny_config(freeze=patterns, dtype="fp32"), tmp_path / str(moved))
        assert (not torch.equal(model.get_buffer(name), before)) == moved


@pytest.mark.parametrize(("patterns", "message"), [
    ("embd.weight", r"freeze: no part of the model fits 'embd.weight'. Did you mean 'embed.weight'\?"),
    ("*", r"freeze: \* leaves nothing to train"),
])
def test_patterns_that_fit_nothing_or_all_are_refused(data, tmp_path, patterns, message):
    model = tiny_model()
    with pytest.raises(MixwellError, match=message):
        train(model, data, tiny_config(freeze=patterns), tmp_path)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_frozen_run_goes_on_with_the_same_bits(data, tmp_path):
    config = tiny_config(freeze="embed*", dtype="bf16")

    def stop(step, share, info):
        if step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tiny_model(), data, config, tmp_path / "cut", progress=stop)
    cut = train(tiny_model(), data, config, tmp_path / "cut").model.state_dict()
    whole = train(tiny_model(), data, config, tmp_path / "whole").model.state_dict()
    assert all(torch.equal(cut[name], value) for name, value in whole.items())
    with pytest.raises(MixwellError, match="holds a run with freeze"):
        train(tiny_model(), data, tiny_config(dtype="bf16"), tmp_path / "cut")


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"dtype": "bf16"}])
def test_checkpointing_changes_no_bit(data, tmp_path, options):
    noisy = {**MOE, "router": {"method": "noisy_top_k", "k": 2}, "balance": {"global_batch": 0.1}}
    results = []
    for checkpointing in (False, True):
        model = tiny_model(layers=(DENSE, noisy, noisy))
        config = tiny_config(**{"dtype": "fp32"} | options, checkpointing=checkpointing)
        results.append(train(model, data, config, tmp_path / str(checkpointing)))
        assert not model.checkpointing, "left as it was found"
    one, other = (result.model.state_dict() for result in results)
    assert all(torch.equal(other[name], value) for name, value in one.items())
    assert [line["loss_nats"] for line in results[0].metrics] == [line["loss_nats"] for line in results[1].metrics]
    assert results[0].metrics[-1]["load"] == results[1].metrics[-1]["load"], "tokens are counted once"


def test_checkpointing_keeps_the_layers_inputs_alone():
    """Bytes that the backward pass holds on to: a fraction of what they are without it."""
    kept = {}
    for checkpointing in (False, True):
        model = tiny_model(layers=(DENSE,) * 4).train()
        model.checkpointing = checkpointing
        held = []

        def pack(tensor, held=held):
            held.append(tensor.numel() * tensor.element_size())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.loss(torch.zeros(2, 64, dtype=torch.int64), torch.ones(2, 64, dtype=torch.int64))
        kept[checkpointing] = sum(held)
    assert kept[True] < kept[False] / 3


def gradients(config, checkpointing):
    """Gradients of two micro-batches of a step and the loads told, by a fresh model."""
    model = LanguageModel(config, generator(3)).train()
    if model.needs_tokens:
        model.fit_tokens(torch.arange(500) % config.vocab_size, generator(5))
    model.checkpointing = checkpointing
    draws = generator(4)
    loads = []
    for part in range(2):
        tokens_BT = torch.randint(config.vocab_size, (2, 9), generator=generator(part))
        labels_B = torch.tensor([0, 1])
        loss = model.loss(tokens_BT[:, :-1], tokens_BT[:, 1:], labels_B=labels_B, step=1, generator=draws)
        total = loss.nats if loss.aux is None else loss.nats + loss.aux
        total.backward()
        loads += [routing.load_E().tolist() for routing in loss.routings if routing is not None]
    model.after_step([loss.routings])
    grads = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {**grads, **dict(model.named_buffers())}, loads


def same_with_checkpointing(config):
    plain, loads = gradients(config, False)
    again, other = gradients(config, True)
    assert plain.keys() == again.keys() and loads == other
    for name, value in plain.items():
        assert torch.equal(again[name], value), name


@pytest.mark.parametrize("entry", cases("experts.routers"))
def test_checkpointing_and_every_router(entry):
    values = example(entry)
    router = {"method": entry.name, **to_dict(values["config"])}
    mixer = {"method": "experts.layers.moe", "num_experts": values["num_experts"], "hidden_dim": 8, "router": router,
             "balance": {"switch": 0.1}}
    same_with_checkpointing(ModelConfig(vocab_size=10, dim=values["dim"], num_layers=2, num_heads=1,
                                        channel_mixer=mixer))


@pytest.mark.parametrize("entry", cases("experts.balance", ["own-inputs"]))
def test_checkpointing_and_every_balance_rule(entry):
    options = {**to_dict(example(entry)["config"]), "coefficient": 0.1}
    mixer = {**MOE, "num_experts": 4, "balance": {entry.name.rpartition(".")[2]: options}}
    same_with_checkpointing(ModelConfig(vocab_size=10, dim=8, num_layers=2, num_heads=1, channel_mixer=mixer))


def test_options_of_recipes_go_to_plain_data_and_back():
    config = TrainConfig(steps=7, freeze=("embed*", "head*"), checkpointing=True, accumulate=2)
    assert from_dict(TrainConfig, json.loads(json.dumps(to_dict(config)))) == config
    assert config.frozen == ("embed*", "head*") and TrainConfig(steps=1, freeze="embed*").frozen == ("embed*",)
