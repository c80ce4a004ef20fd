"""Tangent composition: parts that were learned apart compose, where means of ordinary fine-tunes do not.

Paper: Tangent Model Composition for Ensembling and Continual Fine-tuning.
Tried: a small net trained on the parity of digits; five shards of two digits each, learned apart, by tangents and by
ordinary fine-tuning; test accuracy on all ten of the mean of what was learned, rates chosen on validation rows. Against
it: an accuracy that is no higher than that of the mean of the fine-tunes.
"""

from __future__ import annotations

from torch import Tensor

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.merge._digits import (
    Rows,
    Tensors,
    accuracy,
    answer,
    cross_entropy,
    digits,
    fresh,
    module,
    right,
    tuned,
)

RATES, STEPS = (3e-3, 1e-2, 3e-2), 60
CLAIM = Claim("Tangents of shards compose better than fine-tunes.", "accuracy on all ten digits",
              lower_is_better=False)


def shards(rows: Rows) -> list[Rows]:
    """Two digits each."""
    pairs = rows.y // 2
    return [rows.of(pairs == place) for place in range(5)]


def parity(net: Tensors, rows: Rows) -> Tensor:
    """The loss of a net that tells odd from even digits."""
    odd = Rows(rows.x, rows.y % 2)
    return cross_entropy(net, odd)


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Accuracies of the mean tangent and of the mean fine-tune, each at its best rate on validation rows."""
    own = module("merge.composition.tangent")
    split = digits(seed)
    base = tuned(fresh(seed), split.train, seed, steps=150, loss=parity)
    parts = shards(split.train)
    tangents, plain = [], []
    for rate in RATES:
        config = own.Config(lr=rate, steps=STEPS)
        changes = [own.fitted(answer, base, part.x, part.y, config) for part in parts]
        mean = own.composed(changes)
        valid = own.tangent(answer, base, mean, split.valid.x)
        test = own.tangent(answer, base, mean, split.test.x)
        tangents.append((right(valid, split.valid), right(test, split.test)))
        models = [tuned(base, part, seed, steps=STEPS, lr=rate / 10) for part in parts]
        net = own.composed(models)
        plain.append((accuracy(net, split.valid), accuracy(net, split.test)))
    _, composed = max(tangents)
    _, averaged = max(plain)
    return {"method": composed, "baseline": averaged}
