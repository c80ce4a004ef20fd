"""Likelihood composition: models with wrong priors, each debiased and then averaged, beat their plain mean.

Paper: Unleashing the Potentials of Likelihood Composition for Multi-modal Language Models.
Tried: six small nets, each trained on digits of a skewed sample of its own, tested on all alike; "without the context"
is what a net says of blank and of noisy images on average; the strength of debiasing is chosen on validation rows.
Against it: an accuracy that is no higher than that of the plain mean. Beside it: the best single net, and votes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.merge._digits import (
    Rows,
    Tensors,
    accuracy,
    answer,
    at_best,
    best_of,
    digits,
    fresh,
    module,
    right,
    tuned,
)
from mixwell.core.rng import generator

NETS, STRENGTHS = 6, (0.0, 0.25, 0.5, 1.0)
CLAIM = Claim("Debiased nets average better.", "accuracy on digits, all alike often", lower_is_better=False)


def skewed(rows: Rows, seed: int) -> Rows:
    """A sample in which digits are unlike in number: shares of a Dirichlet of 0.3."""
    draws = generator(seed, "skew")
    shares = torch.rand(10, generator=draws) ** 4
    weights = shares[rows.y] + 0.02
    chosen = torch.multinomial(weights, 300, replacement=True, generator=draws)
    return rows.of(chosen)


def prior(net: Tensors, draws: torch.Generator) -> Tensor:
    """Log of what the net says of noise, on average [10]."""
    noise = torch.rand(200, 64, generator=draws)
    shares = answer(net, noise).softmax(-1)
    return shares.mean(0).log()


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Accuracies of debiased nets' mean, of the plain mean, of votes, and of the best net alone."""
    own = module("merge.outputs.likelihood_composition")
    split = digits(seed)
    nets = []
    for number in range(seed, seed + NETS):
        rows = skewed(split.train, number)
        nets.append(tuned(fresh(number), rows, number, steps=80))
    draws = generator(seed, "noise")
    priors = torch.stack([prior(net, draws) for net in nets])

    def composed(rows: Rows, **options: object) -> float:
        config = own.Config(**options)
        logits = torch.stack([answer(net, rows.x) for net in nets], dim=1)
        logs = logits.log_softmax(-1)
        found = [own.likelihood_composition(one, config, without_MC=priors) for one in logs]
        return right(torch.stack(found), rows)

    scores = [composed(split.valid, debias=strength) for strength in STRENGTHS]
    strength = at_best(STRENGTHS, scores)
    single = best_of(nets, [split])
    debiased = composed(split.test, debias=strength)
    votes = composed(split.test, combine="vote")
    plain = composed(split.test)
    return {"method": debiased, "baseline": plain, "votes": votes, "best single": accuracy(single, split.test)}
