"""What every adapter promises; the suite finds the methods by the registry."""

import copy
import functools

import pytest
import torch

from mixwell.adapters import files
from mixwell.core.errors import MixwellError
from mixwell.core.rng import generator as seeded
from tests.contracts._adapters import TOKENS, bare, logits, model, moved, states
from tests.contracts._tools import cases, fresh, poisoned_memory, same_config

ENTRIES = [case for case in cases("adapters") if case.values[0].family == "adapters"]
# those whose published start is the identity
EXACT = [case for case in ENTRIES if "inexact-start" not in case.values[0].tags]
MATRIX = [case for case in ENTRIES if "matrix" in case.values[0].tags]
LAYERS = [case for case in ENTRIES if "matrix" not in case.values[0].tags]


@functools.cache
def config_of(entry):
    return entry.module().example(fresh())["config"]


def sparse(entry):
    """Whether it goes with experts, and stands beside a mixture."""
    return bool(entry.tags & {"experts", "mixture"})


def attached(entry, seed=3):
    """The method beside a small model, a mixture where it goes with experts."""
    network = model(sparse(entry))
    given = {"text": [TOKENS, TOKENS.flip(1)]} if "text" in entry.tags else {}
    return entry.load().attach(network, None, config_of(entry), seeded(seed), **given)


@pytest.mark.parametrize("entry", EXACT)
@pytest.mark.parametrize("training", [False, True])
def test_it_starts_as_the_base_to_the_bit(entry, training):
    there = attached(entry)
    if not training:
        assert torch.equal(logits(there.model), bare(sparse(entry))[1])
        return
    networks = there.model, model(sparse(entry))
    tuned, base = (network.train().loss(TOKENS[:, :-1], TOKENS[:, 1:]) for network in networks)
    assert torch.equal(tuned.nats, base.nats)


@pytest.mark.parametrize("entry", ENTRIES)
def test_same_generator_same_bits_and_the_base_stays(entry):
    with poisoned_memory():
        first = moved(attached(entry))
    second = moved(attached(entry))
    assert first.tensors().keys() == second.tensors().keys()
    for name, value in first.tensors().items():
        assert torch.isfinite(value).all() and torch.equal(value, second.tensors()[name]), name
    assert torch.equal(logits(first.model), logits(second.model))
    start = bare(sparse(entry))[0].state_dict()
    assert all(torch.equal(value, start[name]) for name, value in first.base_tensors().items())


@pytest.mark.parametrize("entry", ENTRIES)
def test_only_the_adapter_is_trained_and_all_of_it(entry):
    there = moved(attached(entry), size=0.03)
    there.model.train()
    loss = there.model.loss(TOKENS[:, :-1], TOKENS[:, 1:], generator=seeded(4))
    (loss.nats if loss.aux is None else loss.nats + loss.aux).backward()
    named = dict(there.model.named_parameters())
    trained = [name for name, p in named.items() if p.requires_grad]
    assert there.num_parameters == sum(named[name].numel() for name in trained)
    for name, parameter in named.items():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    still = [name for name in trained if not named[name].grad.any()]
    assert not still


@pytest.mark.parametrize("entry", MATRIX)
def test_merged_equals_unmerged_and_comes_apart_again(entry):
    there = moved(attached(entry))
    apart = logits(there.model)
    before = states(there.model)
    base = {name: there.base_tensors()[name].clone() for name in there.adapters}
    changes = {name: there.delta_weight(name) for name in there.adapters}
    there.merge()
    merged = logits(there.model)
    torch.testing.assert_close(merged, apart, rtol=1e-4, atol=2e-6)
    assert not torch.equal(merged, bare(sparse(entry))[1])
    weights = there.model.to_checkpoint().tensors
    for name, change in changes.items():
        torch.testing.assert_close(weights[name] - base[name], change, rtol=1e-4, atol=1e-6)
    there.unmerge()
    after = states(there.model)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(logits(there.model), apart)


@pytest.mark.parametrize("entry", LAYERS)
def test_what_no_matrix_holds_is_not_merged(entry):
    there = moved(attached(entry))
    apart = logits(there.model)
    with pytest.raises(MixwellError, match=r"no matrix holds|is not merged"):
        there.merge()
    assert torch.equal(logits(there.model), apart)


@pytest.mark.parametrize("entry", ENTRIES)
def test_detaching_gives_the_base_back(entry):
    there = moved(attached(entry))
    there.detach()
    base, said = bare(sparse(entry))
    assert torch.equal(logits(there.model), said)
    assert there.model.to_checkpoint().tensors.keys() == base.to_checkpoint().tensors.keys()
    assert all(p.requires_grad for p in there.model.parameters())


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_saved_adapter_comes_back_and_a_copy_stands_alone(entry, tmp_path):
    there = moved(attached(entry))
    apart = logits(there.model)
    files.save(there, tmp_path / "saved")
    again = files.load(tmp_path / "saved", model(sparse(entry)))
    assert torch.equal(logits(again.model), apart) and again.num_parameters == there.num_parameters
    assert {n for n, p in again.model.named_parameters() if p.requires_grad} == {
        n for n, p in there.model.named_parameters() if p.requires_grad}
    copied = copy.deepcopy(there.model)
    moved(there, seed=6)
    assert torch.equal(logits(copied), apart) and not torch.equal(logits(there.model), apart)


@pytest.mark.parametrize("entry", ENTRIES)
def test_float32_agrees_with_float64_and_a_checkpointed_pass_with_a_plain_one(entry):
    there = moved(attached(entry))
    single = logits(there.model)
    wide = copy.deepcopy(there.model).double()
    torch.testing.assert_close(logits(wide), single.double(), rtol=1e-3, atol=1e-5)
    grads = []
    for checkpointing in (False, True):
        network = copy.deepcopy(there.model).train()
        network.checkpointing = checkpointing
        loss = network.loss(TOKENS[:, :-1], TOKENS[:, 1:], generator=seeded(4))
        (loss.nats if loss.aux is None else loss.nats + loss.aux).backward()
        grads.append({name: p.grad for name, p in network.named_parameters() if p.requires_grad})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad)


@pytest.mark.parametrize("entry", ENTRIES)
def test_config_round_trips(entry):
    assert same_config(config_of(entry))
