"""The endpoints, as clients call them: answers, streams, refusals, keys and bounds."""

import asyncio
import itertools
import json
import threading
import time

import pytest
import torch
from starlette.testclient import TestClient

from mixwell.lm.chat import Chat
from mixwell.lm.conversation import conversation
from mixwell.serve.app import Settings, build
from mixwell.serve.engine import Limits
from mixwell.serve.guard import Guard, Rules
from tests.serve.conftest import small_model

SAID = [{"role": "user", "content": "say hello"}]
CHAT, COMPLETE = "/v1/chat/completions", "/v1/completions"


def served(model, rules=None, most_waiting=8, **limits):
    settings = Settings(name="tiny", limits=Limits(**{"step_tokens": 16, "max_rows": 4, "block": 4} | limits),
                        most_waiting=most_waiting, threads=1)
    return build(model, settings, rules or Rules())


@pytest.fixture(scope="module")
def app(model):
    return served(model)


@pytest.fixture(scope="module")
def client(app):
    with TestClient(app) as found:
        yield found


@pytest.fixture(scope="module")
def answer(model):
    """The likeliest answer of eight ids, by `generate`."""
    prompt = Chat(model.tokenizer).prompt(conversation(SAID))
    ids = model.generate(torch.tensor([prompt]), 8, eos_token_id=(), do_sample=False)[0].tolist()
    return prompt, ids[len(prompt) :], model.tokenizer.decode(ids[len(prompt) :], skip_special=True)


def ask(client, path=CHAT, **options):
    usual = {"messages": SAID} if path == CHAT else {"prompt": "say hello"}
    return client.post(path, json={**usual, "temperature": 0, "max_tokens": 8, "ignore_eos": True} | options)


def stream(response):
    """The chunks of a stream, checked to be lines of events that end as they must."""
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = response.text.split("\n\n")
    assert lines[-1] == "" and lines[-2] == "data: [DONE]"
    assert all(line.startswith("data: ") for line in lines[:-1])
    return [json.loads(line[6:]) for line in lines[:-2]]


def test_models_health_and_metrics(client):
    assert client.get("/health").json() == {"status": "ok"}
    (card,) = client.get("/v1/models").json()["data"]
    assert (card["id"], card["object"], card["max_model_len"]) == ("tiny", "model", 96)
    assert client.get("/v1/models/tiny").json() == card
    assert client.get("/v1/models/other").status_code == 404
    ask(client)
    text = client.get("/metrics").text
    for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "prompt_tokens_total",
                 "generation_tokens_total", "time_to_first_token_seconds_bucket",
                 "inter_token_latency_seconds_bucket", "e2e_request_latency_seconds_count"):
        assert f"mixwell:{name}{{" in text


def test_a_chat_answer_is_whole(client, answer):
    prompt, ids, text = answer
    found = ask(client, logprobs=True, top_logprobs=2, return_experts=True).json()
    (choice,) = found["choices"]
    assert choice["message"] == {"role": "assistant", "content": text}
    assert choice["finish_reason"] == "length" and found["object"] == "chat.completion"
    assert found["usage"]["prompt_tokens"] == len(prompt) and found["usage"]["completion_tokens"] == 8
    told = choice["logprobs"]["content"]
    assert b"".join(bytes(one["bytes"]) for one in told).decode(errors="replace") == text
    assert all(len(one["top_logprobs"]) == 2 and one["logprob"] == one["top_logprobs"][0]["logprob"] for one in told)
    assert [one["id"] for one in choice["experts"]] == ids
    assert all(len(layers) == 2 and all(set(layer) < {0, 1, 2} for layer in layers)
               for layers in (one["layers"] for one in choice["experts"]))
    plain = ask(client).json()["choices"][0]
    assert plain["logprobs"] is None and "experts" not in plain


