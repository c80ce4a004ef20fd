"""PCB-Merging against loops over a flat model in float64, whole models, ties to single tasks."""

import math

import pytest
import torch

from mixwell.merge._quantiles import smallest
from mixwell.merge.merging import Model, merged
from mixwell.merge.pcb import Config, pcb


def dumb(tensors, base, ratio, scale):
    deltas = [[float(v) for v in (t - base).double().flatten()] for t in tensors]
    count, length = len(deltas), base.numel()
    sums = [sum(delta[k] for delta in deltas) for k in range(length)]
    totals, divisors = [0.0] * length, [0.0] * length
    for delta in deltas:
        ordered = sorted(abs(v) for v in delta)
        cut = int(1e-4 * (length - 1))
        low, high = ordered[cut], ordered[length - 1 - cut]
        sizes = [min(max(abs(v), low), high) for v in delta]
        scores = [math.exp(count * ((c - low) / (high - low)) ** 2) * math.tanh(v * total)
                  for c, v, total in zip(sizes, delta, sums)]
        floor = sorted(scores)[int((1 - ratio) * (length - 1))]
        top = max(scores)
        for k, (c, v, s) in enumerate(zip(sizes, delta, scores)):
            share = (max(s, floor) - floor) / (top - floor)
            totals[k] += share * c * math.copysign(1, v)
            divisors[k] += share
    moved = [scale * t / max(d, 1e-12) for t, d in zip(totals, divisors)]
    return base + torch.tensor(moved).view(base.shape)


@pytest.mark.parametrize("ratio", [0.1, 0.5])
def test_numbers_are_those_of_a_loop(ratio, generator):
    base = torch.randn(6, 7, generator=generator)
    tensors = [base + torch.randn(6, 7, generator=generator) for _ in range(3)]
    found = pcb(tensors, base, Config(ratio=ratio, scale=0.9), generator)
    torch.testing.assert_close(found, dumb(tensors, base, ratio, 0.9), rtol=1e-4, atol=1e-4)


def test_parameters_compete_over_the_whole_model(generator):
    bases = {"small": torch.zeros(4, 4), "large": torch.zeros(4, 4)}
    own = {"small": 0.01 * torch.randn(4, 4, generator=generator), "large": torch.randn(4, 4, generator=generator)}
    found = merged("pcb", [Model(own, "m")], Model(bases, "b"), Config(ratio=0.4))
    assert not found["small"].any() and int(found["large"].count_nonzero()) == 13  # behind rank 18 of 0 to 31
    flat = torch.cat([tensor.flatten() for tensor in own.values()])
    alone = pcb([flat], torch.zeros_like(flat), Config(ratio=0.4), generator)
    torch.testing.assert_close(torch.cat([found[name].flatten() for name in own]), alone)


def test_ranks_of_a_stream_are_those_of_sorting(generator):
    numbers = torch.cat([torch.randn(5000, generator=generator), torch.zeros(7), torch.full((3,), -1e-30)])
    ranks = [0, 1, 2499, 2500, 2506, 5009]
    found = smallest(lambda: iter(numbers.split(999)), ranks)
    assert found == [float(numbers.sort().values[rank]) for rank in ranks]
    with pytest.raises(ValueError, match="ratio is 3"):
        Config(ratio=3)
