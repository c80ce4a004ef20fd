"""Cat-n: features of five nets side by side tell more of a new task than those of one net five times as large.

Paper: Learning useful representations for shifting tasks and distributions.
Tried: small nets trained on the parity of digits; a linear probe for all ten digits on 200 labelled images, its weight
decay chosen on validation rows; five nets of 32 features against one net of five times the parameters. Against it: a test
accuracy that is no higher.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.merge._digits import (
    Rows,
    Split,
    Tensors,
    cross_entropy,
    digits,
    fresh,
    hidden,
    module,
    right,
    tuned,
)
from mixwell.core.rng import generator

NETS, DECAYS = 5, (1e-3, 1e-2, 1e-1, 1.0)
SMALL, LARGE = (64, 32, 32, 2), (64, 112, 96, 2)  # 3,202 parameters, and five times as many
CLAIM = Claim("Features of several seeds beat a larger net's.", "accuracy of a probe for ten digits",
              lower_is_better=False)


def parity(net: Tensors, rows: Rows) -> Tensor:
    """The loss of a net that tells odd from even digits."""
    odd = Rows(rows.x, rows.y % 2)
    return cross_entropy(net, odd)


def probed(nets: Sequence[Tensors], split: Split, seed: int) -> float:
    """Test accuracy of the probe whose decay is best on validation rows."""
    own = module("merge.outputs.concatenated_features")
    few = split.train.of(torch.arange(200))
    parts = [[hidden(net, rows.x) for net in nets] for rows in (few, split.valid, split.test)]
    widths = [one.shape[1] for one in parts[0]]
    scores = []
    for decay in DECAYS:
        config = own.Config(weight_decay=decay, steps=150)
        probe = own.ConcatenatedFeatures(widths, 10, config, generator(seed, "probe"))
        probe.fit(parts[0], few.y)
        valid, test = probe(parts[1]), probe(parts[2])
        scores.append((right(valid, split.valid), right(test, split.test)))
    return max(scores)[1]


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Accuracies of five small nets together, of a large one, and of one small one."""
    split = digits(seed)
    numbers = range(NETS)
    small = [tuned(fresh(seed + 100 * n, SMALL), split.train, seed + n, loss=parity) for n in numbers]
    large = tuned(fresh(seed, LARGE), split.train, seed, loss=parity)
    return {"method": probed(small, split, seed), "baseline": probed([large], split, seed),
            "one small net": probed(small[:1], split, seed)}
