"""Fisher merging: two nets tuned on halves of the digits read all ten better when their Fishers weigh the mean.

Paper: Merging Models with Fisher-Weighted Averaging.
Tried: a small net tuned on digits 0 to 4 and, apart from that, on 5 to 9, merged; test accuracy on all ten, the models'
shares chosen on validation rows from the same grid. Against it: an accuracy that is no higher than that of the plain
mean. Beside it: RegMean.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.merge._digits import Rows, Tensors, accuracy, answer, best_of, digits, fresh, module, tuned
from mixwell.core.rng import generator

SHARES, EXAMPLES = (0.2, 0.35, 0.5, 0.65, 0.8), 150
CLAIM = Claim("Fisher weights beat the plain mean.", "accuracy on all ten digits", lower_is_better=False)


def halves(rows: Rows) -> list[Rows]:
    """Rows of digits 0 to 4, and of 5 to 9."""
    low = rows.y < 5
    return [rows.of(low), rows.of(~low)]


def log_shares(net: Tensors, image: Tensor) -> Tensor:
    """Log probabilities of one image [1, 10]."""
    return answer(net, image.unsqueeze(0)).log_softmax(-1)


def grams(net: Tensors, x: Tensor) -> dict[str, Tensor]:
    """Mean products of the inputs of each map."""
    found = {}
    last = len(net) // 2
    for layer in range(last):
        name = f"w{layer}"
        found[name] = x.T @ x / len(x)
        x = F.linear(x, net[name], net[f"b{layer}"]).relu()
    return found


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Accuracies of Fisher merging, of the plain mean, and of RegMean."""
    split = digits(seed)
    base = tuned(fresh(seed), split.train, seed, steps=40)
    parts = halves(split.train)
    models = [tuned(base, part, seed + number, steps=100) for number, part in enumerate(parts)]
    own = module("merge.fisher")
    draws = generator(seed, "fisher")
    sure, seen, flat = [], [], []
    for model, part in zip(models, parts):
        images = part.x[:EXAMPLES]
        sure.append(own.diagonal(log_shares, model, images, own.Config(), draws))
        seen.append(grams(model, part.x))
        flat.append({name: torch.ones_like(tensor) for name, tensor in model.items()})

    def best(name: str, statistics: list[dict[str, Tensor]]) -> float:
        nets = [weighed(name, models, statistics, share) for share in SHARES]
        net = best_of(nets, [split])
        return accuracy(net, split.test)

    return {"method": best("fisher", sure), "baseline": best("fisher", flat), "RegMean": best("regmean", seen)}


def weighed(name: str, models: list[dict[str, Tensor]], statistics: list[dict[str, Tensor]], share: float) -> Tensors:
    """The merge by statistics, with this share of the second model."""
    own = module(f"merge.{name}")
    config = own.Config(weight=(1 - share, share))
    return getattr(own, name)(models, statistics, config)