def test_a_chat_stream_has_the_form_that_clients_insist_on(client, answer):
    chunks = stream(ask(client, stream=True, stream_options={"include_usage": True}, logprobs=True))
    assert len({(chunk["id"], chunk["created"], chunk["object"]) for chunk in chunks}) == 1
    assert chunks[0]["object"] == "chat.completion.chunk"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    *middle, end, usage = chunks[1:]
    assert all(set(chunk["choices"][0]["delta"]) == {"content"} for chunk in middle)
    assert all(isinstance(chunk["choices"][0]["delta"]["content"], str) for chunk in middle)
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in [chunks[0], *middle])
    assert (end["choices"][0]["delta"], end["choices"][0]["finish_reason"]) == ({}, "length")
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] == 8
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in middle) == answer[2]
    assert sum(len(chunk["choices"][0]["logprobs"]["content"]) for chunk in middle) == 8
    assert "usage" not in stream(ask(client, stream=True))[0]


def test_several_answers_stream_side_by_side(client):
    options = {"n": 3, "temperature": 1.0, "seed": 4}
    whole = [one["message"]["content"] for one in ask(client, **options).json()["choices"]]
    assert len(set(whole)) == 3
    texts = ["", "", ""]
    for chunk in stream(ask(client, stream=True, **options)):
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == whole


def test_completions_echo_what_they_score(client, model):
    """As lm-eval's local-completions asks: ids, their log-probabilities, and the likeliest at each place."""
    contexts = [[5, 6, 7, 8, 90, 91], [33, 34]]
    found = ask(client, COMPLETE, prompt=contexts, echo=True, logprobs=1, max_tokens=1).json()["choices"]
    for context, choice in zip(contexts, found):
        told = choice["logprobs"]
        assert len(told["tokens"]) == len(context) + 1 and told["token_logprobs"][0] is None
        assert told["top_logprobs"][0] is None and all(told["top_logprobs"][1:])
        with torch.no_grad():
            logs = model(torch.tensor([context])).logits_BTV[0].log_softmax(-1)
        expected = [float(logs[place, number]) for place, number in enumerate(context[1:])]
        assert told["token_logprobs"][1:-1] == pytest.approx(expected, abs=1e-9)
        greedy = [max(top.values()) == own for own, top in
                  zip(told["token_logprobs"][1:], told["top_logprobs"][1:])]
        assert greedy[-1] and greedy[:-1] == [int(logs[place].argmax()) == number
                                              for place, number in enumerate(context[1:])]
    only = ask(client, COMPLETE, prompt=contexts[0], echo=True, logprobs=1, max_tokens=0).json()
    assert len(only["choices"][0]["logprobs"]["tokens"]) == 6 and only["usage"]["completion_tokens"] == 0


def test_completion_streams_join_to_the_whole(client):
    for options in ({"echo": True, "logprobs": 0}, {}, {"echo": True}, {"n": 2}, {"echo": True, "max_tokens": 0}):
        whole = ask(client, COMPLETE, **options).json()["choices"]
        texts, offsets = [""] * len(whole), [[] for _ in whole]
        for chunk in stream(ask(client, COMPLETE, stream=True, **options)):
            (choice,) = chunk["choices"]
            texts[choice["index"]] += choice["text"]
            offsets[choice["index"]] += (choice["logprobs"] or {"text_offset": []})["text_offset"]
        assert texts == [choice["text"] for choice in whole]
        assert offsets == [(choice["logprobs"] or {"text_offset": []})["text_offset"] for choice in whole]


def test_texts_become_ids_and_back(client, model):
    ids = client.post("/tokenize", json={"prompt": "say hello"}).json()["tokens"]
    assert ids == model.tokenizer.encode("say hello")
    assert client.post("/detokenize", json={"tokens": ids}).json() == {"prompt": "say hello"}
    spoken = client.post("/tokenize", json={"messages": SAID}).json()
    assert spoken["tokens"] == Chat(model.tokenizer).prompt(conversation(SAID)) and spoken["count"] > 3
    assert client.post("/tokenize", json={}).status_code == 400
    assert client.post("/detokenize", json={"tokens": [99999]}).status_code == 400


