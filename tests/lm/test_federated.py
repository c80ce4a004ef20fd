"""A language model trained by clients: one client is plain descent, rounds teach, lies and bad input are told."""

import numpy as np
import pytest
import torch

from mixwell.core.config import from_dict
from mixwell.core.errors import MixwellError
from mixwell.core.rng import generator
from mixwell.lm.config import ModelConfig
from mixwell.lm.federated import METHODS, Dealing, dealt, federate, task_of, windows
from mixwell.lm.model import LanguageModel
from mixwell.lm.network import IGNORED
from mixwell.parallel.federated.learning import row_losses
from mixwell.parallel.federated.simulation import Setting

ARCH = {"vocab_size": 40, "dim": 16, "num_layers": 1, "num_heads": 2,
        "channel_mixer": {"method": "experts.layers.moe", "num_experts": 2, "hidden_dim": 16}}


class Text:
    """Two domains of ids that repeat, as token data are read."""

    domains = ("ups", "downs")

    def tokens(self, domain, split):
        step = 1 if domain == "ups" else -1
        return (np.arange(401 if domain == "ups" else 201) * step % 20 + (0 if domain == "ups" else 20)).astype("u2")

    def labels(self, domain, split, start, stop):
        ids = self.tokens(domain, split)[start:stop].astype(np.int64)
        ids[ids == 3] = IGNORED
        return ids

    def count(self, domain, split):
        return len(self.tokens(domain, split))


DEALING = Dealing(clients=3, alpha=1.0, seq_len=8, max_windows=8)


@pytest.fixture
def model():
    return LanguageModel(from_dict(ModelConfig, ARCH), generator(0))


def nats(model):
    rows = windows(Text(), 8)
    with torch.no_grad():
        return float(model.loss(rows.x, rows.y).nats)


def test_windows_follow_each_other_and_know_their_domain():
    rows = windows(Text(), 8)
    assert rows.x.shape == rows.y.shape == (50 + 25, 8) and rows.domains.bincount().tolist() == [50, 25]
    assert rows.x[0].tolist() == list(range(8)) and rows.x[1, 0] == 8
    assert rows.y[0].tolist() == [1, 2, IGNORED, 4, 5, 6, 7, 8]
    few = windows(Text(), 8, 4)
    assert len(few) == 8 and torch.equal(few.x[:4], rows.x[:4])
    clients = dealt(Text(), DEALING, 0)
    assert sum(len(client.rows) for client in clients) == 16 and len(clients) == 3


def test_one_client_is_plain_descent(model):
    rows = windows(Text(), 8)
    task = task_of(model)
    with torch.no_grad():
        single = [float(model.loss(rows.x[i:i + 1], rows.y[i:i + 1]).nats) for i in range(3)]
    found = row_losses(task, task.start, rows.of(torch.arange(3)))
    assert found.tolist() == pytest.approx(single, rel=1e-5)
    twin = LanguageModel(from_dict(ModelConfig, ARCH), generator(0))
    federate(model, Text(), options={"lr": 0.3, "steps": 2, "batch_size": 1000}, setting=Setting(rounds=1),
             dealing=Dealing(clients=1, seq_len=8))
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.3)
    for _ in range(2):
        loss = twin.loss(rows.x, rows.y)
        optimizer.zero_grad()
        (loss.nats + loss.aux).backward()
        optimizer.step()
    for name, parameter in twin.named_parameters():
        torch.testing.assert_close(dict(model.named_parameters())[name], parameter, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_rounds_teach_by_every_method(model, name):
    options = {"fed_amd": {"lr": 0.5, "anchor": 0.3}, "monna": {"lr": 1.0, "momentum": 0.5},
               "prowd": {"bits": (8, 32), "lr": 0.5, "server_steps": 2}}.get(name, {"lr": 0.5})
    if name != "monna":
        options["steps"] = 3
    before = nats(model)
    found = federate(model, Text(), name, options, dealing=DEALING, setting=Setting(rounds=4))
    assert nats(model) < before - 0.05 and not model.training
    assert found.down_bytes > 0 and found.up_bytes > 0 and len(found.ledger) == 4


@pytest.mark.parametrize("name", ["fed_avg", "curriculum"])
@pytest.mark.parametrize("router", [
    {"method": "noisy_top_k", "k": 1}, {"method": "conditioned", "k": 1, "condition": "label", "labels": 2}])
def test_routers_that_draw_or_ask_for_the_domain_are_trained_alike_by_one_seed(name, router):
    arch = {**ARCH, "channel_mixer": {**ARCH["channel_mixer"], "router": router}}

    def trained(seed):
        model = LanguageModel(from_dict(ModelConfig, arch), generator(0))
        setting = Setting(rounds=2, seed=seed)
        federate(model, Text(), name, {"lr": 0.5, "steps": 2, "batch_size": 2}, dealing=DEALING, setting=setting)
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    first = trained(0)
    assert first.isfinite().all() and torch.equal(first, trained(0)) and not torch.equal(first, trained(1))


def test_a_median_stands_lies(model):
    options = {"lr": 0.5, "steps": 4, "aggregation": {"rule": "median", "faulty": 1}}
    before = nats(model)
    federate(model, Text(), options=options, dealing=DEALING,
             setting=Setting(rounds=4, liars=1, attack="opposite", factor=20.0))
    assert nats(model) < before


def test_a_model_that_learnt_nothing_is_left_as_it_was(model):
    before = [parameter.clone() for parameter in model.eval().parameters()]
    options = {"aggregation": {"rule": "krum", "faulty": 40}, "steps": 1}
    with pytest.raises(MixwellError, match="answers came where 40 may be lies; expected at least 83"):
        federate(model, Text(), options=options, dealing=DEALING, setting=Setting(rounds=1))
    assert not model.training and all(map(torch.equal, before, model.parameters()))


def test_refusals(model):
    with pytest.raises(MixwellError, match=r"fed_gmm is no method for a whole language model; expected one of fed_avg"):
        federate(model, Text(), "fed_gmm")
    with pytest.raises(MixwellError, match=r"unknown key 'stps'. Did you mean 'steps'"):
        federate(model, Text(), options={"stps": 3})
    with pytest.raises(MixwellError, match="downs holds 201 training tokens; expected more than seq_len=300"):
        windows(Text(), 300)
    for options, message in (({"clients": 0}, "clients is 0"), ({"alpha": 0.0}, "alpha is 0.0"),
                             ({"seq_len": 0}, "seq_len is 0"), ({"max_windows": 0}, "max_windows is 0")):
        with pytest.raises(ValueError, match=message):
            Dealing(**options)
