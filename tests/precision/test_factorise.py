"""Factorising a model's blocks and experts: each map is the one that its structure finds; names, refusals, receipts."""

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.core.registry import find
from mixwell.lm.conversion import account_of, convert
from mixwell.lm.model import LanguageModel
from mixwell.lm.receipt import measure
from mixwell.mixing.structured import structure
from mixwell.precision.factorise import Config, example, factorise, promises
from tests.contracts._conversions import VOCAB, dense_model, logits, output, sparse_model
from tests.contracts._tools import fresh

ENTRY = find("precision.factorise")
LOW = {"method": "low_rank", "rank": 3}


def made(checkpoint, **options):
    return convert(ENTRY, checkpoint, Config(**options), fresh(1))


@pytest.mark.parametrize("spec", [{"method": "low_rank", "rank": 3}, {"method": "maestro"},
                                  {"method": "block_tensor_train", "rank": 2}, {"method": "kronecker_sum", "terms": 2}])
def test_every_map_of_every_expert_is_the_nearest_of_its_structure(spec):
    before = sparse_model(fresh())
    after = made(before, structure=spec)
    entry, config = structure(spec)
    for layer in range(2):
        start = f"layers.{layer}.channel_mixer"
        gate_up, down = (before.tensors[f"{start}.{name}"] for name in ("gate_up_proj", "down_proj"))
        model = LanguageModel.from_checkpoint(after)
        for e, expert in enumerate(model.layers[layer].channel_mixer.experts):
            gate, up = gate_up[e].chunk(2)
            for found, weight in ((expert.gate, gate), (expert.up, up), (expert.out, down[e])):
                wanted = entry.load().from_dense(weight, config, fresh(1)).dense()
                torch.testing.assert_close(found.dense(), wanted, rtol=1e-5, atol=1e-6)
        router = f"{start}.router.weight"
        assert torch.equal(after.tensors[router], before.tensors[router])


@pytest.mark.parametrize("make", [dense_model, sparse_model])
def test_at_full_rank_the_model_computes_what_it_did(make):
    before = make(fresh())
    after = made(before, structure={"method": "maestro"})
    tokens = torch.randint(0, VOCAB, (2, 9), generator=fresh(3))
    torch.testing.assert_close(logits(after, tokens), logits(before, tokens), rtol=1e-4, atol=1e-4)
    account = account_of(before, after)
    assert account["used"] == 4 and account["copied"] + 4 == len(before.tensors)
    weighed = measure(before, after, tokens, "precision.factorise", promises(Config(structure=LOW, max_kl_nats=0.5)))
    assert weighed.check().kl_nats < 1e-6


def test_layers_that_are_not_named_stay_as_they_are():
    before = dense_model(fresh())
    after = made(before, structure=LOW, layers=(1,))
    x = torch.randn(4, 6, generator=fresh(2))
    assert torch.equal(output(after, 0, x), output(before, 0, x))
    assert [spec["method"] for spec in after.arch["channel_mixer"]] == ["experts.layers.swiglu",
                                                                       "experts.layers.structured"]
    assert not torch.allclose(output(after, 1, x), output(before, 1, x))


def test_the_example_runs_and_has_fewer_numbers():
    values = example(fresh())
    after = factorise(**values)
    count = sum(t.numel() for t in after.tensors.values())
    assert count < sum(t.numel() for t in values["checkpoint"].tensors.values())


def changed(checkpoint, **options):
    arch = {**checkpoint.arch, "channel_mixer": {**dict(checkpoint.arch["channel_mixer"]), **options}}
    return checkpoint.derive(arch=arch)


def test_refusals():
    dense = dense_model(fresh())
    with pytest.raises(MixwellError, match=r"ssvi factorises no matrix; methods that do: blast"):
        made(dense, structure={"method": "ssvi"})
    with pytest.raises(MixwellError, match=r"layer 0, 0.gate: rank is 9 for a matrix of 8 x 6; expected 1 to 6"):
        made(dense, structure={"method": "low_rank", "rank": 9})
    with pytest.raises(MixwellError, match=r"layers names 5; this model has layers 0 to 1"):
        made(dense, structure=LOW, layers=(5,))
    with pytest.raises(MixwellError, match=r"layer 0 has clamp = 7.0; factorising takes None only"):
        made(changed(sparse_model(fresh()), clamp=7.0), structure=LOW)
    once = made(dense, structure=LOW)
    with pytest.raises(MixwellError, match=r"layer 0 is experts.layers.structured; factorising takes dense blocks"):
        made(once, structure=LOW)
    codes = convert(find("precision.int8"), dense, find("precision.int8").module().Config(), fresh(1))
    with pytest.raises(MixwellError, match=r"gate_up_proj is quantised; hand in a model with full weights"):
        made(codes, structure=LOW)
    with pytest.raises(ValueError, match=r"layers is \[\]; expected numbers from 0"):
        Config(structure=LOW, layers=())
    with pytest.raises(ValueError, match="max_kl_nats is 0"):
        Config(structure=LOW, max_kl_nats=0)
