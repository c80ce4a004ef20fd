"""All layouts are tried, the fastest that fits comes first, and a line says why."""

import dataclasses
import itertools

import pytest

from mixwell.core.errors import MixwellError
from mixwell.parallel.cluster import Link
from mixwell.parallel.search import layouts, reason, search, trainable
from mixwell.parallel.simulate import estimate
from mixwell.parallel.workload import Spread, misfit
from tests.parallel.test_simulate import CLUSTER, DEVICE, MIXED, WORK


def test_every_layout_that_fits_the_work_is_tried():
    found = list(layouts(MIXED, 8))
    assert len(set(found)) == len(found) and all(one.processes == 8 for one in found)
    names = ("data", "expert", "tensor", "sequence", "pipeline")
    every = [Spread(**dict(zip(names, sizes)), micro_batches=4 if sizes[-1] > 1 else 1)
             for sizes in itertools.product((1, 2, 4, 8), repeat=5)]
    assert {one for one in every if one.processes == 8 and not misfit(MIXED, one)} <= set(found)


def test_the_fastest_that_fits_is_first():
    tried = search(MIXED, CLUSTER)
    fitting = [one for one in tried if one.fits]
    assert tried[0].found.seconds == min(one.found.seconds for one in fitting)
    assert tried[0].found == estimate(MIXED, tried[0].spread, CLUSTER)
    small = dataclasses.replace(CLUSTER, device=dataclasses.replace(DEVICE, memory_bytes=2e8))
    tried = search(MIXED, small)
    assert all(one.found.memory_bytes <= 2e8 for one in tried if one.fits) and not tried[-1].fits
    best = trainable(search(MIXED, CLUSTER))
    assert best is not None and best.spread.trains


def test_reasons():
    slow = dataclasses.replace(CLUSTER, between=Link(latency_s=1e-4, bytes_per_s=1e7))
    told = reason(search(MIXED, slow), slow)
    assert "less time than data=8" in told and "by less sending" in told
    small = dataclasses.replace(CLUSTER, device=dataclasses.replace(DEVICE, memory_bytes=3e8))
    assert "data=8 would need" in reason(search(MIXED, small), small)
    none = dataclasses.replace(CLUSTER, device=dataclasses.replace(DEVICE, memory_bytes=1e6))
    assert reason(search(MIXED, none), none).startswith("no layout fits: the smallest, ")
    assert trainable(search(MIXED, none)) is None
    one = dataclasses.replace(WORK, rows=1, kv_heads=1, layers=WORK.layers[:1], length=2)
    single = dataclasses.replace(CLUSTER, devices=1, nodes=1)
    assert "is the only layout" in reason(search(one, single), single)
    device = dataclasses.replace(DEVICE, memory_bytes_per_s=1e30)
    fast = dataclasses.replace(CLUSTER, device=device, nodes=1, between=None,
                               inside=Link(latency_s=0.0, bytes_per_s=1e30))
    assert "take equally long" in reason(search(WORK, fast), fast)


def test_no_layout_at_all():
    odd = dataclasses.replace(CLUSTER, devices=7, nodes=1)
    with pytest.raises(MixwellError, match="no layout of 7 processes holds this training: 16 rows in 7 parts"):
        search(WORK, odd)
    alone = dataclasses.replace(WORK, kv_heads=1, layers=WORK.layers[:1], length=2, rows=24, accumulate=4)
    with pytest.raises(MixwellError, match="no layout of 8 processes holds this training: 24 rows in 32 parts"):
        search(alone, CLUSTER)