@pytest.mark.parametrize(("path", "options", "status", "said"), [
    (CHAT, {"messages": []}, 400, "messages"), (CHAT, {"messages": [{"content": "x"}]}, 400, "role"),
    (CHAT, {"temperature": "hot"}, 400, "temperature"), (CHAT, {"temperature": -1}, 400, "temperature"),
    (CHAT, {"n": 99}, 400, "n:"), (CHAT, {"stop": [""]}, 400, "stop"), (CHAT, {"stop": ["a"] * 99}, 400, "stop"),
    (CHAT, {"top_logprobs": 3}, 400, "logprobs: true"), (CHAT, {"model": "other"}, 404, "expected 'tiny'"),
    (CHAT, {"tools": [{"type": "function"}]}, 400, "tools"), (CHAT, {"max_tokens": 99}, 400, "context of 96"),
    (CHAT, {"response_format": {"type": "xml"}}, 400, "response_format"),
    (CHAT, {"chat_template_kwargs": {"messages": []}}, 400, "server's own"),
    (CHAT, {"logit_bias": {"x": 1}}, 400, "logit_bias"), (CHAT, {"seed": 2**70}, 400, "seed"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "more than text"),
    (COMPLETE, {"prompt": []}, 400, "prompt"), (COMPLETE, {"prompt": [[10**9]]}, 400, "holds the id"),
    (COMPLETE, {"prompt": ""}, 400, "empty"), (COMPLETE, {"max_tokens": 0}, 400, "echo"),
    (COMPLETE, {"prompt": [[1]] * 200}, 400, "200 prompts"), (COMPLETE, {"prompt": [[1]] * 13}, 400, "13 answers"),
    (COMPLETE, {"logprobs": 99}, 400, "logprobs"), (COMPLETE, {"prompt": [[-1]]}, 400, "prompt")])
def test_what_is_wrong_is_named(client, path, options, status, said):
    found = ask(client, path, **options)
    error = found.json()["error"]
    assert found.status_code == status and said in error["message"]
    assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe{}", b"[1]", b'{"messages": "\xc3("}', b"[" * 100_000, b"null",
                                  b'{"messages": [{"role": "user", "content": "\\ud800"}]}'])
def test_bodies_that_are_no_requests_are_refused(client, body):
    found = client.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert found.status_code == 400 and found.json()["error"]["message"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_body_sent_as_another_type_is_told_which_header_to_send(client, kind):
    body = b'{"messages": [{"role": "user", "content": "a"}]}'
    found = client.post(CHAT, content=body, headers={"content-type": kind})
    assert found.status_code == 400 and "Content-Type: application/json" in found.json()["error"]["message"]


def test_unknown_paths_methods_and_fields(client):
    assert client.get("/nothing").status_code == 404 and "error" in client.get("/nothing").json()
    assert client.get(CHAT).status_code == 405
    assert ask(client, store=True, metadata={"a": "b"}, user="me", anything=1).status_code == 200


def test_a_client_that_leaves_frees_its_blocks(app, client):
    """Both kinds of answers: while a stream is read, while a whole one is waited for, and before either begins."""
    serving = app.app.state.house.find(None)
    facts = serving.engine.facts

    async def leave(streamed, at_once):
        body = json.dumps({"prompt": "say", "max_tokens": 90, "ignore_eos": True, "stream": streamed}).encode()
        scope = {"type": "http", "method": "POST", "path": COMPLETE, "raw_path": COMPLETE.encode(), "root_path": "",
                 "query_string": b"", "scheme": "http", "server": ("testserver", 80), "client": ("c", 1),
                 "http_version": "1.1", "asgi": {"version": "3.0"},
                 "headers": [(b"host", b"testserver"), (b"content-type", b"application/json")]}
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive():
            if messages:
                return messages.pop()
            while not at_once and not facts()["blocks_used"]:
                await asyncio.sleep(0.001)
            return {"type": "http.disconnect"}

        async def send(message):
            pass

        await app(scope, receive, send)
        assert not serving.worker.open

    for streamed, at_once in itertools.product((True, False), (True, False)):
        client.portal.call(leave, streamed, at_once)
        until = time.monotonic() + 600
        while facts()["blocks_used"] and time.monotonic() < until:
            time.sleep(0.002)
        assert facts()["blocks_used"] == 0 and not serving.worker.open


def test_a_full_queue_turns_clients_away(model):
    app = served(model, most_waiting=0, max_rows=1)
    with TestClient(app) as client:
        worker = app.app.state.house.find(None).worker
        going = threading.Event()
        step = worker.engine.step

        def slow():
            going.wait(600)
            return step()

        worker.engine.step = slow
        found = []
        first = threading.Thread(target=lambda: found.append(ask(client)))
        first.start()
        while not worker.open:
            time.sleep(0.001)
        refused = ask(client)
        going.set()
        first.join()
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) > 0
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert found[0].status_code == 200 and ask(client).status_code == 200


