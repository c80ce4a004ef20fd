"""Alignment: the mean of two nets that share no start is better once the units of one stand in the other's order.

Paper: Git Re-Basin: Merging Models modulo Permutation Symmetries.
Tried: two small nets from different starts, each trained on the digits for 400 steps; test accuracy of the mean of the
first and the second with its hidden units matched by weights, against the plain mean. Beside: units matched by what
they say of training images; the better of the two nets. Against it: an accuracy that is no higher.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.merge._digits import SIZES, Tensors, accuracy, digits, fresh, module, tuned
from mixwell.core.rng import generator

CLAIM = Claim("Aligned nets have a better mean than nets as they are.", "accuracy", lower_is_better=False)
LAYERS = len(SIZES) - 1
STEPS, SWEEPS = 400, 20
MEAN = 0.5


def spec() -> dict[str, object]:
    """Which set of hidden units each axis of the net's tensors counts."""
    own = module("merge.align")
    found = {}
    for layer in range(LAYERS):
        inputs, outputs = SIZES[layer], SIZES[layer + 1]
        below = f"hidden {layer}" if layer else None
        above = f"hidden {layer + 1}" if layer + 1 < LAYERS else None
        found[f"w{layer}"] = own.Axes((outputs, inputs), (above, below))
        found[f"b{layer}"] = own.Axes((outputs,), (above,))
    return found


def by_activations(first: Tensors, second: Tensors, x: Tensor) -> dict[str, Tensor]:
    """The second net's unit for each place, by what both say of the same images."""
    own = module("merge.align")
    a, b = x, x
    orders = {}
    for layer in range(LAYERS - 1):
        a = F.linear(a, first[f"w{layer}"], first[f"b{layer}"]).relu()
        b = F.linear(b, second[f"w{layer}"], second[f"b{layer}"]).relu()
        orders[f"hidden {layer + 1}"] = own.activation_matching(a, b)
    return orders


def mean(first: Tensors, second: Tensors, orders: dict[str, Tensor]) -> dict[str, Tensor]:
    """The mean of the first net and the second with its units in these orders."""
    own = module("merge.align")
    found = {}
    for name, axes in spec().items():
        moved = own.permuted(second[name], axes, orders)
        found[name] = torch.lerp(first[name], moved, MEAN)
    return found


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Accuracies of the aligned means, of the plain mean, and of the better net."""
    split = digits(seed)
    starts = [fresh(2 * seed), fresh(2 * seed + 1)]
    first, second = (tuned(net, split.train, seed, steps=STEPS) for net in starts)
    draws = generator(seed, "align")
    matched = module("merge.align").weight_matching(spec(), first, second, SWEEPS, draws)
    orders = {"method": matched, "baseline": {}, "by activations": by_activations(first, second, split.train.x)}
    found = {}
    for name, order in orders.items():
        net = mean(first, second, order)
        found[name] = accuracy(net, split.test)
    found["one net"] = max(accuracy(net, split.test) for net in (first, second))
    return found
