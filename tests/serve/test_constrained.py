"""Answers of a given form follow it whatever the model would say, and forms that cannot be followed are refused."""

import json
import re

import pytest
import torch
from starlette.testclient import TestClient

from mixwell.core.errors import MixwellError
from mixwell.serve.asking import Asking
from mixwell.serve.constrained import Constraints, grammar_of, of_choice, of_lark, of_regex, of_schema
from mixwell.serve.request import Options
from tests.serve.conftest import small_model
from tests.serve.test_app import CHAT, COMPLETE, SAID, served

pytest.importorskip("llguidance")

SCHEMA = {"type": "object", "properties": {"kind": {"enum": ["moe", "dense"]}, "experts": {"type": "integer",
          "minimum": 1, "maximum": 99}}, "required": ["kind", "experts"], "additionalProperties": False}
NAMED = {"type": "json_schema", "json_schema": {"name": "model", "schema": SCHEMA, "strict": True}}


@pytest.fixture(scope="module")
def model():
    return small_model(dtype=torch.float32)


@pytest.fixture(scope="module")
def client(model):
    with TestClient(served(model)) as found:
        yield found


def ask(client, path=CHAT, **options):
    usual = {"messages": SAID} if path == CHAT else {"prompt": "say hello"}
    return client.post(path, json={**usual, "temperature": 1.5, "max_tokens": 60} | options)


def said(response):
    choice = response.json()["choices"][0]
    assert choice["finish_reason"] == "stop", response.text
    return choice["message"]["content"] if "message" in choice else choice["text"]


@pytest.mark.parametrize("seed", range(3))
def test_an_answer_follows_its_schema(client, seed):
    found = json.loads(said(ask(client, response_format=NAMED, seed=seed)))
    assert set(found) == {"kind", "experts"} and found["kind"] in ("moe", "dense") and 1 <= found["experts"] <= 99


def test_all_kinds_of_forms_are_followed(client):
    pattern = "[ab]{3}-[0-9]{2}"
    assert re.fullmatch(pattern, said(ask(client, COMPLETE, structured_outputs={"regex": pattern})))
    assert said(ask(client, structured_outputs={"choice": ["yes", "no \"quoted\""]})) in ("yes", 'no "quoted"')
    lark = 'start: "<" /[xyz]/ ">"'
    assert re.fullmatch("<[xyz]>", said(ask(client, COMPLETE, structured_outputs={"grammar": lark})))
    assert json.loads(said(ask(client, structured_outputs={"json": {"const": [1, 2]}}))) == [1, 2]


def test_several_rows_and_drafts_follow_their_own(model):
    """The same answers with guesses verified beside: a form is a part of the law that is drawn from."""
    answers = []
    for limits in ({}, {"draft": "jacobi"}):
        with TestClient(served(model, **limits)) as client:
            found = ask(client, response_format=NAMED, n=3, seed=5)
            answers.append([choice["message"]["content"] for choice in found.json()["choices"]])
    assert answers[0] == answers[1]
    assert all(json.loads(text)["kind"] in ("moe", "dense") for text in answers[0])


def test_a_form_is_read_once_for_all_rows(model, monkeypatch):
    begun = []
    usual = Constraints.begin
    monkeypatch.setattr(Constraints, "begin", lambda self, grammar: begun.append(grammar) or usual(self, grammar))
    asking = Asking(model, 64)
    options = Options(max_tokens=5, grammar=of_choice(["ab", "cd"]))
    row, other, *_ = asking.rows(asking.prompts("a") * 2, options, 3)
    first = asking.tokenizer.encode("a")[0]
    row.constraint.take(first)
    assert len(begun) == 1
    logits_V = torch.zeros(model.config.vocab_size)
    assert torch.isfinite(other.constraint.allowed(logits_V)[first])
    assert not torch.isfinite(row.constraint.allowed(logits_V)[first])


def test_an_answer_that_ends_early_is_the_beginning_of_one(client):
    found = ask(client, response_format=NAMED, max_tokens=4).json()["choices"][0]
    assert found["finish_reason"] == "length" and found["message"]["content"].startswith("{")


@pytest.mark.parametrize(("options", "words"), [
    ({"response_format": {"type": "json_schema"}}, "give the schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nothing"}}}}, "Invalid type"),
    ({"response_format": {"type": "xml"}}, "response_format"), ({"structured_outputs": {"regex": "(["}}, "regex"),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "several forms, regex and choice"),
    ({"structured_outputs": {"json": {}}, "response_format": NAMED}, "JSON twice"),
    ({"structured_outputs": {"regexp": "a"}}, "structured_outputs.regexp"),
    ({"structured_outputs": {"choice": []}}, "choice"),
    ({"response_format": NAMED, "min_tokens": 3}, "min_tokens"),
    ({"response_format": NAMED, "ignore_eos": True}, "ignore_eos"),
    ({"structured_outputs": {"regex": "a" * 70_000}}, "65536 at most")])
def test_forms_that_cannot_be_followed_are_refused(client, options, words):
    found = ask(client, **options)
    assert found.status_code == 400 and words in found.json()["error"]["message"], found.text


def test_every_id_that_is_allowed_goes_on_and_no_other():
    """Against the regular expression itself, id by id: what is allowed is what can still become a match."""
    model = small_model()
    tokenizer = model.tokenizer
    forms = Constraints(tokenizer, model.config.vocab_size, sorted(model.stop_ids))
    row, text = forms.begin(forms.check(of_regex("ab?c"))), ""
    starts = {"": {"a", "ab", "abc", "ac"}, "a": {"b", "bc", "c"}, "ab": {"c"}}
    for step in "abc":
        open_V = row.allowed(torch.zeros(model.config.vocab_size)) == 0
        found = {tokenizer.decode([int(number)]) for number in open_V.nonzero()}
        known = {token for token in starts[text] if len(tokenizer.encode(token)) == 1}
        assert found == known
        row.take(tokenizer.encode(step)[0])
        text += step
    last = (row.allowed(torch.zeros(model.config.vocab_size)) == 0).nonzero().flatten().tolist()
    assert last == sorted(model.stop_ids) or row.over
    with pytest.raises(MixwellError, match="form of the answer broke"):
        row.take(tokenizer.encode("z")[0])


def test_forms_are_read_from_either_field():
    assert grammar_of(None, None) is None and grammar_of({"type": "text"}, {"json": None}) is None
    assert grammar_of({"type": "json_object"}, None) == of_schema({"type": "object"})
    assert grammar_of(None, {"choice": ["a", "b"]}) == of_choice(["a", "b"]) == of_lark('start: "a" | "b"')
    with pytest.raises(MixwellError, match="names no id that ends"):
        Constraints(small_model().tokenizer, 300, ()).check(of_regex("a"))