def test_a_broken_step_fails_its_requests_and_no_other(model):
    app = served(model)
    with TestClient(app, raise_server_exceptions=False) as client:
        engine = app.app.state.house.find(None).engine
        step, failures = engine.step, [RuntimeError("broken"), RuntimeError("broken")]

        def breaks():
            if failures:
                raise failures.pop()
            return step()

        engine.step = breaks
        found = ask(client)
        assert found.status_code == 500 and "log says why" in found.json()["error"]["message"]
        lines = ask(client, stream=True).text.strip().split("\n\n")
        assert "error" in json.loads(lines[-1][6:])  # and no line that says all is well
        assert ask(client).status_code == 200 and engine.pool.used == 0


def test_without_the_key_nothing_is_answered(model):
    with TestClient(served(model, Rules(api_key="secret"))) as client:
        assert client.get("/health").status_code == 200
        for path in ("/v1/models", "/metrics", "/v1/experts", "/nothing", "/openapi.json"):
            assert client.get(path).status_code == 401
        for wrong in ("Bearer", "Bearer secre", "Bearer secret2", "Basic secret", "secret", "Bearer s\u00e9cret"):
            headers = {"authorization": wrong.encode()}
            assert client.get("/v1/models", headers=headers).status_code == 401
        assert client.get("/v1/models", headers={"authorization": "bearer  secret "}).status_code == 200


def test_only_this_machines_names_are_answered_without_a_key(model):
    with TestClient(served(model, Rules(local_names=True)), base_url="http://localhost") as client:
        assert client.get("/health", headers={"host": "evil.example"}).status_code == 403
        for host in ("127.0.0.1:8000", "localhost", "[::1]:80"):
            assert client.get("/health", headers={"host": host}).status_code == 200


def test_requests_are_bounded_in_size_and_time(model):
    with TestClient(served(model, Rules(body_bytes=300, body_s=0.05))) as client:
        large = {"prompt": "a" * 400}
        assert client.post(COMPLETE, json=large).status_code == 413
        pieces = (json.dumps(large).encode()[place : place + 50] for place in range(0, 400, 50))
        found = client.post(COMPLETE, content=pieces, headers={"content-type": "application/json"})
        assert found.status_code == 413 and "larger than 300" in found.json()["error"]["message"]
        assert client.post(COMPLETE, content=b"{}", headers={"content-length": "-5"}).status_code == 400


def test_a_request_that_never_arrives_is_given_up():
    async def never():
        await asyncio.sleep(60)

    async def inner(scope, receive, send):
        await receive()

    async def call():
        await Guard(inner, Rules(body_s=0.01))({"type": "http", "headers": [], "path": "/"}, never, None)

    with pytest.raises(Exception, match=r"did not arrive within 0\.01 s"):
        asyncio.run(call())


def test_a_server_that_stops_ends_what_is_under_way(model):
    app = served(model)
    with TestClient(app):
        worker = app.app.state.house.find(None).worker
    assert worker._thread is None and not worker.engine.busy


def test_the_model_without_a_template_says_so(model):
    from mixwell.lm.tokenizer import Tokenizer

    bare = small_model()
    files = {name: data for name, data in model.tokenizer.save_files().items() if name == "tokenizer.json"}
    bare.files, bare._tokenizer = files, Tokenizer(files)
    with TestClient(served(bare)) as client:
        found = ask(client)
        assert found.status_code == 400 and "no chat template" in found.json()["error"]["message"]
        assert ask(client, COMPLETE).status_code == 200


