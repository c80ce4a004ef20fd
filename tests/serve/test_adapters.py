"""Rows of one batch with adapters of their own are answered as by each adapter alone."""

import pytest
import torch
from starlette.testclient import TestClient

from mixwell.adapters.ia3 import IA3
from mixwell.adapters.ia3 import Config as Factors
from mixwell.adapters.kind import KIND
from mixwell.adapters.kind import Config as Domains
from mixwell.adapters.lora import Config, LoRA
from mixwell.adapters.many import NONE, Many
from mixwell.adapters.molora import Config as Mixed
from mixwell.adapters.molora import MoLoRA
from mixwell.adapters.perft import PERFT
from mixwell.adapters.perft import Config as Routed
from mixwell.adapters.ssf import SSF
from mixwell.adapters.ssf import Config as Shifted
from mixwell.core.errors import MixwellError
from mixwell.core.rng import generator
from mixwell.serve.app import Settings, build
from mixwell.serve.engine import Engine, Limits
from mixwell.serve.guard import Rules
from tests.contracts._adapters import moved
from tests.serve.conftest import ATTENTION, MOE, finish, row, small_model
from tests.serve.test_engine import alone, prompts

EVERYWHERE = ["qkv", "out", "gate_up_proj", "down_proj"]
MADE = {
    "first": lambda model: LoRA.attach(model, EVERYWHERE, Config(rank=2, alpha=8.0), generator(1)),
    "second": lambda model: LoRA.attach(model, ["out", "down_proj"], Config(rank=3, alpha=9.0, dora=True),
                                        generator(2)),
    "factors": lambda model: IA3.attach(model, ["qkv", "down_proj"], Factors(), generator(3)),
}


def _one(name, seed):
    """A model with one adapter beside it, as it is served alone."""
    model = small_model(channel_mixer={**MOE, "shared_experts": 1})
    moved(MADE[name](model), seed, 0.3)
    return model.eval()


@pytest.fixture(scope="module")
def both():
    """The model with all adapters, and the engine's rows alone."""
    model = small_model(channel_mixer={**MOE, "shared_experts": 1})
    held = {}
    for seed, name in enumerate(MADE):
        held[name] = moved(MADE[name](model), seed, 0.3)
        held[name].detach()
    return model, Many(model, held)


def test_each_row_is_answered_by_its_own_adapter(both):
    model, many = both
    engine = Engine(model, Limits(step_tokens=12, max_rows=4, block=4), many)
    assert engine.packed
    bare = small_model(channel_mixer={**MOE, "shared_experts": 1})
    models = {NONE: bare} | {number: _one(name, number) for number, name in enumerate(MADE)}
    given = prompts(4, 20)
    rows = [row(model, prompt, 8, adapter=number) for prompt in given for number in models]
    finish(engine, rows)
    for one in rows:
        assert one.ids == alone(models[one.options.adapter], one.prompt, 8)
    answers = {tuple(one.said) for one in rows[:4]}
    assert len(answers) == 4  # one prompt, four adapters, four answers


