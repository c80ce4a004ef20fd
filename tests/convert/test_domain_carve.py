"""Carving by domain: masks and votes against loops, a token visits its domain's units, refusals."""

import math

import pytest
import torch

from mixwell.convert.domain_carve import Config, Counts, domain_carve, masks, needs, promises
from mixwell.core.errors import MixwellError
from mixwell.core.routing import Context
from tests.contracts._conversions import block, calibration, dense_model, mixer, silu, spec

GATE, DOWN = "layers.1.channel_mixer.gate_up_proj", "layers.1.channel_mixer.down_proj"


def test_masks_are_each_domains_best_units_less_what_all_share():
    score = torch.tensor([[9.0, 8, 7, 1, 2, 3], [9.0, 1, 7, 8, 2, 3], [9.0, 1, 7, 2, 3, 8]])
    found = masks(score, 3)
    assert found.common.tolist() == [0, 2] and [own.tolist() for own in found.own] == [[1], [3], [5]]
    same = masks(torch.tensor([[3.0, 2, 1]] * 2), 2)
    assert same.common.tolist() == [0] and [own.tolist() for own in same.own] == [[1], [1]]


def test_scores_and_votes_against_a_loop(generator):
    checkpoint, text = dense_model(generator), calibration(rows=3)
    found = Counts(checkpoint, [1], text)
    total, tokens = torch.zeros(2, 8, dtype=torch.float64), torch.zeros(13, 2)
    for seen in text.seen(checkpoint):
        for x, token, d in zip(seen[1].x_TD.double(), seen[1].ids_T.tolist(), seen[1].labels_T.tolist()):
            tokens[token, d] += 1
            for i in range(8):
                g, u = (checkpoint.tensors[GATE][r].double() @ x for r in (i, 8 + i))
                total[d, i] += (silu(g) * u).abs()
    torch.testing.assert_close(found.mean(1), total / tokens.double().sum(0)[:, None], rtol=1e-4, atol=1e-5)
    votes = found.votes()
    for v in range(13):
        logs = [math.log((tokens[v, d].item() + 1) / (tokens[:, d].sum().item() + 13)) for d in range(2)]
        torch.testing.assert_close(votes[v], torch.tensor([logs[0] - sum(logs) / 2, logs[1] - sum(logs) / 2]))


def test_a_token_visits_the_units_of_the_domain_that_is_guessed(generator):
    checkpoint, text = dense_model(generator), calibration()
    after = domain_carve(checkpoint, Config(reach=3, decay=0.7), generator, text)
    found = masks(Counts(checkpoint, [1], text).mean(1), 4)
    ids, x = torch.randint(0, 13, (6,), generator=generator), torch.randn(6, 6, generator=generator)
    context = Context(token_ids_T=ids, batch_shape=(1, 6))
    layer = mixer(after, 1)
    mixed = layer(x.double(), context)
    gate_up, down = checkpoint.tensors[GATE], checkpoint.tensors[DOWN]
    for t in range(6):
        units = [*found.common.tolist(), *found.own[mixed.routing.indices_TK[t, 0]].tolist()]
        assert len(units) == 4
        wanted = block(gate_up[[*units, *(8 + i for i in units)]], down[:, units], x[t])
        torch.testing.assert_close(mixed.y_TD[t], wanted, rtol=1e-4, atol=1e-4)
    assert torch.equal(after.tensors["layers.0.channel_mixer.router.votes_VE"],
                       after.tensors["layers.1.channel_mixer.router.votes_VE"])
    assert spec(after, 1)["router"]["reach"] == 3 and promises(Config()) == {}
    assert needs(Config(tokens=5)).tokens == 5


def test_some_layers_only_and_any_share(generator):
    after = domain_carve(dense_model(generator), Config(layers=(1,), share=0.75, tokens=9), generator, calibration())
    assert spec(after, 0)["method"] == "experts.layers.swiglu"
    assert spec(after, 1)["hidden_dim"] + spec(after, 1).get("shared_hidden_dim", 0) == 6


def test_refuses_text_of_one_domain_and_shares_that_cannot_be(generator):
    with pytest.raises(MixwellError, match="the text has one domain"):
        domain_carve(dense_model(generator), Config(), generator, calibration(domains=1))
    for options in ({"share": 1.0}, {"share": 0.0}, {"decay": 2.0}, {"reach": 0}):
        with pytest.raises(ValueError, match="expected"):
            Config(**options)
