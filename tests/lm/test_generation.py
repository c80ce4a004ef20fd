"""Generation settings of a folder: read, followed, changed, written back; beside transformers."""

import json

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.core.rng import generator
from mixwell.lm.answering import Answer
from mixwell.lm.conversation import conversation
from mixwell.lm.generate import filter_logits, penalised
from mixwell.lm.generation import FILE, GenerationSettings, for_tokenizer
from mixwell.lm.model import LanguageModel, load
from tests.lm.templates import byte_level
from tests.lm.tiny import DENSE, tiny_model

PROMPT = torch.tensor([[3, 1, 4, 1, 5]])


def settings(**content):
    return {FILE: json.dumps(content).encode()}


@pytest.fixture
def model():
    found = tiny_model(40, (DENSE, DENSE))
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.mul_(8 if parameter.ndim > 1 else 1)
    return found


def test_a_list_of_ends_is_followed(model):
    greedy = model.generate(PROMPT, 12)[0, 5:].tolist()
    model.files = settings(eos_token_id=[39, greedy[4]])
    first = greedy.index(greedy[4])
    assert model.generate(PROMPT, 12)[0, 5:].tolist() == greedy[: first + 1]
    assert model.generate(PROMPT, 12, eos_token_id=())[0, 5:].tolist() == greedy, "the caller has the last word"


def test_the_folder_says_how_to_draw_and_the_caller_may_say_otherwise(model):
    greedy = model.generate(PROMPT, 20)
    model.files = settings(do_sample=True, temperature=3.0, top_k=30)
    drawn = model.generate(PROMPT, 20)
    asked = model.generate(PROMPT, 20, generator=generator(0), do_sample=True, temperature=3.0, top_k=30)
    assert torch.equal(drawn, asked) and not torch.equal(drawn, greedy)
    assert not torch.equal(model.generate(PROMPT, 20, generator=generator(1)), drawn)
    assert torch.equal(model.generate(PROMPT, 20, do_sample=False), greedy)
    assert torch.equal(model.generate(PROMPT, 20, top_k=1), greedy)
    model.files = settings(do_sample=True, temperature=0.0)
    assert torch.equal(model.generate(PROMPT, 20), greedy)


def test_what_is_set_is_saved_and_what_is_not_known_stays(model, tmp_path):
    model.files = settings(temperature=0.5, eos_token_id=2, cache_implementation="static")
    assert model.generation == GenerationSettings(temperature=0.5, eos_token_id=(2,))
    model.generation = GenerationSettings(top_p=0.9, eos_token_id=(2, 7))
    model.save(tmp_path / "m")
    assert json.loads((tmp_path / "m" / FILE).read_text()) == {
        "cache_implementation": "static", "top_p": 0.9, "eos_token_id": [2, 7]}
    assert load(tmp_path / "m").generation == model.generation


def test_settings_that_are_not_known_and_count_are_told(model):
    model.files = settings(num_beams=4, no_repeat_ngram_size=0, typical_p=1.0)
    with pytest.warns(UserWarning, match="asks for num_beams, which mixwell does not know"):
        model.generate(PROMPT, 1)


@pytest.mark.parametrize(("content", "message"), [
    ({"temperature": "hot"}, "temperature is 'hot'; expected a number"),
    ({"top_k": 1.5}, "top_k is 1.5; expected a number"), ({"top_k": True}, "top_k is True; expected a number"),
    ({"do_sample": "yes"}, "do_sample is 'yes'; expected true or false"),
    ({"eos_token_id": ["a"]}, r"eos_token_id is \('a',\); expected a number"),
])
def test_values_of_another_kind_are_named(content, message):
    with pytest.raises(MixwellError, match=message):
        GenerationSettings.from_files(settings(**content))
    with pytest.raises(MixwellError, match="min_p is 2"):
        tiny_model().generate(PROMPT, 1, min_p=2)
    with pytest.raises(MixwellError, match="repetition_penalty is 0"):
        tiny_model().generate(PROMPT, 1, repetition_penalty=0)


def test_filters_and_penalties_are_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    from transformers.generation import logits_process

    logits = torch.randn(3, 50, generator=generator(0)) * 3
    seen = torch.randint(50, (3, 9), generator=generator(1))
    penalty = logits_process.RepetitionPenaltyLogitsProcessor(1.7)(seen, logits.clone())
    assert torch.equal(penalised(logits, seen, 1.7), penalty)
    assert penalised(logits, seen, 1.0) is logits
    warped = logits_process.MinPLogitsWarper(0.1)(seen, logits.clone())
    assert torch.equal(filter_logits(logits, min_p=0.1).isfinite(), warped.isfinite())
    assert transformers.__version__


@pytest.mark.slow
def test_generation_from_a_folder_is_that_of_transformers(model, tmp_path):
    transformers = pytest.importorskip("transformers")
    first = model.generate(PROMPT, 30)[0, 5:].tolist()
    model.files = settings(repetition_penalty=1.3, eos_token_id=[38, 39], pad_token_id=0)
    model.save(tmp_path / "m")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32)
    expected = theirs.generate(PROMPT, attention_mask=torch.ones_like(PROMPT), max_new_tokens=30)
    found = load(tmp_path / "m").generate(PROMPT, 30)
    assert torch.equal(found, expected)
    assert found[0, 5:].tolist() != first, "the penalty counts"


def test_an_answer_ends_by_itself_and_comes_in_whole_characters(monkeypatch):
    tokenizer = byte_level("chatml")
    model = LanguageModel(tiny_model(tokenizer.vocab_size).config)
    model.tokenizer = tokenizer
    model.generation = for_tokenizer(tokenizer)
    assert model.generation.eos_token_id == (0, 2) and model.stop_ids == (0, 2)
    text = tokenizer.encode("naïve 你好!")
    planned = iter([*text, 2, 7, 7])
    prompts = []

    def next_logits(tokens_BT, cache, mask_BT, labels_B):
        prompts.append(tokens_BT.tolist())
        logits = torch.zeros(1, tokenizer.vocab_size)
        logits[0, next(planned)] = 9.0
        return logits

    monkeypatch.setattr(model, "next_logits", next_logits)
    answer = Answer(model, conversation([{"role": "user", "content": "say <|im_end|>"}]))
    pieces = list(answer)
    assert "".join(pieces) == answer.text == "naïve 你好!" and answer.ended
    assert answer.ids == text, "what ends an answer is no part of it, special or not"
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces) and len(pieces) > 5
    assert tokenizer.decode(prompts[0][0]) == "<|im_start|>user\nsay <|im_end|><|im_end|>\n<|im_start|>assistant\n"
    planned = iter(text)
    cut = Answer(model, conversation([{"role": "user", "content": "a"}]), 3)
    assert "".join(cut).startswith("na") and not cut.ended and len(cut.ids) == 3


def test_stops_are_all_that_the_folder_the_tokenizer_and_its_template_name(model):
    tokenizer = byte_level("headers")
    model.tokenizer = tokenizer
    model.files = model.files | settings(eos_token_id=[7])
    end = tokenizer.id_of("<|end|>")
    assert model.stop_ids == (7, tokenizer.eos_id, end)
    model.files = {name: data for name, data in model.files.items() if name != "chat_template.jinja"}
    model._tokenizer = None
    assert model.stop_ids == (7, tokenizer.eos_id)


def test_a_model_without_a_tokenizer_cannot_answer(model):
    with pytest.raises(MixwellError, match=r"the model has no tokenizer; expected a folder with tokenizer\.json"):
        Answer(model, conversation([{"role": "user", "content": "a"}]))
