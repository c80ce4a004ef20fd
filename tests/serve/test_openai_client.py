"""OpenAI's own client against the server, where it is installed."""

import pytest
import torch

from tests.serve.conftest import small_model
from tests.serve.listening import listening
from tests.serve.test_app import SAID, served
from tests.serve.test_tools import ENTRIES, TOOLS

openai = pytest.importorskip("openai")


@pytest.fixture(scope="module")
def client(model):
    with listening(served(model)) as address:
        yield openai.OpenAI(base_url=address, api_key="any")


def test_the_client_reads_what_is_answered(client):
    assert [one.id for one in client.models.list()] == ["tiny"]
    options = {"model": "tiny", "messages": SAID, "max_tokens": 8, "temperature": 0}
    whole = client.chat.completions.create(**options, logprobs=True, top_logprobs=2,
                                           extra_body={"return_experts": True, "top_k": 5})
    (choice,) = whole.choices
    assert choice.message.content and len(choice.logprobs.content) == whole.usage.completion_tokens
    assert choice.experts[0]["layers"]
    with client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}) as stream:
        chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == choice.message.content
    assert chunks[-2].choices[0].finish_reason == choice.finish_reason
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    text = client.completions.create(model="tiny", prompt="say", max_tokens=4, echo=True, logprobs=1)
    assert text.choices[0].text.startswith("say") and text.choices[0].logprobs.text_offset[0] == 0


def test_the_client_reads_vectors(client):
    found = client.embeddings.create(model="tiny", input=["say", "hello"])  # it asks for base64
    plain = client.embeddings.create(model="tiny", input=["say", "hello"], encoding_format="float")
    for one, other in zip(found.data, plain.data):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)


def test_the_client_reads_responses(client):
    options = {"model": "tiny", "input": "say hello", "max_output_tokens": 8, "temperature": 0}
    whole = client.responses.create(**options)
    assert whole.output_text and whole.usage.output_tokens
    with client.responses.stream(**options) as stream:
        *events, last = list(stream)
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == last.response.output_text == whole.output_text
    assert last.type == f"response.{whole.status}" == f"response.{last.response.status}"


def test_the_client_reads_calls():
    pytest.importorskip("llguidance")
    model = small_model(dtype=torch.float32, max_positions=1024)
    model.tokenizer = model.tokenizer.with_chat_template(TOOLS)
    with listening(served(model)) as address:
        client = openai.OpenAI(base_url=address, api_key="any")
        options = {"model": "tiny", "messages": SAID, "tools": ENTRIES, "tool_choice": "required", "temperature": 0,
                   "parallel_tool_calls": False}
        whole = client.chat.completions.create(**options).choices[0]
        (call,) = whole.message.tool_calls
        assert whole.finish_reason == "tool_calls" and call.function.name in ("add", "now")
        with client.chat.completions.stream(**options) as stream:
            done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
            final = stream.get_final_completion().choices[0].message.tool_calls[0]
        assert [event.arguments for event in done] == [call.function.arguments] == [final.function.arguments]


def test_the_client_understands_refusals(client):
    with pytest.raises(openai.NotFoundError, match="not served here"):
        client.chat.completions.create(model="other", messages=SAID)
    with pytest.raises(openai.BadRequestError, match="context of 96"):
        client.chat.completions.create(model="tiny", messages=SAID, max_tokens=1000)
    with pytest.raises(openai.AuthenticationError):
        from mixwell.serve.guard import Rules
        with listening(served(small_model(), Rules(api_key="k"))) as address:
            openai.OpenAI(base_url=address, api_key="wrong").models.list()
