"""The loss of averaged models of partitions goes with that of a model trained on their union.

Paper: Scalable Data Ablation Approximations for Language Models through Modular Training and Merging.
Tried: digits in five partitions of two classes each, a perceptron trained on a tenth of all, then 60 steps on each
partition; loss on held-out digits drawn by shares of the classes at random, of ten pairs and ten triples; correlation
with models trained on the union for as many steps a partition. Baseline: the mean of the members' losses. Against it: a
correlation that is no higher, or one below 0.5.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import numpy as np
import torch
from torch import nn

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Comparison
from mixwell.claims.data._learning import Labelled, digits, loss, perceptron, step
from mixwell.core.rng import generator
from mixwell.data.partition_merge import Config, partition_merge, subsets

CLAIM = Claim("Averages of models rank data as training on it does.", "correlation", lower_is_better=False,
              provided=(Comparison(baseline=0.5, lower_is_better=False),))
PARTITIONS, STEPS = 5, 60
NAMES = tuple(str(number) for number in range(PARTITIONS))


def trained(start: nn.Module, data: Labelled, steps: int, draws: torch.Generator) -> nn.Module:
    """A copy of the start after so many steps."""
    network = copy.deepcopy(start)
    for _ in range(steps):
        some = torch.randint(len(data.y), (32,), generator=draws)
        step(network, data.rows(some), 0.02)
    return network


def union(data: Labelled, names: Iterable[str]) -> Labelled:
    """The rows of some partitions: classes 2 n and 2 n + 1."""
    numbers = torch.tensor([int(name) for name in names])
    inside = torch.isin(data.y // 2, numbers)
    return Labelled(data.x[inside], data.y[inside])


def tested(test: Labelled, draws: torch.Generator) -> Labelled:
    """Test rows drawn by shares of the classes at random."""
    share = torch.rand(10, generator=draws) ** 2
    rows = torch.multinomial(share[test.y], 1000, replacement=True, generator=draws)
    return test.rows(rows)


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Correlations of both scores with the union's loss."""
    draws = generator(seed, "partitions")
    learned, test = digits(seed)
    judged = tested(test, draws)
    some = torch.arange(len(learned.y) // 10)
    start = trained(perceptron(draws), learned.rows(some), 200, draws)
    branches = {name: trained(start, union(learned, name), STEPS, draws) for name in NAMES}
    states = {name: network.state_dict() for name, network in branches.items()}
    alone = {name: loss(network, judged) for name, network in branches.items()}
    averaged, mean, true = [], [], []
    for names in subsets(NAMES, 2, 3):
        merged = copy.deepcopy(start)
        merged.load_state_dict(partition_merge(states, Config(partitions=names)))
        averaged.append(loss(merged, judged))
        members = [alone[name] for name in names]
        mean.append(np.mean(members))
        whole = trained(start, union(learned, names), STEPS * len(names), draws)
        true.append(loss(whole, judged))
    scores = np.corrcoef([true, averaged, mean])
    return {"method": float(scores[0, 1]), "baseline": float(scores[0, 2])}
