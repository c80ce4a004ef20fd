"""OpenAI's Responses: the same answers as chat's, whole and as events that tell the same, calls of tools among them."""

import json

import pytest
import torch
from starlette.testclient import TestClient

from mixwell.core.errors import MixwellError
from mixwell.serve.responses import ResponseRequest, as_chat
from tests.serve.conftest import small_model
from tests.serve.test_app import ask, served
from tests.serve.test_tools import ENTRIES, TOOLS

PATH = "/v1/responses"
FLAT = [{"type": "function", **entry["function"]} for entry in ENTRIES]


@pytest.fixture(scope="module")
def client():
    model = small_model(dtype=torch.float32, max_positions=1024)
    model.tokenizer = model.tokenizer.with_chat_template(TOOLS)
    with TestClient(served(model)) as found:
        yield found


def respond(client, given="say hello", **options):
    return client.post(PATH, json={"input": given, "temperature": 0, "max_output_tokens": 8, **options})


def events(response):
    """The events of a stream, their names checked against their lines and their numbers against their order."""
    lines = [block.split("\n") for block in response.text.split("\n\n")]
    assert lines.pop() == [""]
    found = [json.loads(data.removeprefix("data: ")) for _, data in lines]
    assert [name for name, _ in lines] == [f"event: {event['type']}" for event in found]
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def bare(item):
    """An item without what is drawn."""
    return {name: value for name, value in item.items() if name not in ("id", "call_id")}


def test_a_response_says_what_chat_says(client):
    whole = respond(client, metadata={"a": "b"}).json()
    choice = ask(client, ignore_eos=None).json()
    said = choice["choices"][0]["message"]["content"]
    (item,) = whole["output"]
    assert item["content"][0]["text"] == said and item["role"] == "assistant"
    cut = choice["choices"][0]["finish_reason"] == "length"
    assert whole["status"] == item["status"] == ("incomplete" if cut else "completed")
    assert whole["incomplete_details"] == ({"reason": "max_output_tokens"} if cut else None)
    assert whole["metadata"] == {"a": "b"} and whole["store"] is False and whole["temperature"] == 0
    usage = whole["usage"]
    assert (usage["input_tokens"], usage["output_tokens"]) == (choice["usage"]["prompt_tokens"],
                                                               choice["usage"]["completion_tokens"])
    found = events(respond(client, stream=True, metadata={"a": "b"}))
    assert [event["type"] for event in found[:4]] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"]
    assert found[0]["response"]["status"] == "in_progress" and found[0]["response"]["output"] == []
    deltas = [event["delta"] for event in found if event["type"] == "response.output_text.delta"]
    assert "".join(deltas) == said and len(deltas) > 1
    assert [event["type"] for event in found[-4:]] == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done",
        f"response.{whole['status']}"]
    last = found[-1]["response"]
    assert [bare(one) for one in last["output"]] == [bare(one) for one in whole["output"]]
    same = {"id", "created_at", "output", "usage"}
    assert {k: v for k, v in last.items() if k not in same} == {k: v for k, v in whole.items() if k not in same}
    assert found[-2]["item"] == last["output"][0]


def test_calls_are_items_of_their_own(client):
    pytest.importorskip("llguidance")
    chosen = {"type": "function", "name": "add"}
    options = {"tools": FLAT, "tool_choice": chosen, "max_output_tokens": 120}
    whole = respond(client, **options).json()
    (item,) = whole["output"]
    assert item["type"] == "function_call" and item["name"] == "add" and whole["status"] == "completed"
    assert set(json.loads(item["arguments"])) == {"one", "other"}
    assert whole["tools"] == [{name: value for name, value in tool.items() if value is not None} for tool in FLAT]
    assert whole["tool_choice"] == chosen
    found = events(respond(client, **options, stream=True))
    assert [event["type"].removeprefix("response.") for event in found] == [
        "created", "in_progress", "output_item.added", "function_call_arguments.delta", "function_call_arguments.done",
        "output_item.done", "completed"]
    assert found[2]["item"]["arguments"] == "" and found[3]["delta"] == item["arguments"]
    again = [{"role": "user", "content": [{"type": "input_text", "text": "say hello"}]}, {"type": "reasoning"}, item,
             {"type": "function_call_output", "call_id": item["call_id"], "output": "3"}]
    assert respond(client, again, tools=FLAT).status_code == 200


def test_a_response_has_a_form(client):
    pytest.importorskip("llguidance")
    schema = {"enum": ["yes", "no"]}
    found = respond(client, text={"format": {"type": "json_schema", "name": "answer", "schema": schema}}).json()
    assert json.loads(found["output"][0]["content"][0]["text"]) in ("yes", "no")
    assert found["text"]["format"]["schema"] == schema


def test_what_is_asked_becomes_a_conversation():
    call = {"type": "function_call", "call_id": "c", "name": "add", "arguments": "{}"}
    given = [{"role": "user", "content": "a"}, {"type": "message", "role": "assistant", "content": "b"}, call,
             {**call, "call_id": "d"}, {"type": "function_call_output", "call_id": "c", "output": "3"}, call]
    found = as_chat(ResponseRequest(input=given, instructions="be good", max_output_tokens=5, seed=3))
    roles = [message["role"] for message in found.messages]
    assert roles == ["system", "user", "assistant", "tool", "assistant"] and found.seed == 3 and found.max_tokens == 5
    assert [entry["id"] for entry in found.messages[2]["tool_calls"]] == ["c", "d"]
    assert found.response_format is None and found.tools is None
    with pytest.raises(MixwellError, match="item 1 of input is of the type 'picture'"):
        as_chat(ResponseRequest(input=[{"type": "picture"}]))


@pytest.mark.parametrize(("options", "words"), [
    ({"previous_response_id": "resp_1"}, "keeps no responses"), ({"background": True}, "leave background out"),
    ({"truncation": "auto"}, "truncation"), ({"input": []}, "input"), ({"tools": [{"type": "web_search"}]}, "tools"),
    ({"max_output_tokens": 2000}, "context of 1024"), ({"input": [{"role": "user", "content": [{"type": "a"}]}]},
                                                       "more than text"),
    ({"text": {"format": {"type": "json_schema"}}}, "give the schema")])
def test_what_is_not_answered_is_refused(client, options, words):
    found = respond(client, **options) if "input" not in options else client.post(PATH, json=options)
    assert found.status_code == 400 and words in found.json()["error"]["message"], found.text


def test_a_response_that_breaks_says_so(client, monkeypatch):
    serving = client.app.app.state.house.find(None)

    def broken():
        raise RuntimeError("broken")

    monkeypatch.setattr(serving.engine.scheduler, "plan", broken)
    assert respond(client).status_code == 500
    found = events(respond(client, stream=True))
    assert found[-1]["type"] == "error" and "failed" in found[-1]["message"]