def test_clients_choose_an_adapter_by_name(both):
    model, many = both
    settings = Settings(name="base", limits=Limits(step_tokens=16, max_rows=4, block=4), threads=1, adapters=many)
    with TestClient(build(model, settings, Rules())) as client:
        listed = client.get("/v1/models").json()["data"]
        assert [(one["id"], one.get("parent")) for one in listed] == [
            ("base", None), ("first", "base"), ("second", "base"), ("factors", "base")]
        asked = {"prompt": "say hello", "max_tokens": 6, "temperature": 0, "ignore_eos": True}
        found = {name: client.post("/v1/completions", json={"model": name, **asked}).json()
                 for name in ("base", "first", "second")}
        texts = {name: answer["choices"][0]["text"] for name, answer in found.items()}
        assert len(set(texts.values())) == 3 and found["first"]["model"] == "first"
        bare = client.post("/v1/completions", json=asked).json()["choices"][0]["text"]
        assert bare == texts["base"]
        chat = {"model": "second", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
        assert client.post("/v1/chat/completions", json=chat).json()["model"] == "second"
        assert client.post("/v1/completions", json={"model": "third", **asked}).status_code == 404


def test_rows_of_two_adapters_share_no_beginning(both):
    model, many = both
    engine = Engine(model, Limits(step_tokens=40, max_rows=4, block=4), many)
    prompt = list(range(20))
    first = row(model, prompt, 3, adapter=0)
    finish(engine, [first])
    again, other = (row(model, prompt, 3, adapter=number) for number in (0, 1))
    finish(engine, [again, other])
    assert again.cached and not other.cached and again.said == first.said


def test_adapters_that_rows_cannot_choose_are_refused():
    model = small_model(ATTENTION | {"bias": True})

    def many(attach, message):
        there = moved(attach(model))
        there.detach()
        with pytest.raises(MixwellError, match=message):
            Many(model, {"mine": there})

    thin, routed = Config(rank=1), Routed(num_adapters=2, rank=1)
    many(lambda model: PERFT.attach(model, None, routed, generator(1)), "serve its model by itself")
    many(lambda model: LoRA.attach(model, "out", thin, generator(1), trained=["norm"]), "brings whole parameters")
    gated = Mixed(num_experts=2, rank=1)
    many(lambda model: MoLoRA.attach(model, "out", gated, generator(1)), "depends on what comes in")
    domains = Domains(common=2, tailors=1, domains=2)
    many(lambda model: KIND.attach(model, "out", domains, generator(1)), "depends on the domain of the tokens")
    many(lambda model: SSF.attach(model, "qkv", Shifted(), generator(1)), "changes the bias beside")
    there = LoRA.attach(model, "out", thin, generator(1))
    other = LoRA.attach(model, "qkv", thin, generator(1))
    other.detach()
    other.adapters = there.adapters
    with pytest.raises(MixwellError, match="has an adapter already"):
        Many(model, {"mine": other})


def test_a_model_whose_adapter_routes_is_read_row_by_row():
    model = small_model()
    moved(PERFT.attach(model, None, Routed(num_adapters=2, rank=1), generator(1)), size=0.3)
    engine = Engine(model, Limits(step_tokens=12, max_rows=4, block=4))
    assert not engine.packed
    rows = [row(model, prompt, 4) for prompt in prompts(3, 20)]
    finish(engine, rows)
    assert [one.ids for one in rows] == [alone(model, one.prompt, 4) for one in rows]


def test_one_token_and_one_group_take_the_short_way(both):
    model, many = both
    many.choose(torch.tensor([0]))
    x = torch.randn(1, 1, 16, dtype=torch.float64, generator=generator(4))
    change = model.layers[0].sequence_mixer.out._modules["adapters"]["weight"].bound()
    y = torch.zeros(1, 1, 16, dtype=torch.float64)
    lora = change.bounds[0].adapter
    expected = lora.scale * x @ lora.A.T.double() @ lora.B.T.double()
    torch.testing.assert_close(change.after(x, y, None), expected, rtol=1e-5, atol=1e-6)
    many.choose(torch.tensor([NONE]))
    untouched = model.layers[0].sequence_mixer.out._modules["adapters"]["weight"].bound()
    assert torch.equal(untouched.after(x, y, None), y)


def test_rows_are_sorted_out_once_a_pass_whatever_the_number_of_weights(both, monkeypatch):
    model, many = both
    found = []
    monkeypatch.setattr("mixwell.adapters.many._rows_of", lambda numbers, number: found.append(number) or slice(1))
    many.choose(torch.tensor([0, NONE, 1]))
    mixer = model.layers[0].sequence_mixer
    x = torch.randn(1, 3, 16, dtype=torch.float64, generator=generator(4))
    for layer in (mixer.qkv, mixer.out, mixer.out):
        layer(x)
    assert found == [0, 1]
