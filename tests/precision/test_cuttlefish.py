"""Cuttlefish: stable ranks by hand, the moment against a plain loop, ranks of each map, what stays whole."""

import math

import numpy as np
import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.core.registry import find
from mixwell.lm.conversion import convert
from mixwell.lm.model import LanguageModel
from mixwell.precision.cuttlefish import (
    Config,
    StableRanks,
    cuttlefish,
    example,
    promises,
    settled_rank,
    stable_rank,
    start_ratio,
)
from tests.contracts._conversions import dense_model, sparse_model
from tests.contracts._tools import fresh

ENTRY = find("precision.cuttlefish")


def with_ranks(checkpoint, rank):
    """The model with every map cut to so many directions of one size."""
    tensors = dict(checkpoint.tensors)
    for name, value in tensors.items():
        if name.endswith(("gate_up_proj", "down_proj")):
            halves = value.chunk(2, dim=-2) if "gate_up" in name else (value,)
            parts = []
            for half in halves:
                U, _, Vh = torch.linalg.svd(half, full_matrices=False)
                parts.append(U[..., :rank] @ Vh[..., :rank, :])
            tensors[name] = torch.cat(parts, -2)
    return checkpoint.derive(tensors=tensors)


def test_stable_rank_by_hand(generator):
    W = torch.diag(torch.tensor([2.0, 1.0, 1.0]))
    assert stable_rank(W) == pytest.approx((4 + 1 + 1) / 4) and stable_rank(torch.zeros(2, 3)) == 0
    normal = torch.randn(200, 300, generator=generator)
    assert start_ratio(200, 300) * stable_rank(normal) == pytest.approx(200, rel=0.05)  # full at the start


def test_ranks_are_the_scaled_stable_ones_and_at_no_gain_the_map_stays(generator):
    U, S, Vh = torch.linalg.svd(torch.randn(40, 60, generator=generator), full_matrices=False)
    falling = U * torch.tensor([0.7**i for i in range(40)]) @ Vh
    s = sum(0.49**i for i in range(40))
    assert settled_rank(falling, Config()) == math.ceil(s * start_ratio(40, 60))
    assert settled_rank(falling, Config(scaled=False)) == math.ceil(s)
    assert settled_rank(falling, Config(least=0.5)) == 20
    assert settled_rank(U @ Vh, Config()) == 0  # of full rank: 40 (40 + 60) > 40 * 60
    assert S.shape == (40,)


@pytest.mark.parametrize("make", [dense_model, sparse_model])
def test_a_model_of_low_rank_comes_out_the_same_and_smaller(make):
    """The paper's promise: at its settled ranks a model computes what it did, with no rank asked for."""
    before = with_ranks(make(fresh(), 24) if make is dense_model else make(fresh()), 1)
    after = convert(ENTRY, before, Config(scaled=False, decay=0.1), fresh(1))
    kept, model = (LanguageModel.from_checkpoint(c).eval() for c in (before, after))
    tokens = torch.randint(0, 13, (2, 9), generator=fresh(3))
    torch.testing.assert_close(model(tokens).logits_BTV, kept(tokens).logits_BTV, rtol=1e-3, atol=1e-4)
    assert model.num_parameters() < kept.num_parameters()
    matrices = model.layers[0].channel_mixer.matrices()
    assert {m.config.rank for m in matrices} == {1} and {m.config.decay for m in matrices} == {0.1}
    assert after.lineage[-1]["ranks"]["0"] == [1] * len(matrices)


def test_each_map_has_a_rank_of_its_own():
    before = dense_model(fresh(), 24)
    tensors = dict(before.tensors)
    name = "layers.0.channel_mixer.gate_up_proj"
    weight = tensors[name].clone()
    weight[:24] = torch.outer(weight[:24, 0], weight[0])
    after = convert(ENTRY, before.derive(tensors={**tensors, name: weight}), Config(layers=(0,), least=0.1), fresh(1))
    gate, up, out = after.arch["channel_mixer"][0]["structure"]["ranks"]
    assert gate in (1, 2, 3) and up == out == 0
    assert after.tensors["layers.0.channel_mixer.experts.0.up.weight"].shape == (24, 6)


def by_hand(series, window=15):
    """The epoch (from 1) at which all maps have settled, None before."""
    settled, share = {}, 2 / (window + 1)
    means = {name: [values[0]] for name, values in series.items()}
    for epoch in range(len(next(iter(series.values())))):
        for name, values in series.items():
            means[name].append(means[name][-1] + share * (values[epoch] - means[name][-1]))
        for name, past in means.items():
            left = len(series) - len(settled)
            most = {1: 0.5, 2: 0.25}.get(left, 0.1)
            if name not in settled and len(past) >= window and np.abs(np.gradient(past)[-11:]).mean() <= most:
                settled[name] = epoch
        if len(settled) == len(series):
            return epoch + 1
    return None


def test_the_moment_is_that_of_a_plain_loop():
    series = {"a": [20 - 0.5 * min(e, 24) for e in range(60)], "b": [30 * 0.9**e + 3 for e in range(60)],
              "c": [9.0] * 60, "d": [40 - 0.3 * e for e in range(60)]}
    watch, moment = StableRanks(), None
    for epoch in range(60):
        weights = {}
        for name, values in series.items():
            tail = torch.full((64,), ((values[epoch] - 1) / 63) ** 0.5)
            weights[name] = torch.diag(torch.cat([torch.ones(1), tail[1:], tail[:1]])[:64])
        if watch.update(weights) and moment is None:
            moment = epoch + 1
    assert moment == by_hand(series) and 15 < moment < 60
    with pytest.raises(ValueError, match="window is 1"):
        StableRanks(window=1)


def test_refusals():
    full = with_ranks(dense_model(fresh()), 6)
    with pytest.raises(MixwellError, match="no map's rank has fallen so far"):
        convert(ENTRY, full, Config(), fresh(1))
    with pytest.raises(ValueError, match="least is 2; expected at most 1"):
        Config(least=2)
    with pytest.raises(ValueError, match="decay is -1"):
        Config(decay=-1)
    values = example(fresh())
    assert cuttlefish(**values).arch["channel_mixer"]["method"] == "experts.layers.structured"
    assert promises(Config(max_kl_nats=0.3)) == {"kl_nats": 0.3}
