"""Sampling: against a loop without a cache, and the promises of each filter."""

from __future__ import annotations

import pytest
import torch

from mixwell.core.config import from_dict
from mixwell.core.errors import MixwellError
from mixwell.lm.config import ModelConfig
from mixwell.lm.generate import filter_logits, sample
from mixwell.lm.model import LanguageModel

WORDS = {"method": "word_table", "vocab_size": 17, "num_words": 40, "max_length": 4}


@pytest.fixture(scope="module", params=["top_k", WORDS], ids=["top_k", "word_table"])
def model(request):
    options = {"vocab_size": 17, "dim": 16, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1,
               "channel_mixer": {"method": "moe", "num_experts": 4, "hidden_dim": 8, "router": request.param}}
    if request.param == "top_k":
        options["channel_mixer"]["router"] = {"method": "top_k"}
    model = LanguageModel(from_dict(ModelConfig, options))
    text = torch.randint(5, (600,), generator=torch.Generator().manual_seed(1))  # few ids, so that sequences repeat
    model.fit_tokens(torch.cat((text, torch.arange(17))))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(15 if parameter.ndim > 1 else 1)
    return model.train()


PROMPT = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def test_greedy_equals_a_loop_without_a_cache(model):
    tokens = PROMPT
    for _ in range(12):
        tokens = torch.cat((tokens, model.eval()(tokens).logits_BTV[:, -1].argmax(-1, keepdim=True)), 1)
    model.train()
    assert torch.equal(model.generate(PROMPT, 12), tokens)
    assert model.training and len(set(tokens[0, 5:].tolist())) > 2


def test_padding_on_the_left_changes_no_row(model):
    alone = model.generate(PROMPT[:1, 2:], 8)[:, 3:]
    mask = torch.tensor([[False, False, True, True, True], [True] * 5])
    together = model.generate(PROMPT.masked_fill(~mask, 0), 8, mask_BT=mask)
    assert torch.equal(together[:1, 5:], alone)
    assert torch.equal(together[1:], model.generate(PROMPT[1:], 8))


def test_the_same_generator_draws_the_same_tokens(model):
    options = {"do_sample": True, "temperature": 2.0}
    one, two, other = (model.generate(PROMPT, 20, generator=rng(s), **options) for s in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_a_cold_temperature_a_k_of_one_and_a_tiny_p_are_greedy(model):
    greedy = model.generate(PROMPT, 10)
    for options in ({"temperature": 1e-4}, {"top_k": 1}, {"top_p": 1e-6}, {"top_p": 1e-60}):
        assert torch.equal(model.generate(PROMPT, 10, do_sample=True, generator=rng(), **options), greedy)


def test_the_domain_of_a_row_reaches_its_router(model, monkeypatch):
    seen, router = [], model.layers[0].channel_mixer.router
    forward = router.forward
    monkeypatch.setattr(router, "forward", lambda h, c: (seen.append(c.labels_T.tolist()), forward(h, c))[1])
    model.generate(PROMPT, 2, labels_B=torch.tensor([4, 7]))
    assert seen == [[4] * 5 + [7] * 5, [4, 7]]


def test_filters_keep_what_they_say():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.05, 0.15, 0.3, 0.5]]).log()
    assert torch.isfinite(filter_logits(logits, top_k=2)).tolist() == [[True, True, False, False],
                                                                       [False, False, True, True]]
    assert torch.isfinite(filter_logits(logits, top_p=0.75))[0].tolist() == [True, True, False, False]
    assert torch.isfinite(filter_logits(logits, top_p=0.85))[1].tolist() == [False, True, True, True]
    torch.testing.assert_close(filter_logits(logits, temperature=0.5), 2 * logits)


def test_draws_follow_the_probabilities():
    shares = torch.tensor([0.6, 0.3, 0.1])
    drawn = sample(shares.log().expand(20000, 3), rng())
    torch.testing.assert_close(torch.bincount(drawn) / 20000, shares, rtol=0, atol=0.02)


def test_a_row_that_ended_is_padded_and_the_loop_stops(model):
    greedy = model.generate(PROMPT, 12)
    stop = int(greedy[0, 7])
    first = [row.index(stop) if stop in row else 12 for row in greedy[:, 5:].tolist()]
    stopped = model.generate(PROMPT, 12, eos_token_id=stop)
    assert stopped.shape[1] == 5 + min(max(first) + 1, 12)
    for row, whole, end in zip(stopped[:, 5:].tolist(), greedy[:, 5:].tolist(), first):
        assert row[: end + 1] == whole[: end + 1][: len(row)] and set(row[end + 1 :]) <= {stop}
    assert torch.equal(model.generate(PROMPT[:1], 12, eos_token_id=(stop, 99)), stopped[:1, : 5 + first[0] + 1])
    assert torch.equal(model.generate(PROMPT, 0), PROMPT)


@pytest.mark.parametrize(("options", "message"), [
    ({"temperature": 0.0, "do_sample": True}, "temperature is 0.0"),
    ({"top_p": 0.0}, "top_p is 0.0"),
    ({"top_k": -1}, "top_k is -1"),
    ({"max_new_tokens": -1}, "max_new_tokens is -1"),
    ({"do_sample": True}, "do_sample needs a generator"),
    ({"tokens_BT": torch.zeros(1, 0, dtype=torch.long)}, "T at least 1"),
])
def test_refuses(model, options, message):
    with pytest.raises(MixwellError, match=message):
        model.generate(**({"tokens_BT": PROMPT, "max_new_tokens": 2} | options))
