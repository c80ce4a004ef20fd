"""A step is predicted as it is made: bytes as the wires count them, pipelines by their ticks, sums by hand."""

import dataclasses
import math
from collections import Counter

import pytest
import torch

from mixwell.lm.training.loop import train
from mixwell.parallel.cluster import Cluster, Device, Link
from mixwell.parallel.pipeline import idle_share
from mixwell.parallel.simulate import Simulation, estimate, fits, groups
from mixwell.parallel.team import BUCKET_BYTES
from mixwell.parallel.wire import in_threads
from mixwell.parallel.workload import LayerWork, Spread, Work, misfit
from mixwell.run.workload import work_of
from tests.lm.tiny import DENSE, tiny_config, tiny_data, tiny_model
from tests.parallel.test_team import EXPERTS, team_of

DEVICE = Device(flops_per_s=1e12, memory_bytes=1e9, memory_bytes_per_s=1e11, efficiency=0.5, layer_s=1e-5)
INSIDE, BETWEEN = Link(latency_s=1e-5, bytes_per_s=1e10), Link(latency_s=1e-4, bytes_per_s=1e9)
CLUSTER = Cluster(device=DEVICE, inside=INSIDE, between=BETWEEN, devices=4, nodes=2)
PLAIN = LayerWork(dense_flops=2e6, dense_weights=10**6, kept=5000.0)
WORK = Work(layers=(PLAIN,) * 4, dim=256, heads=8, kv_heads=4, head_dim=32, end_weights=10**6, head_flops=0.0,
            vocab_size=1000, parameters=30, rows=16, length=128)
MIXED = dataclasses.replace(
    WORK, layers=(LayerWork(dense_flops=2e6, dense_weights=10**6, kept=5000.0, expert_flops=4e6,
                            expert_weights=8 * 10**6, experts=8, chosen=2.0, balanced=True),) * 4)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data(tmp_path_factory.mktemp("tokens") / "tokens")


@pytest.mark.parametrize("size, expert, options", [
    (2, 1, {"accumulate": 2}), (4, 2, {}), (2, 2, {"checkpointing": True})])