def test_variables_of_a_template_may_have_any_other_name(client):
    plain = ask(client).json()["choices"]
    assert ask(client, chat_template_kwargs={"self": 1, "conversation": [], "variables": {}}).json()["choices"] == plain


def test_what_the_folder_says_of_drawing_is_heeded_checked_and_warned_of(answer):
    said = {"messages": SAID, "max_tokens": 8, "ignore_eos": True}
    model = small_model()
    for settings in ({"do_sample": False, "temperature": 0.6}, {"temperature": 0}, {"top_k": 1}):
        model.files = model.files | {"generation_config.json": json.dumps(settings).encode()}
        with TestClient(served(model)) as client:
            assert client.post(CHAT, json=said).json()["choices"][0]["message"]["content"] == answer[2]
    settings = {"eos_token_id": [99999, -1], "num_beams": 4, "repetition_penalty": 0}
    model.files = model.files | {"generation_config.json": json.dumps(settings).encode()}
    with pytest.warns(UserWarning, match="asks for num_beams"):
        app = served(model)
    with TestClient(app) as client:
        refused = client.post(CHAT, json=said)
        assert refused.status_code == 400 and "repetition_penalty is 0" in refused.json()["error"]["message"]
        held_up = client.post(CHAT, json=said | {"ignore_eos": False, "min_tokens": 2, "repetition_penalty": 1})
        assert held_up.status_code == 200 and held_up.json()["usage"]["completion_tokens"] >= 2


def test_half_a_surrogate_pair_is_refused_wherever_it_stands(client):
    for options in ({"prompt": "\ud800"}, {"prompt": ["a", "\ud800"]}, {"label": "\ud800"}, {"stop": ["\ud800"]}):
        body = json.dumps({"prompt": "a", "max_tokens": 1} | options)
        for path in (COMPLETE, *(["/tokenize"] if options.get("prompt") == "\ud800" else [])):
            refused = client.post(path, content=body, headers={"content-type": "application/json"})
            assert refused.status_code == 400 and refused.json()["error"]["type"] == "invalid_request_error"
    assert client.get("/v1/experts").status_code == 200


def test_the_token_that_ends_an_answer_has_a_logprob(client, model):
    """Evaluators score a context by all logprobs but the last, which they take to be the one token asked for."""
    end = min(model.stop_ids)
    prompt = model.tokenizer.prompt("say hello")
    options = {"prompt": prompt, "echo": True, "logprobs": 1, "max_tokens": 1, "ignore_eos": False,
               "logit_bias": {str(end): 100}}
    whole = ask(client, COMPLETE, **options).json()
    (choice,) = whole["choices"]
    told = choice["logprobs"]["token_logprobs"]
    assert choice["finish_reason"] == "stop" and choice["text"] == model.tokenizer.decode(prompt)
    assert len(told) == len(prompt) + 1 and whole["usage"]["completion_tokens"] == 0
    plain = ask(client, COMPLETE, prompt=prompt, echo=True, logprobs=1, max_tokens=0).json()
    assert told[:-1] == pytest.approx(plain["choices"][0]["logprobs"]["token_logprobs"], nan_ok=True)
    chunks = stream(ask(client, COMPLETE, **options, stream=True))
    pieces = [chunk["choices"][0]["logprobs"] for chunk in chunks if chunk["choices"][0]["logprobs"]]
    assert [value for piece in pieces for value in piece["token_logprobs"]] == pytest.approx(told)
    (quiet,) = ask(client, COMPLETE, **{**options, "logprobs": None}).json()["choices"]
    assert quiet["logprobs"] is None and quiet["finish_reason"] == "stop"


def test_the_interface_says_what_is_answered(client):
    """Refusals have OpenAI's shape and its statuses, in the description that clients are made from, too."""
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/tokenize"} <= set(paths)
    for operations in paths.values():
        for operation in operations.values():
            assert set(operation["responses"]) == {"200", "4XX", "5XX"}
