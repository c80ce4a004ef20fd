"""Gathering experts: each way against a loop, loudness, copies give themselves, distilling lowers what it should."""

import pytest
import torch

from mixwell.convert._distil import next_nats, soft_nats
from mixwell.convert._usage import usage
from mixwell.convert.densify import Config, densify, gather, promises
from mixwell.convert.upcycle import Config as UpcycleConfig
from mixwell.convert.upcycle import upcycle
from mixwell.core.checkpoint import channel_mixers, with_channel_mixers
from mixwell.core.errors import MixwellError
from tests.contracts._conversions import calibration, dense_model, logits, output, sparse_model, spec

GATE, DOWN = "layers.1.channel_mixer.gate_up_proj", "layers.1.channel_mixer.down_proj"


def experts(generator, count=2, hidden=4):
    return (torch.randn(count, 2 * hidden, 6, generator=generator), torch.randn(count, 6, hidden, generator=generator))


def test_sum_and_means_against_a_loop(generator):
    gate_up, down = experts(generator, 3)
    share = torch.tensor([0.5, 0.3, 0.2])
    for config, factors in ((Config(how="sum"), [1, 1, 1]), (Config(), [1 / 3] * 3), (Config(weights="usage"), share)):
        found = gather((gate_up, down), share, 0.7, config)
        torch.testing.assert_close(found[0], sum(f * w for f, w in zip(factors, gate_up)))
        torch.testing.assert_close(found[1], 0.7 * sum(f * w for f, w in zip(factors, down)))


def test_the_loudest_units_come_with_all_three_vectors(generator):
    gate_up, down = experts(generator)
    found = gather((gate_up, down), torch.ones(2) / 2, 1.0, Config(how="top_k"))
    wanted = []
    for e in range(2):
        loud = [float(gate_up[e, i].norm() * gate_up[e, 4 + i].norm() * down[e, :, i].norm()) for i in range(4)]
        wanted += [(e, i) for i in sorted(range(4), key=lambda i: -loud[i])[:2]]
    for place, (e, i) in enumerate(wanted):
        assert torch.equal(found[0][place], gate_up[e, i]) and torch.equal(found[0][4 + place], gate_up[e, 4 + i])
        assert torch.equal(found[1][:, place], down[e, :, i])


def test_leading_parts_have_the_rank_of_one_expert(generator):
    gate_up, down = experts(generator)
    found = gather((gate_up, down), torch.ones(2) / 2, 1.0, Config(how="svd"))
    for mine, parts in ((found[0][:4], gate_up[:, :4]), (found[0][4:], gate_up[:, 4:]), (found[1], down)):
        wanted = 0
        for part in parts.double():
            u, s, v = torch.linalg.svd(part)
            wanted = wanted + s[0] * torch.outer(u[:, 0], v[0]) + s[1] * torch.outer(u[:, 1], v[1])
        torch.testing.assert_close(mine.double(), wanted, rtol=1e-4, atol=1e-4)


def test_copies_of_one_block_give_it_back(generator):
    dense = dense_model(generator)
    for router in ({"k": 2}, {"k": 1}):
        sparse = upcycle(dense, UpcycleConfig(num_experts=4, router=router), generator)
        again = densify(sparse, Config(), generator, calibration())
        mass = usage(sparse, [1], calibration())[1].mean_mass
        torch.testing.assert_close(again.tensors[GATE], dense.tensors[GATE])
        torch.testing.assert_close(again.tensors[DOWN], mass * dense.tensors[DOWN])
        assert (abs(mass - 1) < 1e-6) == (router["k"] == 2)  # k = 1 does not renormalise
    assert spec(again, 1) == spec(dense, 1) and promises(Config()) == {}


def test_distilling_brings_the_student_closer(generator):
    checkpoint, text = sparse_model(generator), calibration(rows=4)
    tokens = torch.cat(list(text.batches))
    teacher = logits(checkpoint, tokens)
    kl, nats = [], []
    for passes, soft in ((0, 1.0), (12, 1.0), (12, 0.0)):
        student = densify(checkpoint, Config(passes=passes, soft=soft, lr=0.02), generator, text)
        said = logits(student, tokens)
        kl.append(float(soft_nats(said, teacher)))
        nats.append(float(next_nats(said, tokens)))
    assert kl[1] < 0.7 * kl[0] and kl[1] < kl[2] and nats[2] < nats[1]
    assert student.tensors["embed.weight"] is checkpoint.tensors["embed.weight"]


def test_soft_loss_is_kl(generator):
    student, teacher = (torch.randn(2, 3, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    wanted = 0.0
    for b in range(2):
        for s in range(3):
            q, p = torch.softmax(student[b, s], 0), torch.softmax(teacher[b, s], 0)
            wanted += float((p * (p / q).log()).sum()) / 6
    assert abs(float(soft_nats(student, teacher)) - wanted) < 1e-9


def test_some_layers_only(generator):
    after = densify(sparse_model(generator), Config(layers=(0,)), generator, calibration())
    assert [s["method"] for s in channel_mixers(after.arch)] == ["experts.layers.swiglu", "experts.layers.moe"]
    assert output(after, 0, torch.randn(3, 6, generator=generator)).isfinite().all()


def test_refuses_what_it_cannot_do(generator):
    few = sparse_model(generator, 5)
    with pytest.raises(MixwellError, match="5 experts of 4 units"):
        densify(few, Config(how="top_k"), generator, calibration())
    with pytest.raises(MixwellError, match="no mixture of experts for densifying"):
        densify(dense_model(generator), Config(), generator, calibration())
    clamped = with_channel_mixers(few.arch, [dict(s) | {"clamp": 7.0} for s in channel_mixers(few.arch)])
    with pytest.raises(MixwellError, match="clamped activation"):
        densify(few.derive(arch=clamped), Config(), generator, calibration())
    for options in ({"passes": -1}, {"lr": 0.0}, {"soft": 1.5}, {"how": "sum", "weights": "usage"}):
        with pytest.raises(ValueError, match=r"expected|for the mean"):
            Config(**options)