def test_bytes_are_those_that_wires_count_in_training(data, tmp_path, size, expert, options):
    config = tiny_config(dtype="fp32", save_every=0, tokens=7 * 32, **options)
    model = tiny_model(layers=(DENSE, EXPERTS))

    def work(wire):
        torch.set_num_threads(1)
        team = team_of(wire, expert)
        seen = []

        def note(*_):
            seen.append(sum((one.sent for one in (team.world, team.experts, team.copies)), Counter()))

        train(tiny_model(layers=(DENSE, EXPERTS)), data, config, tmp_path, team=team, progress=note)
        return {kind: (seen[-1][kind] - seen[0][kind]) / (len(seen) - 1) for kind in seen[-1]}

    counted = in_threads(size, work)
    told = estimate(work_of(model.to_checkpoint().arch, config),
                    Spread(data=size // expert, expert=expert, micro_batches=config.accumulate), CLUSTER).sent_bytes
    assert told.keys() == counted[0].keys()
    for kind, nbytes in told.items():
        mean = sum(own[kind] for own in counted) / size
        assert nbytes == pytest.approx(mean, rel=0.05 if kind == "exchange" else 1e-3), kind


def test_a_step_of_copies_by_hand():
    found = estimate(WORK, Spread(data=4), CLUSTER)
    tokens = 16 * 128 / 4
    computing = 3 * (4 * tokens * 2e6 / 5e11 + 4e-5) + 36 * 5e6 / 1e11
    sums = [8.0, 16.0, 4.0 * 30, 2e7]
    sending = sum(6 * 1e-5 + 1.5 * nbytes / 1e10 for nbytes in sums) + 2 * (3e-5 + 3 * 8 / 1e10)
    assert found.computing_s == pytest.approx(computing) and found.sending_s == pytest.approx(sending)
    assert found.seconds == pytest.approx(computing + sending) and found.idle_s == pytest.approx(0, abs=1e-12)
    assert found.memory_bytes == 16 * 5e6 + 4 * (4 * 5000 * tokens + 2 * 1000 * tokens) + 2 * 2e7
    assert found.sent == pytest.approx(1.5 * sum(sums) + 2 * 3 * 8)


def test_more_gradients_than_a_bucket_holds_take_more_calls():
    large = dataclasses.replace(WORK, end_weights=10**8)
    calls = Simulation(large, Spread(data=2), CLUSTER)._update(0).calls
    (summed,) = [call for call in calls if call.nbytes > 10**6]
    assert summed.times == math.ceil(4 * 104e6 / BUCKET_BYTES) and summed.sent == pytest.approx(4 * 104e6)


@pytest.mark.parametrize("micro", [1, 4, 16])
def test_a_pipeline_waits_as_its_ticks_say(micro):
    free = Cluster(device=dataclasses.replace(DEVICE, layer_s=0.0, memory_bytes_per_s=1e30), devices=4,
                   inside=Link(latency_s=0.0, bytes_per_s=1e30))
    found = estimate(dataclasses.replace(WORK, end_weights=0), Spread(pipeline=4, micro_batches=micro), free)
    assert found.idle_s / found.seconds == pytest.approx(idle_share(4, micro))


def test_what_each_layout_spares():
    plain, sharded = (estimate(MIXED, Spread(data=8, sharded=sharded), CLUSTER) for sharded in (False, True))
    assert sharded.memory_bytes < plain.memory_bytes and sharded.sent_bytes["gather"] > plain.sent_bytes["gather"]
    spread = estimate(MIXED, Spread(data=4, expert=2), CLUSTER)
    assert spread.sent_bytes["total"] < plain.sent_bytes["total"] and spread.sent_bytes["exchange"] > 0
    sliced = estimate(MIXED, Spread(data=2, tensor=4), CLUSTER)
    assert sliced.memory_bytes < plain.memory_bytes
    both = estimate(MIXED, Spread(expert=4, tensor=2), CLUSTER)
    assert both.sent_bytes["gather"] > spread.sent_bytes["gather"]
    cut = Spread(sequence=2)
    ring, heads = (estimate(dataclasses.replace(MIXED, kv_heads=count), cut, CLUSTER) for count in (1, 4))
    assert "pass" in ring.sent_bytes and "exchange" in heads.sent_bytes and "pass" not in heads.sent_bytes
    again = estimate(dataclasses.replace(MIXED, checkpointing=True), Spread(data=8), CLUSTER)
    assert again.memory_bytes < plain.memory_bytes and again.computing_s > plain.computing_s


def test_groups_that_no_node_holds_go_between():
    found = groups(Spread(tensor=2, expert=2, data=2), CLUSTER)
    assert (found.tensor.link, found.expert.link, found.copies.link) == (INSIDE, INSIDE, BETWEEN)
    assert CLUSTER.link(3) is BETWEEN, "blocks of three do not lie within nodes of four"
    assert found.same.size == 4 and found.copies.size == 2


def test_what_cannot_be():
    cases = {Spread(data=3): "16 rows in 3 parts", Spread(expert=2): "no experts to spread",
             Spread(tensor=8): "4 heads of keys over 8", Spread(sequence=128): "128 tokens in 256 pieces",
             Spread(pipeline=8): "4 layers in 8 stages"}
    for spread, words in cases.items():
        assert misfit(WORK, spread).startswith(words)
    assert misfit(MIXED, Spread(expert=16)).startswith("(8,) experts over 16")
    assert misfit(dataclasses.replace(WORK, accumulate=2), Spread(data=2)) == "2 micro-batches"
    assert not misfit(MIXED, Spread(data=2, expert=2))
    odd = dataclasses.replace(WORK, length=127)
    assert not misfit(odd, Spread(data=2)) and misfit(odd, Spread(sequence=2)) == "127 tokens in 4 pieces"
    assert fits(estimate(WORK, Spread(data=4), CLUSTER), DEVICE)
    with pytest.raises(ValueError, match="2 nodes and no link between them"):
        Cluster(device=DEVICE, inside=INSIDE, devices=4, nodes=2)
    with pytest.raises(ValueError, match=r"efficiency is 1.5; expected a share"):
        dataclasses.replace(DEVICE, efficiency=1.5)
    with pytest.raises(ValueError, match=r"latency_s is nan"):
        Link(latency_s=math.nan, bytes_per_s=1.0)
