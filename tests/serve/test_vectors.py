"""Vectors of texts: against a pass over each text alone, in pieces, beside answers, and as clients ask for them."""

import base64
import math
import struct

import pytest
import torch
from starlette.testclient import TestClient

from tests.serve.conftest import LATENT, engine, finish, row, small_model
from tests.serve.test_app import SAID, ask, served

TEXTS = ["say hello world", "again", "be good and think again and again, be good"]
PATH = "/v1/embeddings"


def wanted(model, text, pooling):
    """By a loop: the states of one pass over the whole text, summed token by token."""
    ids = model.tokenizer.prompt(text)
    with torch.no_grad():
        states, _ = model.states(torch.tensor([ids]), model.new_cache(), torch.arange(len(ids)))
    total = [0.0] * model.config.dim
    for state in states.tolist() if pooling == "mean" else states[-1:].tolist():
        total = [one + other for one, other in zip(total, state)]
    length = math.sqrt(sum(value * value for value in total))
    return [value / length for value in total]


@pytest.fixture(scope="module")
def client(model):
    with TestClient(served(model)) as found:
        yield found


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("mixer", [{}, LATENT])
def test_vectors_are_those_of_each_text_alone(pooling, mixer):
    model = small_model(**({"sequence_mixer": mixer} if mixer else {}))
    found = engine(model, step_tokens=5)  # in pieces, and beside rows that answer
    answering = [row(model, model.tokenizer.prompt(TEXTS[0]), 6) for _ in range(2)]
    asking = [row(model, model.tokenizer.prompt(text), 0, pooling=pooling) for text in TEXTS]
    alone = [event.tokens[0].id for event in finish(engine(model), [row(model, answering[0].prompt, 6)])
             if event.tokens]
    events = finish(found, [answering[0], *asking, answering[1]])
    vectors = {event.row: event.vector for event in events if event.vector}
    for one, text in zip(asking, TEXTS):
        assert vectors[one] == pytest.approx(wanted(model, text, pooling), abs=1e-12)
    assert [event.tokens[0].id for event in events if event.row is answering[1] and event.tokens] == alone


def test_a_text_read_before_is_read_again_whole(model):
    """Blocks that are shared hold no states: a mean that left them out would be another vector."""
    found = engine(model)
    prompt = model.tokenizer.prompt(TEXTS[2])
    first, second = (row(model, prompt, 0, pooling="mean") for _ in range(2))
    (one,), (other,) = finish(found, [first]), finish(found, [second])
    assert other.vector == pytest.approx(one.vector, abs=1e-12) and not second.cached


def test_a_row_sent_back_begins_its_vector_anew(model):
    one = row(model, model.tokenizer.prompt(TEXTS[2]), 0, pooling="mean")
    whole = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    one.pooled.add(whole[:3])
    one.begin_again()
    one.pooled.add(whole)
    expected = whole.double().mean(0)
    assert one.pooled.vector() == pytest.approx((expected / expected.norm()).tolist())
    one.begin_again()
    one.pooled.add(torch.zeros(2, 3))
    assert one.pooled.vector() == (0.0, 0.0, 0.0)


def test_clients_get_vectors_in_both_forms(client, model):
    body = client.post(PATH, json={"input": TEXTS, "model": "tiny"}).json()
    assert [entry["index"] for entry in body["data"]] == [0, 1, 2] and body["object"] == "list"
    for entry, text in zip(body["data"], TEXTS):
        assert entry["embedding"] == pytest.approx(wanted(model, text, "mean"), abs=1e-9)
    count = sum(len(model.tokenizer.prompt(text)) for text in TEXTS)
    assert body["usage"] == {"prompt_tokens": count, "total_tokens": count}
    ids = model.tokenizer.prompt(TEXTS[1])
    packed = client.post(PATH, json={"input": ids, "encoding_format": "base64", "pooling": "last"}).json()
    data = base64.b64decode(packed["data"][0]["embedding"])
    assert struct.unpack(f"<{len(data) // 4}f", data) == pytest.approx(wanted(model, TEXTS[1], "last"), abs=1e-6)
    many = client.post(PATH, json={"input": ["again"] * 30, "dimensions": model.config.dim}).json()
    assert len(many["data"]) == 30 and ask(client, messages=SAID).status_code == 200


@pytest.mark.parametrize(("options", "words"), [
    ({"input": []}, "input"), ({"input": ""}, "prompt is empty"), ({"input": "a", "dimensions": 5}, "have 16"),
    ({"input": "a", "pooling": "max"}, "pooling"), ({"input": ["a", "b " * 200]}, "context of 96"),
    ({"input": [[1], [100_000]]}, "id 100000"), ({"input": ["a"] * 2049}, "2048 at most")])
def test_what_has_no_vector_is_refused(client, options, words):
    found = client.post(PATH, json=options)
    assert found.status_code == 400 and words in found.json()["error"]["message"], found.text
