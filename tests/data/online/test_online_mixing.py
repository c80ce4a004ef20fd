"""Online data mixing against a loop, what it does to a noise domain, and its way back to even weights."""

import math

import numpy as np
import pytest

from mixwell.data.online import online_mixing
from mixwell.data.rule import Batch, Online


def loop(batches, domains, keep, warmup):
    reward, weight, before = [0.0] * domains, [1 / domains] * domains, 1 / domains
    for t, batch in enumerate(batches, 1):
        for i in range(domains):
            own = [loss for d, loss in zip(batch.domain_T, batch.loss_T) if d == i]
            if own:
                reward[i] = keep * reward[i] + (1 - keep) * sum(own) / len(own) / weight[i]
        now = min(1 / domains, math.sqrt(math.log(domains) / (domains * t)))
        if t > warmup:
            raised = [math.exp(before * r) for r in reward]
            weight = [(1 - domains * now) * x / sum(raised) + now for x in raised]
        before = now
    return weight


@pytest.mark.parametrize("warmup", [0, 12])
def test_agrees_with_a_loop(warmup):
    batches = online_mixing.example_batches(np.random.default_rng(1), domains=3)
    online = Online(online_mixing.OnlineMixing(4, online_mixing.Config(memory=0.7, warmup=warmup)))
    for place, batch in enumerate(batches):
        online.update(batch)
        assert online.weights_D == pytest.approx(loop(batches[: place + 1], 4, 0.7, warmup), rel=1e-10)


def test_noise_draws_weight_and_time_takes_it_back():
    """The figures of the card, with one domain a batch."""
    rng = np.random.default_rng(0)
    losses = np.array([1.5, 2.0, 2.5, 3.0, 3.5, 6.0])
    online = Online(online_mixing.OnlineMixing(6))
    found = {}
    for t in range(1, 5001):
        place = rng.choice(6, p=online.weights_D, size=1)
        online.update(Batch(place, losses[place]))
        found[t] = online.weights_D
    assert found[10] == pytest.approx(np.full(6, 1 / 6))  # even until t = D ln D
    assert np.mean([found[t][5] for t in range(90, 111)]) == pytest.approx(0.24, abs=0.015)
    assert np.mean([found[t][5] for t in range(950, 1051)]) == pytest.approx(0.20, abs=0.01)
    assert 1 / 6 < found[5000][5] < found[1000][5]


def test_refusals():
    for values in ({"memory": 1.0}, {"warmup": -1}):
        with pytest.raises(ValueError, match="expected"):
            online_mixing.Config(**values)
