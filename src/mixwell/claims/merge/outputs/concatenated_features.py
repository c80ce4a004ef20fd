"""Cat-n: features of five nets side by side tell more of a new task than those of one net five times as large.

Paper: Learning useful representations for shifting tasks and distributions.
Tried: small nets trained on the parity of digits; a linear probe for all ten digits on 200 labelled images, its weight
decay chosen on validation rows; five nets of 32 features against one net of five times the parameters. Against it: a
test accuracy that is no higher.
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
    seen, chosen, asked = (features(nets, rows) for rows in (few, split.valid, split.test))
    widths = [one.shape[1] for one in seen]
    scores: list[tuple[float, float]] = []
    for decay in DECAYS:
        config = own.Config(weight_decay=decay, steps=150)
        draws = generator(seed, "probe")
        probe = own.ConcatenatedFeatures(widths, 10, config, draws)
        probe.fit(seen, few.y)
        valid = right(probe(chosen), split.valid)
        test = right(probe(asked), split.test)
        scores.append((valid, test))
    _, best = max(scores)
    return best


def features(nets: Sequence[Tensors], rows: Rows) -> list[Tensor]:
    """What each net's last hidden layer says."""
    return [hidden(net, rows.x) for net in nets]


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Accuracies of five small nets together, of a large one, and of one small one."""
    split = digits(seed)
    small = []
    for number in range(NETS):
        start = fresh(seed + 100 * number, SMALL)
        small.append(tuned(start, split.train, seed + number, loss=parity))
    start = fresh(seed, LARGE)
    large = tuned(start, split.train, seed, loss=parity)
    together = probed(small, split, seed)
    alone = probed(small[:1], split, seed)
    return {"method": together, "baseline": probed([large], split, seed), "one small net": alone}
