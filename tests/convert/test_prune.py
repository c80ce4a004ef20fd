"""Pruning: each criterion against a loop over tokens, what stays untouched, one expert left as a dense layer."""

import dataclasses

import pytest
import torch

from mixwell.convert._usage import CRITERIA, usage
from mixwell.convert.prune import Config, kept_experts, promises, prune
from mixwell.core.checkpoint import channel_mixers, with_channel_mixers
from mixwell.core.errors import MixwellError
from tests.contracts._conversions import block, calibration, output, sparse_model, spec, whole

GATE, DOWN, ROUTER = (f"layers.1.channel_mixer.{n}" for n in ("gate_up_proj", "down_proj", "router.weight"))


def by_hand(checkpoint, text):
    """Every criterion's worth of the second layer's experts, token by token."""
    sums = {name: torch.zeros(4, dtype=torch.float64) for name in ("c", "g", "n", "gn", "s")}
    gate_up, down = checkpoint.tensors[GATE], checkpoint.tensors[DOWN]
    for seen in text.seen(checkpoint):
        for x in seen[1].x_TD:
            p = torch.softmax(checkpoint.tensors[ROUTER].double() @ x.double(), 0)
            sums["s"] += p
            first, second = p.topk(2).indices.tolist()
            for e in (first, second):
                norm = block(gate_up[e], down[e], x).norm()
                g = p[e] / (p[first] + p[second])
                for name, value in {"c": 1, "g": g, "n": norm, "gn": g * norm}.items():
                    sums[name][e] += value
    c = sums["c"].clamp_min(1)
    return {"frequency": sums["c"], "weighted_frequency": sums["g"], "output_sum": sums["n"], "score": sums["s"],
            "output_mean": sums["n"] / c, "weighted_output": sums["gn"], "reap": sums["gn"] / c}


def test_worth_against_a_loop_over_tokens(generator):
    checkpoint, text = sparse_model(generator), calibration(rows=3)
    found = usage(checkpoint, [1], text)[1]
    wanted = by_hand(checkpoint, text)
    assert wanted.keys() == CRITERIA.keys()
    for name, worth in wanted.items():
        torch.testing.assert_close(CRITERIA[name](found), worth, rtol=1e-4, atol=1e-5)
    assert abs(found.mean_mass - 1) < 1e-6 and abs(float(found.share_E.sum()) - 1) < 1e-9


@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_least_worthy_go_and_the_others_stay_as_they_are(generator, criterion):
    checkpoint, text = sparse_model(generator), calibration()
    after = prune(checkpoint, Config(criterion=criterion), generator, text)
    worth = CRITERIA[criterion](usage(checkpoint, [1], text)[1])
    kept = worth.topk(2).indices.sort().values
    for name in (GATE, DOWN, ROUTER):
        assert torch.equal(after.tensors[name], checkpoint.tensors[name][kept])
    assert spec(after, 1)["num_experts"] == 2 and spec(after, 1)["router"]["k"] == 2
    assert promises(Config()) == {}


def test_a_rare_loud_expert_survives_by_reap_and_not_by_frequency(generator):
    """The mean over routed tokens, not over all: what sets REAP apart."""
    checkpoint, text = sparse_model(generator), calibration(rows=8)
    rarest = int(usage(checkpoint, [1], text)[1].count_E.argmin())
    loud = checkpoint.tensors[DOWN].clone()
    loud[rarest] *= 1000
    checkpoint = checkpoint.derive(tensors={**checkpoint.tensors, DOWN: loud})
    assert usage(checkpoint, [1], text)[1].count_E[rarest] > 0
    quiet = prune(checkpoint, Config(criterion="frequency", layers=(1,)), generator, text).tensors[DOWN]
    kept = prune(checkpoint, Config(criterion="reap", layers=(1,)), generator, text).tensors[DOWN]
    assert any(torch.equal(loud[rarest], e) for e in kept) and not any(torch.equal(loud[rarest], e) for e in quiet)


