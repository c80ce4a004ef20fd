"""RegMean: two nets tuned on halves of the digits read all ten better when each map answers both nets' inputs.

Paper: Dataless Knowledge Fusion by Merging Weights of Language Models.
Tried: a small net tuned on digits 0 to 4 and, apart from that, on 5 to 9, merged; test accuracy on all ten, the share a
of what lies off the diagonal chosen on validation rows. Against it: an accuracy that is no higher than that of the
plain mean, whose shares of the two nets are chosen on the same rows with as many tries.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.merge._digits import Tensors, accuracy, best_of, digits, fresh, module, tuned

CLAIM = Claim("RegMean beats the plain mean.", "accuracy on all ten digits", lower_is_better=False)
KEPT = (0.3, 0.6, 0.8, 0.9, 1.0)  # a
SHARES = (0.2, 0.35, 0.5, 0.65, 0.8)  # of the second net in the plain mean


def grams(net: Tensors, x: Tensor) -> dict[str, Tensor]:
    """Mean products of the inputs of each map."""
    found = {}
    for layer in range(len(net) // 2):
        weight, bias = net[f"w{layer}"], net[f"b{layer}"]
        products = x.T @ x
        found[f"w{layer}"] = products / len(x)
        x = F.linear(x, weight, bias).relu()
    return found


def means(models: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """The plain means at each share."""
    first, second = models
    found = []
    for share in SHARES:
        net = {name: torch.lerp(first[name], second[name], share) for name in first}
        found.append(net)
    return found


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Accuracies of RegMean and of the plain mean, each with its own setting chosen."""
    split = digits(seed)
    base = tuned(fresh(seed), split.train, seed, steps=40)
    low = split.train.y < 5
    parts = [split.train.of(low), split.train.of(~low)]
    models = [tuned(base, part, seed + number, steps=100) for number, part in enumerate(parts)]
    seen = [grams(model, part.x) for model, part in zip(models, parts)]
    own = module("merge.regmean")
    merged = [own.regmean(models, seen, own.Config(a=a)) for a in KEPT]
    found = {}
    for name, nets in (("method", merged), ("baseline", means(models))):
        net = best_of(nets, [split])
        found[name] = accuracy(net, split.test)
    return found
