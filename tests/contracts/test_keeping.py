"""What every rule of keeping promises: all is as it was where all fits, and heads keep as many, within the budget."""

import inspect

import pytest
import torch

from mixwell.core import registry
from mixwell.core.errors import MixwellError
from mixwell.serve.keeping.rules import Rule, keeping
from tests.contracts._keeping import prompt, small
from tests.contracts._tools import fresh, same_config

FOUND = [entry for entry in registry.entries() if entry.family == "serve.keeping"]
RULES = [pytest.param(e, id=e.name) for e in FOUND if inspect.isclass(e.load()) and issubclass(e.load(), Rule)]
ROOMY = {"window": {"last": 90}, "heavy_hitters": {"budget": 90, "recent": 20},
         "last_queries": {"budget": 90, "queries": 8}, "evict_then_merge": {"budget": 90, "recent": 8},
         "by_phase": {"prompt": 40, "answer": 40, "recent": 8}}


def made(entry, **options):
    config = entry.module().Config(**options) if options else entry.module().example(fresh())["config"]
    return lambda: entry.load()(config)


@pytest.fixture(scope="module")
def model():
    return small()


@pytest.fixture(scope="module")
def text():
    return torch.randint(40, (2, 30), generator=fresh())


@pytest.mark.parametrize("entry", RULES)
def test_a_budget_above_the_text_changes_nothing(entry, model, text):
    usual = model.generate(text, 8, eos_token_id=())
    with keeping(model, made(entry, **ROOMY[entry.name.rpartition(".")[2]])):
        assert torch.equal(model.generate(text, 8, eos_token_id=()), usual)
    assert torch.equal(model.generate(text, 8, eos_token_id=()), usual)  # and the block is over


@pytest.mark.parametrize("entry", RULES)
def test_a_budget_below_it_is_held_by_every_head(entry, model, text):
    with keeping(model, made(entry)):
        cache = model.new_cache()
        model.next_logits(text, cache)
    assert all(0 < layer.length <= 5 for layer in cache.layers)


@pytest.mark.parametrize("entry", RULES)
def test_several_tokens_at_once_are_as_one_by_one(entry, model, text):
    together, alone = [], []
    for found, size in ((together, 6), (alone, 1)):
        with keeping(model, made(entry)), torch.inference_mode():
            cache = model.new_cache()
            model.next_logits(text, cache)
            for part in text[:, :6].split(size, 1):
                logits = model.next_logits(part, cache)
            found += [logits, cache.layers[1]._keys[:, :, : cache.layers[1].length]]
    for one, other in zip(together, alone):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("entry", RULES)
def test_rules_are_pure_and_configs_round_trip(entry):
    weights, kept = prompt()
    before = weights.clone(), kept.keys.clone(), kept.values.clone()
    first, second = (made(entry)().prompt(weights, kept) for _ in range(2))
    assert torch.equal(first.keys, second.keys) and torch.equal(first.values, second.values)
    assert all(torch.equal(one, other) for one, other in zip((weights, *kept), before))
    assert same_config(entry.module().example(fresh())["config"])


def test_what_cannot_let_go_is_refused(model, text):
    entry = RULES[0].values[0]
    for mixer, words in (({"method": "sequence.mamba"}, "mixes by"),
                         ({"method": "sequence.attention", "sliding_window": 8}, "sliding window")):
        with pytest.raises(MixwellError, match=words), keeping(small(sequence_mixer=mixer), made(entry)):
            pass
    mask = torch.ones_like(text, dtype=torch.bool)
    mask[0, :3] = False
    with keeping(model, made(entry)), pytest.raises(MixwellError, match="without padding"):
        model.generate(text, 2, mask_BT=mask)