def test_one_expert_left_is_a_dense_layer_of_its_own_output(generator):
    checkpoint, text = sparse_model(generator), calibration()
    after = prune(checkpoint, Config(keep=1, criterion="frequency"), generator, text)
    best = int(usage(checkpoint, [1], text)[1].count_E.argmax())
    x = torch.randn(4, 6, generator=generator)
    wanted = [block(checkpoint.tensors[GATE][best], checkpoint.tensors[DOWN][best], row) for row in x]
    assert spec(after, 1) == {"method": "experts.layers.swiglu", "hidden_dim": 4}
    torch.testing.assert_close(output(after, 1, x), torch.stack(wanted), rtol=1e-4, atol=1e-4)
    assert after.lineage[-1]["account"]["dropped"] == {
        f"layers.{i}.channel_mixer.router.weight": "a dense block chooses nothing" for i in range(2)}


def shared_model(generator, **options):
    """Mixtures with a shared expert."""
    checkpoint = sparse_model(generator)
    specs = [dict(s) | {"shared_experts": 1, **options} for s in channel_mixers(checkpoint.arch)]
    tensors = {}
    for i in range(2):
        tensors[f"layers.{i}.channel_mixer.shared_gate_up_proj"] = torch.randn(8, 6, generator=generator)
        tensors[f"layers.{i}.channel_mixer.shared_down_proj"] = torch.randn(6, 4, generator=generator)
        if options:
            tensors[f"layers.{i}.channel_mixer.shared_gate"] = torch.randn(1, 6, generator=generator)
    arch = with_channel_mixers(checkpoint.arch, specs)
    return whole(dataclasses.replace(checkpoint, arch=arch, tensors={**checkpoint.tensors, **tensors}))


def test_shared_experts_join_the_one_that_is_left(generator):
    checkpoint, text = shared_model(generator), calibration()
    after = prune(checkpoint, Config(keep=1), generator, text)
    best = int(CRITERIA["reap"](usage(checkpoint, [1], text)[1]).argmax())
    x = torch.randn(3, 6, generator=generator)
    shared = [checkpoint.tensors[f"layers.1.channel_mixer.shared_{n}"] for n in ("gate_up_proj", "down_proj")]
    wanted = [block(checkpoint.tensors[GATE][best], checkpoint.tensors[DOWN][best], row) + block(*shared, row)
              for row in x]
    torch.testing.assert_close(output(after, 1, x), torch.stack(wanted), rtol=1e-4, atol=1e-4)
    with pytest.raises(MixwellError, match="gates its shared experts"):
        prune(shared_model(generator, shared_gate=True), Config(keep=1), generator, text)


@pytest.mark.parametrize("options, kept", [
    ({}, [0, 2]), ({"share": 0.25}, [0, 1, 2]), ({"keep": 3}, [0, 1, 2]), ({"keep": 4}, [0, 1, 2, 3]),
    ({"beta": 0.5}, [0, 1, 2]), ({"beta": 1.0}, [0, 2]), ({"keep": 1}, [0]),
])
def test_how_many_stay(options, kept):
    worth = torch.tensor([4.0, 1.6, 4.0, 0.4])
    assert kept_experts(worth, Config(**options), 2).tolist() == kept


def test_refuses_what_it_cannot_do(generator):
    checkpoint, text = sparse_model(generator), calibration()
    with pytest.raises(MixwellError, match="2 of 4 experts would stay, and a token visits 3"):
        kept_experts(torch.ones(4), Config(keep=2), 3)
    with pytest.raises(MixwellError, match="no mixture of experts"):
        prune(prune(checkpoint, Config(keep=1), generator, text), Config(), generator, text)
    grouped = with_channel_mixers(checkpoint.arch, [
        dict(s) | {"router": {"method": "top_k", "k": 2, "groups": 2, "groups_kept": 1}}
        for s in channel_mixers(checkpoint.arch)])
    with pytest.raises(MixwellError, match="chooses among groups"):
        prune(checkpoint.derive(arch=grouped), Config(share=0.25), generator, text)
    cosine = whole(dataclasses.replace(checkpoint, arch=with_channel_mixers(checkpoint.arch, [
        dict(s) | {"router": {"method": "cosine", "k": 2}} for s in channel_mixers(checkpoint.arch)]),
        tensors={n: t for n, t in checkpoint.tensors.items() if "router" not in n}))
    with pytest.raises(MixwellError, match="one row for each of 4 experts"):
        prune(cosine, Config(), generator, text)
    for options in ({"share": 1.0}, {"keep": 0}, {"beta": 1.5}, {"share": 0.5, "keep": 2}, {"share": 0.0}):
        with pytest.raises(ValueError, match=r"expected|give one"):
            Config(**options)
