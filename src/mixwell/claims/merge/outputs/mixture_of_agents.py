"""Self-MoA: six answers of the best model aggregate to a better one than an answer of each of six models.

Paper: Rethinking Mixture-of-Agents: Is Mixing Different Large Language Models Beneficial?
Tried: six small nets of unequal skill on digits, an answer being one draw from what a net says; the aggregator, fitted
on other images, reads six answers in one-hot form; test accuracy with all answers from the best net against one of
each. Against it: an accuracy that is no higher.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.merge._digits import Rows, Tensors, answer, best_of, digits, fresh, right, tuned
from mixwell.core.rng import generator

IMAGES = (40, 80, 150, 250, 500, 900)  # that each net is trained on
CLAIM = Claim("The best model's own answers aggregate best.", "accuracy of the aggregate", lower_is_better=False)


def said(net: Tensors, rows: Rows, draws: torch.Generator) -> Tensor:
    """One answer an image, one-hot [N, 10]."""
    shares = answer(net, rows.x).softmax(-1)
    drawn = torch.multinomial(shares, 1, generator=draws).squeeze(1)
    return F.one_hot(drawn, 10).float()


def aggregated(agents: list[Tensors], fit: Rows, test: Rows, seed: int) -> float:
    """Accuracy of a linear reader of the agents' answers, fitted on other images."""
    draws = generator(seed, "answers")
    read = all_said(agents, fit, draws)
    asked = all_said(agents, test, draws)
    _, width = read.shape
    weight, bias = torch.zeros(10, width), torch.zeros(10)
    rows = Rows(read, fit.y)
    reader = tuned({"w0": weight, "b0": bias}, rows, seed, steps=300, lr=0.05)
    logits = answer(reader, asked)
    return right(logits, test)


def all_said(agents: list[Tensors], rows: Rows, draws: torch.Generator) -> Tensor:
    """One answer of each agent side by side [N, 10 agents]."""
    answers = [said(net, rows, draws) for net in agents]
    return torch.cat(answers, 1)


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Accuracies of Self-MoA, of the mixture of all, and of one answer of the best net."""
    split = digits(seed)
    nets: list[Tensors] = []
    for number, count in enumerate(IMAGES):
        few = split.train.of(torch.arange(count))
        nets.append(tuned(fresh(seed + number), few, seed + number, steps=60))
    places = torch.arange(len(split.test.y))
    even, odd = places[::2], places[1::2]
    fit, test = split.test.of(even), split.test.of(odd)
    best = best_of(nets, [split])
    own = [best] * len(nets)
    draws = generator(seed, "single")
    single = said(best, test, draws)
    alone, mixed = aggregated(own, fit, test, seed), aggregated(nets, fit, test, seed)
    return {"method": alone, "baseline": mixed, "one answer": right(single, test)}
