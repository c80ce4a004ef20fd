"""Attention turned into experts: the function kept where all are on, the rest copied bit by bit, refusals."""

import pytest
import torch

from mixwell.convert.attention_experts import Config, attention_experts, mixers
from mixwell.core.errors import MixwellError
from mixwell.core.rng import generator as seeded
from mixwell.lm.model import LanguageModel
from tests.contracts._conversions import VOCAB, dense_model, whole


def logits(checkpoint):
    model = LanguageModel.from_checkpoint(checkpoint, dtype=torch.float64).eval()
    tokens = torch.arange(18).view(2, 9) % VOCAB
    with torch.no_grad():
        return model(tokens).logits_BTV


def test_all_experts_with_an_even_start_keep_every_logit(generator):
    before = dense_model(generator)
    after = attention_experts(before, Config(k=2, start="even"), seeded(0))
    torch.testing.assert_close(logits(after), logits(before), atol=1e-9, rtol=1e-7)
    for name, tensor in before.tensors.items():
        assert after.tensors[name] is tensor
    assert mixers(after.arch)[1]["method"] == "sequence.attention_experts"


def test_one_expert_a_token_changes_them_and_only_in_the_layers_named(generator):
    before = dense_model(generator)
    after = attention_experts(before, Config(k=1, layers=(1,), scale=0.5, balance={"z_loss": 0.1}), seeded(0))
    first, second = mixers(after.arch)
    assert first["method"] == "sequence.attention" and second["scale"] == 0.5 and second["balance"] == {"z_loss": 0.1}
    new = set(after.tensors) - set(before.tensors)
    assert new == {"layers.1.sequence_mixer.router.weight"} and bool(after.tensors[new.pop()].ne(0).any())
    assert not torch.allclose(logits(after), logits(before))


def test_what_experts_could_not_copy_is_refused(generator):
    before = dense_model(generator)
    for words, config in (("k is 3; layer 0 has 2 key/value heads", Config(k=3)),
                          ("layers names 5", Config(layers=(5,)))):
        with pytest.raises(MixwellError, match=words):
            attention_experts(before, config, seeded(0))
    once = attention_experts(before, Config(), seeded(0))
    with pytest.raises(MixwellError, match="no layer has plain attention"):
        attention_experts(once, Config(), seeded(0))
    arch = {**before.arch, "sequence_mixer": {"method": "sequence.attention", "qk_norm": "head"}}
    normed = whole(before.derive(arch=arch))
    with pytest.raises(MixwellError, match="qk_norm = 'head'"):
        attention_experts(normed, Config(), seeded(0))
