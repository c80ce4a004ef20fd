"""Moved parameters keep every bit and send what is missing once; plans wait where devices are shared; the search."""

import dataclasses
import itertools
import math

import pytest
import torch

from mixwell.core.rng import generator
from mixwell.parallel.calls import Call, Layout, Model, Problem, call_s, layouts, makespan, move_s
from mixwell.parallel.cluster import Cluster, Device, Link
from mixwell.parallel.reallocation import Config, best_uniform, example, reallocation, rows_of, search

DEVICE = Device(flops_per_s=2e14, memory_bytes=8e10, memory_bytes_per_s=2e12, efficiency=0.5)
CLUSTER = Cluster(device=DEVICE, inside=Link(latency_s=1e-6, bytes_per_s=1e11), devices=2, nodes=2,
                  between=Link(latency_s=1e-5, bytes_per_s=1e10))
MODELS = {"actor": Model(7e9, 32, 4096), "critic": Model(1e9, 16, 2048)}
CALLS = (Call("generate", "actor", "generate", (), 16, 512, 256),
         Call("judge", "critic", "judge", ("generate",), 16, 512),
         Call("train", "critic", "train", ("judge",), 16, 512))
PROBLEM = Problem(CALLS, MODELS, CLUSTER)
EVERY = [Layout(first, data, tensor, pipeline) for data, tensor, pipeline in itertools.product((1, 2), repeat=3)
         for first in range(0, 8, data * tensor * pipeline)]


@pytest.mark.parametrize("before, after", [*itertools.product(EVERY[::6], EVERY[1::7]), (EVERY[0], EVERY[0])])
def test_every_bit_arrives_and_is_sent_once(before, after):
    weight = torch.randn(5, 3, 2, generator=generator(0)).bfloat16()
    weight[0, 0, 0], weight[1, 0, 0] = -0.0, torch.finfo(torch.bfloat16).tiny / 4
    found = reallocation(weight, before, after, Config())
    assert torch.equal(found.weight_LOD.view(torch.int16), weight.view(torch.int16))
    size = max(before.devices.stop, after.devices.stop)
    missing = [set(rows_of(rank, after, 5, 3).tolist()) - set(rows_of(rank, before, 5, 3).tolist())
               for rank in range(size)]
    assert int(found.sent_W.sum()) == sum(map(len, missing)) * 2 * 2


def test_a_layout_holds_each_row_once_a_copy():
    counts = torch.zeros(15, dtype=torch.int64)
    for rank in range(10):
        counts[rows_of(rank, Layout(2, 2, 2, 2), 5, 3)] += 1
    assert counts.tolist() == [2] * 15 and len(rows_of(0, Layout(2, 2, 2, 2), 5, 3)) == 0


def test_costs_by_hand():
    train, link = CALLS[2], CLUSTER.between
    flops = 6.0 * 1e9 * 16 * 512
    assert call_s(train, Layout(0, 4, 1, 1), PROBLEM) == pytest.approx(flops / 4e14 + 1.5 * 4e9 / link.bytes_per_s)
    assert call_s(train, Layout(0, 1, 1, 4), PROBLEM) == pytest.approx(11 / 8 * flops / 4e14)
    judge = CALLS[1]
    sums = 2 * 16 * (2 * 16 * 512 * 2048 / 1e11 + 2e-6)
    assert call_s(judge, Layout(0, 1, 2, 1), PROBLEM) == pytest.approx(2e9 * 16 * 512 / 2e14 + sums)
    written = 256 * max(2 * 7e9 * 16 / 1e14, 2 * 7e9 / 2e12)
    assert call_s(CALLS[0], Layout(0, 1, 1, 1), PROBLEM) == pytest.approx(2 * 7e9 * 16 * 256 / 1e14 + written)
    small = Problem(CALLS, MODELS, dataclasses.replace(CLUSTER, device=dataclasses.replace(DEVICE, memory_bytes=1e9)))
    assert call_s(CALLS[0], Layout(0, 1, 1, 1), small) == math.inf
    one, two = Layout(0, 1, 1, 1), Layout(2, 1, 2, 1)
    assert move_s(MODELS["critic"], one, one, CLUSTER) == 0
    assert move_s(MODELS["critic"], one, two, CLUSTER) == pytest.approx(1e9 / 1e10 + 1e-5)
    assert move_s(MODELS["critic"], Layout(2, 1, 1, 1), two, CLUSTER) == pytest.approx(1e9 / 1e11 + 1e-6)


def test_blocks_that_share_a_device_wait_for_each_other():
    calls = (Call("a", "actor", "judge", (), 8, 64), Call("b", "critic", "judge", (), 8, 64))
    problem = Problem(calls, MODELS, CLUSTER)
    apart = (Layout(0, 1, 1, 1), Layout(1, 1, 1, 1))
    times = [call_s(call, layout, problem) for call, layout in zip(calls, apart)]
    assert makespan(apart, problem, 1) == pytest.approx(max(times))
    assert makespan((apart[0], apart[0]), problem, 1) == pytest.approx(sum(times))
    assert makespan(apart, problem, 3) == pytest.approx(3 * max(times))


def test_a_model_that_lies_elsewhere_is_moved_and_trained_first():
    places = (Layout(0, 1, 1, 1), Layout(1, 1, 1, 1), Layout(2, 1, 1, 1))
    lasts = [call_s(call, layout, PROBLEM) for call, layout in zip(CALLS, places)]
    moved = move_s(MODELS["critic"], places[1], places[2], CLUSTER)
    assert makespan(places, PROBLEM, 1) == pytest.approx(sum(lasts) + moved)
    second = makespan(places, PROBLEM, 2)
    back = move_s(MODELS["critic"], places[2], places[1], CLUSTER)
    ready = max(sum(lasts) + moved, 2 * lasts[0])
    assert second == pytest.approx(ready + back + lasts[1] + moved + lasts[2])


def test_the_search_is_as_good_as_trying_everything():
    every = itertools.product(*(layouts(call, PROBLEM) for call in CALLS))
    best = min(makespan(plan, PROBLEM, 1) for plan in every)
    found = search(PROBLEM, Config(tries=600, iterations=1, beta=10.0), generator(0))
    assert found.seconds <= 1.05 * best and found.seconds == makespan(found.plan, PROBLEM, 1)
    assert found.seconds <= best_uniform(PROBLEM, 1).seconds
    assert found == search(PROBLEM, Config(tries=600, iterations=1, beta=10.0), generator(0))


def test_options_of_calls():
    for call in CALLS:
        for one in layouts(call, PROBLEM):
            assert one.first % len(one.devices) == 0 and one.devices.stop <= 4 and one.tensor <= 2
    assert Layout(0, 2, 2, 1) in layouts(CALLS[0], PROBLEM)


def test_refusals():
    small = dataclasses.replace(CLUSTER, device=dataclasses.replace(DEVICE, memory_bytes=1e8))
    with pytest.raises(ValueError, match="generate: no layout over 4 devices holds actor's weights"):
        search(Problem(CALLS, MODELS, small), Config())
    with pytest.raises(ValueError, match="tries is 0"):
        Config(tries=0)
    with pytest.raises(ValueError, match="beta is 0"):
        Config(beta=0.0)
    assert torch.isfinite(reallocation(**example(generator(0))).weight_LOD).all()
