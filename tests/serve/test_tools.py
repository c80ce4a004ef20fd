"""Calls of tools: told from text however it is cut, made by grammar whatever the model would say, answered as clients
expect."""

import json

import pytest
import torch
from starlette.testclient import TestClient

from mixwell.core.errors import MixwellError
from mixwell.serve.tools import BARE, TAGGED, Calls, Tool, as_templates_expect, calling, form_of
from tests.serve.conftest import small_model
from tests.serve.test_app import SAID, ask, served, stream

# As Qwen's and Hermes' write them.
TOOLS = """{%- if tools %}{{- '<|im_start|>system\\n{"name": ..., "arguments": ...} in <tool_call></tool_call>' }}
{%- for tool in tools %}{{- '\\n' + tool | tojson }}{%- endfor %}{{- '<|im_end|>\\n' }}{%- endif %}
{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content }}
{%- for call in message.tool_calls or [] %}
{{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments | tojson
    + '}\\n</tool_call>' }}{%- endfor %}{{- '<|im_end|>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
LLAMA = "{% if tools %}{{ tools | tojson }} answer with name and parameters{% endif %}{{ messages[-1].content }}"
ADD = {"type": "object", "properties": {"one": {"$ref": "#/$defs/number"}, "other": {"$ref": "#/$defs/number"}},
       "required": ["one", "other"], "additionalProperties": False,
       "$defs": {"number": {"type": "integer", "minimum": 0, "maximum": 9}}}
ENTRIES = [{"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": ADD, "strict": True}},
           {"type": "function", "function": {"name": "now"}}]
ONE = '<tool_call>\n{"name": "add", "arguments": {"one": 1, "other": 2}}\n</tool_call>'
TWO = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


def told(text, width, form=TAGGED):
    """What a reader makes of a text that comes in pieces."""
    calls = Calls(form, ["add", "now"])
    pieces = [text[place : place + width] for place in range(0, len(text), width)]
    parts = [calls.push(piece) for piece in pieces] + [calls.close()]
    made = [(call.name, json.loads(call.arguments)) for _, some in parts for call in some]
    return "".join(said for said, _ in parts), made


@pytest.mark.parametrize("width", [1, 2, 7, 1000])
@pytest.mark.parametrize(("text", "said", "made"), [
    ("No call < here <tool.", "No call < here <tool.", []),
    (ONE, "", [("add", {"one": 1, "other": 2})]),
    (f"Let me see.\n{ONE}\n{TWO}\n", "Let me see.", [("add", {"one": 1, "other": 2}), ("now", {})]),
    (f"{TWO} and more", " and more", [("now", {})]),
    ("<tool_call>\n{broken\n</tool_call>", "<tool_call>\n{broken\n</tool_call>", []),
    (TWO.replace("now", "later"), TWO.replace("now", "later"), []),
    ('<tool_call>\n{"name": "now", "arg', '<tool_call>\n{"name": "now", "arg', []),
    ('<tool_call>[1]</tool_call><tool_call>{"name": "now", "arguments": 3}</tool_call>',
     '<tool_call>[1]</tool_call><tool_call>{"name": "now", "arguments": 3}</tool_call>', [])])
def test_calls_are_told_from_text_however_it_is_cut(text, said, made, width):
    assert told(text, width) == (said, made)


@pytest.mark.parametrize("width", [1, 5, 1000])
def test_a_bare_call_is_all_that_is_said(width):
    assert told(' {"name": "now", "parameters": {"a": "b"}}', width, BARE) == ("", [("now", {"a": "b"})])
    assert told('{"name": "now"}', width, BARE) == ('{"name": "now"}', [])
    assert told("Well, {", width, BARE) == ("Well, {", [])


def test_templates_say_how_they_write_calls():
    assert form_of(TOOLS) is TAGGED and form_of(LLAMA) is BARE
    with pytest.raises(MixwellError, match="knows no tools"):
        form_of("{{ messages }}")
    for source in ("tools <tool_call> <function=", "tools"):
        with pytest.raises(MixwellError, match="form that is not known here"):
            form_of(source)


def test_arguments_reach_templates_as_objects():
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"one": 1}'}}
    (found,) = as_templates_expect([{"role": "assistant", "tool_calls": [call]}])
    assert found["tool_calls"][0]["function"] == {"name": "add", "arguments": {"one": 1}} and call["id"] == "1"
    assert list(as_templates_expect(SAID)) == SAID
    with pytest.raises(MixwellError, match="call of add whose arguments are no JSON"):
        list(as_templates_expect([{"tool_calls": [{"function": {"name": "add", "arguments": "{"}}]}]))
    with pytest.raises(MixwellError, match=r"without function\.name"):
        list(as_templates_expect([{"tool_calls": ["add"]}]))


def test_nothing_is_decreed_where_no_text_begins_a_call():
    assert calling([Tool("now", {})], BARE, forced=False, several=True) is None


@pytest.fixture(scope="module")
def client():
    pytest.importorskip("llguidance")
    model = small_model(dtype=torch.float32, max_positions=1024)
    model.tokenizer = model.tokenizer.with_chat_template(TOOLS)
    with TestClient(served(model)) as found:
        yield found


def calls_of(message):
    return [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in message["tool_calls"]]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "add"}}])
def test_an_answer_calls_what_it_must(client, choice):
    options = {"tools": ENTRIES, "tool_choice": choice, "parallel_tool_calls": False, "temperature": 1.2, "seed": 4,
               "max_tokens": 200, "ignore_eos": None}
    (found,) = ask(client, **options).json()["choices"]
    assert found["finish_reason"] == "tool_calls" and found["message"]["content"] is None
    ((name, arguments),) = calls_of(found["message"])
    if choice != "required":
        assert name == "add"
    if name == "add":
        assert set(arguments) == {"one", "other"} and all(0 <= value <= 9 for value in arguments.values())
    assert found["message"]["tool_calls"][0]["id"].startswith("call_")
    *chunks, last = stream(ask(client, **options, stream=True))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    (told_calls,) = [delta["tool_calls"] for delta in deltas if "tool_calls" in delta]
    assert told_calls[0]["index"] == 0 and calls_of({"tool_calls": told_calls}) == [(name, arguments)]
    assert last["choices"][0]["finish_reason"] == "tool_calls"
    assert not any(delta.get("content") for delta in deltas)


def test_calls_that_the_model_begins_itself_follow_their_schema(client):
    """What may follow is decided by the text so far: nothing at first, the schema once a call has begun."""
    serving = client.app.app.state.house.find(None)
    asking = serving.asking
    tools = [Tool("add", ADD), Tool("now", {})]
    form = asking.constraints.begin(asking.constraints.check(calling(tools, TAGGED, forced=False, several=True)))
    vocabulary = serving.model.config.vocab_size

    def may(text):
        row = form.copy()
        for number in asking.tokenizer.encode(text):
            if row.allowed(torch.zeros(vocabulary))[number] != 0:
                return False
            row.take(number)
        return True

    begun = 'well {<\n<tool_call>\n{"name": "add", "arguments": {"one": '
    assert may(begun + '3, "other": 4}}\n</tool_call> and so on <tool_call>\n{"name": "now"')
    assert not may(begun + "12") and not may(begun + '"') and not may('<tool_call>\n{"name": "later"')
    free = ask(client, tools=ENTRIES, ignore_eos=None, max_tokens=12).json()["choices"][0]
    assert free["finish_reason"] in ("stop", "length") and "tool_calls" not in free["message"]


def test_a_conversation_with_calls_goes_on(client):
    call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"one": 1, "other": 2}'}}
    messages = [*SAID, {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "call_1", "content": "3"}]
    assert ask(client, messages=messages, tools=ENTRIES, ignore_eos=None).status_code == 200
    without = client.post("/tokenize", json={"messages": SAID}).json()["count"]
    plain = ask(client, tools=ENTRIES, tool_choice="none").json()
    assert plain["usage"]["prompt_tokens"] == without
    assert ask(client, tools=ENTRIES, ignore_eos=None).json()["usage"]["prompt_tokens"] > without


@pytest.mark.parametrize(("options", "words"), [
    ({"tools": ENTRIES, "tool_choice": {"type": "function", "function": {"name": "sub"}}}, "not among tools"),
    ({"tool_choice": "required"}, "not among tools"), ({"tools": [{"type": "function", "function": {"name": "a b"}}]},
                                                       "name"),
    ({"tools": ENTRIES, "response_format": {"type": "json_object"}}, "form of the answer and for tools"),
    ({"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "nothing"}}}]}, "cannot be"),
    ({"tools": ENTRIES, "min_tokens": 3}, "min_tokens")])
def test_what_cannot_be_called_is_refused(client, options, words):
    found = ask(client, **{"ignore_eos": None, **options})
    assert found.status_code == 400 and words in found.json()["error"]["message"], found.text


def test_a_model_whose_template_knows_no_tools_says_so(model):
    with TestClient(served(model)) as client:
        found = ask(client, tools=ENTRIES, ignore_eos=None)
        assert found.status_code == 400 and "knows no tools" in found.json()["error"]["message"]
