"""Greedy ensembles: members trained to differ on noise know what they have not seen better than seeds alone do.

Paper: Greedy Bayesian Posterior Approximation with Deep Ensembles.
Tried: five small nets on digits 0 to 7; area under the curve of entropy that tells 8 and 9 from test digits 0 to 7,
lambda chosen on another kind of outlier (turned digits). Against it: an area that is no larger than that of five seeds.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, no_worse
from mixwell.claims.merge._digits import (
    Rows,
    Split,
    Tensors,
    answer,
    at_best,
    cross_entropy,
    digits,
    fresh,
    module,
    right,
    tuned,
)
from mixwell.core.rng import generator

MEMBERS, NOISE, STRENGTHS = 5, 128, (0.5, 2.0, 8.0)
CLAIM = Claim("Greedy members know what they have not seen.", "area under the curve of entropy", quantity="area",
              lower_is_better=False, provided=(no_worse("accuracy", 0.01, relative=False, lower_is_better=False),))


def learned(rows: Rows) -> Rows:
    """Digits 0 to 7."""
    return rows.of(rows.y < 8)


def ensemble(split: Split, seed: int, strength: float) -> list[Tensors]:
    """Members trained one after the other."""
    own = module("merge.outputs.greedy_ensemble")
    config = own.Config(diversity=strength, members=MEMBERS)
    draws = generator(seed, "noise")
    noise = own.noise_like(split.train.x, config.spread, draws)
    noise = noise[:NOISE]
    members: list[Tensors] = []
    earlier: list[Tensor] = []

    def loss(net: Tensors, rows: Rows) -> Tensor:
        found = answer(net, noise).softmax(-1)
        alike = own.greedy_ensemble(found, earlier, config)
        return cross_entropy(net, rows) + alike

    for number in range(MEMBERS):
        start = fresh(seed + 100 * number)
        net = tuned(start, split.train, seed + number, steps=120, loss=loss)
        members.append(net)
        logits = answer(net, noise)
        earlier.append(logits.softmax(-1))
    return members


def shares(members: list[Tensors], x: Tensor) -> Tensor:
    """What the members say together."""
    logits = torch.stack([answer(net, x) for net in members])
    return logits.softmax(-1).mean(0)


def area(members: list[Tensors], inside: Tensor, outside: Tensor) -> float:
    """Probability that an outlier has more entropy than a digit that was learned."""
    known = entropy(shares(members, inside))
    strange = entropy(shares(members, outside))
    above = strange.unsqueeze(1) > known
    share = above.float().mean()
    return float(share)


def entropy(found: Tensor) -> Tensor:
    """Of rows of probabilities, in nats."""
    terms = torch.special.entr(found)
    return terms.sum(-1)


def trial(bench: Bench, seed: int) -> dict[str, dict[str, float]]:
    """Areas and accuracies of greedy members, at the best strength for turned digits, and of seeds alone."""
    whole = digits(seed)
    inside = Split(*map(learned, whole))
    strange = whole.test.of(whole.test.y >= 8)
    turned = inside.valid.turned(1)
    tried = [ensemble(inside, seed, strength) for strength in STRENGTHS]
    scores = [area(members, inside.valid.x, turned.x) for members in tried]
    greedy = at_best(tried, scores)
    sides = {"method": greedy, "baseline": ensemble(inside, seed, 0.0)}
    found = {}
    for name, members in sides.items():
        known = right(shares(members, inside.test.x), inside.test)
        found[name] = {"area": area(members, inside.test.x, strange.x), "accuracy": known}
    return found
