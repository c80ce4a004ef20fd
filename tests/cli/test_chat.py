"""`mixwell chat`: one answer, a conversation, and what is said when it cannot be."""

import dataclasses

import pytest
import torch
from typer.testing import CliRunner

from mixwell.cli.main import app
from mixwell.kernels import packing
from mixwell.kernels.probe import ROWS, choices
from mixwell.kernels.products import works
from mixwell.lm.generate import Network
from mixwell.lm.generation import for_tokenizer
from tests.lm.templates import byte_level
from tests.lm.tiny import tiny_model

ANSWER = "hello world"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tokenizer = byte_level("thinking")
    model = tiny_model(tokenizer.vocab_size)
    model.tokenizer = tokenizer
    model.generation = for_tokenizer(tokenizer)
    return model.save(tmp_path_factory.mktemp("chat") / "model")


@pytest.fixture
def prompts(monkeypatch):
    """The model says the same always; what it was asked is gathered."""
    tokenizer = byte_level("thinking")
    planned = [*tokenizer.encode(ANSWER), tokenizer.id_of("<|im_end|>")]
    asked, place = [], [0]

    def next_logits(self, tokens_BT, cache, mask_BT, labels_B):
        if tokens_BT.shape[1] > 1:
            asked.append(tokenizer.decode(tokens_BT[0].tolist()))
            place[0] = 0
        logits = torch.zeros(1, tokenizer.vocab_size)
        logits[0, planned[place[0]]] = 9.0
        place[0] += 1
        return logits

    monkeypatch.setattr(Network, "next_logits", next_logits)
    return asked


def call(*words, **options):
    return CliRunner().invoke(app, ["chat", *map(str, words)], **options)


def test_one_answer_ends_by_itself(folder, prompts):
    found = call(folder, "say <|im_start|>", "--system", "be good", "--set", "enable_thinking=false")
    assert (found.exit_code, found.stdout) == (0, ANSWER + "\n")
    assert prompts == ["<|im_start|>system\nbe good<|im_end|>\n<|im_start|>user\nsay <|im_start|><|im_end|>\n"
                       "<|im_start|>assistant\n<think>\n\n</think>\n\n"]


def test_a_conversation_remembers_what_was_said(folder, prompts):
    found = call(folder, input="one\ntwo\n\nthree\n")
    assert (found.exit_code, found.stdout) == (0, 2 * (ANSWER + "\n"))
    assert prompts[1] == ("<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\n" + ANSWER + "<|im_end|>\n"
                          "<|im_start|>user\ntwo<|im_end|>\n<|im_start|>assistant\n")


def test_a_long_answer_is_cut_and_that_is_told(folder, prompts):
    found = call(folder, "say", "--max-tokens", 1)
    assert found.exit_code == 0 and ANSWER.startswith(found.stdout.strip()) and found.stdout != ANSWER + "\n"
    assert "(cut after 1 tokens; --max-tokens says how many)" in found.stderr


def test_draws_follow_the_seed(folder):
    drawn = [call(folder, "say", "--temperature", 2, "--max-tokens", 30, "--seed", seed).stdout for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    cold = [call(folder, "say", "--temperature", 0, "--max-tokens", 30, "--seed", seed).stdout for seed in (1, 2)]
    nearly = call(folder, "say", "--temperature", 2, "--top-k", 1, "--top-p", 0.5, "--max-tokens", 30).stdout
    assert cold[0] == cold[1] == nearly


def test_weights_are_packed_once_in_a_long_conversation_that_says_the_same(folder, monkeypatch):
    options = ("--max-tokens", 9, "--temperature", 0)
    plainly = [call(folder, *options, input="one\ntwo\nthree\n").stdout, call(folder, "one", *options).stdout]
    form = next((form for form in ("onednn packed", "fp16") if works(form, torch.float32)), None)
    if form is None:
        pytest.skip("this processor or build of torch has no packed products")
    forms = (form,) * len(ROWS)
    found = dataclasses.replace(choices(), exact=forms, half=forms)
    monkeypatch.setattr(packing, "choices", lambda: found)
    monkeypatch.setitem(packing.PAYS_AFTER, torch.float32, 12)  # in the second answer
    packed = []
    real = packing.prepack
    monkeypatch.setattr(packing, "prepack", lambda model: packed.append(real(model)) or packed[-1])
    assert call(folder, *options, input="one\ntwo\nthree\n").stdout == plainly[0]
    assert len(packed) == 1 and packed[0] > 0
    assert call(folder, "one", *options).stdout == plainly[1] and len(packed) == 1


def test_refusals(folder, tmp_path):
    assert "the message is empty" in call(folder, " ").stderr
    assert "is not a folder" in call(tmp_path / "none", "a").stderr
    bare = tiny_model(300)
    bare.save(tmp_path / "bare")
    assert "the model has no tokenizer" in call(tmp_path / "bare", "a").stderr
    assert "top_p is 3.0" in call(folder, "a", "--top-p", 3).stderr
