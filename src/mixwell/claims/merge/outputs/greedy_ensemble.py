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
    cross_entropy,
    digits,
    fresh,
    module,
    right,
    tuned,
)
from mixwell.core.rng import generator

MEMBERS, STRENGTHS = 5, (0.5, 2.0, 8.0)
CLAIM = Claim("Greedy members know what they have not seen.", "area under the curve of entropy", quantity="area",
              lower_is_better=False, provided=(no_worse("accuracy", 0.01, relative=False, lower_is_better=False),))


def ensemble(split: Split, seed: int, strength: float) -> list[Tensors]:
    """Members trained one after the other."""
    own = module("merge.outputs.greedy_ensemble")
    config = own.Config(diversity=strength, members=MEMBERS)
    noise = own.noise_like(split.train.x, config.spread, generator(seed, "noise"))[:128]
    members: list[Tensors] = []
    earlier: list[Tensor] = []

    def loss(net: Tensors, rows: Rows) -> Tensor:
        shares = answer(net, noise).softmax(-1)
        return cross_entropy(net, rows) + own.greedy_ensemble(shares, earlier, config)

    for number in range(MEMBERS):
        start = fresh(seed + 100 * number)
        net = tuned(start, split.train, seed + number, steps=120, loss=loss)
        members.append(net)
        earlier.append(answer(net, noise).softmax(-1))
    return members


def shares(members: list[Tensors], x: Tensor) -> Tensor:
    """What the members say together."""
    return torch.stack([answer(net, x).softmax(-1) for net in members]).mean(0)


def area(members: list[Tensors], inside: Tensor, outside: Tensor) -> float:
    """Probability that an outlier has more entropy than a digit that was learned."""
    known, strange = (torch.special.entr(shares(members, x)).sum(-1) for x in (inside, outside))
    above = strange[:, None] > known[None]
    return float(above.float().mean())


def trial(bench: Bench, seed: int) -> dict[str, dict[str, float]]:
    """Areas and accuracies of greedy members, at the best strength for turned digits, and of seeds alone."""
    whole = digits(seed)
    inside = Split(*(rows.of(rows.y < 8) for rows in whole))
    strange = whole.test.of(whole.test.y >= 8)
    turned = inside.valid.turned(1)
    tried = []
    for strength in STRENGTHS:
        members = ensemble(inside, seed, strength)
        score = area(members, inside.valid.x, turned.x)
        tried.append((score, strength, members))
    _, _, greedy = max(tried, key=lambda one: one[0])
    sides = {"method": greedy, "baseline": ensemble(inside, seed, 0.0)}
    return {name: {"area": area(members, inside.test.x, strange.x),
                   "accuracy": right(shares(members, inside.test.x), inside.test)} for name, members in sides.items()}
