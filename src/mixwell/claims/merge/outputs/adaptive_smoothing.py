"""Adaptive smoothing: mixed probabilities trade clean accuracy for accuracy under attack better than mixed logits.

Paper: Improving the Accuracy-Robustness Trade-Off of Classifiers via Adaptive Smoothing.
Tried: a plain small net and one trained under attack on digits; mixed at shares from 0 to 1 by probabilities and by
logits, each mixture attacked end to end by 20 steps of its own gradient within 0.15 an input; the best sum of clean and
attacked test accuracy, its share chosen on validation rows. Against it: a sum that is no higher.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.merge._digits import (
    Rows,
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

REACH, STEPS = 0.15, 20
SHARES = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
Net = Callable[[Tensor], Tensor]
Rule = Callable[[Tensor, Tensor, float], Tensor]
CLAIM = Claim("Mixed probabilities trade better than mixed logits.", "clean plus attacked accuracy",
              lower_is_better=False)


def attacked(net: Net, rows: Rows, steps: int = STEPS) -> Rows:
    """The images that the net's own gradient makes worst within the reach."""
    step = 2.5 * REACH / steps
    x = rows.x.clone()
    for _ in range(steps):
        leaf = x.requires_grad_()
        missed = F.nll_loss(net(leaf), rows.y)
        (slope,) = torch.autograd.grad(missed, leaf)
        moved = x.detach() + step * slope.sign()
        near = torch.clamp(moved, rows.x - REACH, rows.x + REACH)
        x = near.clamp(0, 1)
    return Rows(x.detach(), rows.y)


def hardened(net: Tensors, rows: Rows) -> Tensor:
    """The loss on images attacked in a few steps."""
    frozen = {name: tensor.detach() for name, tensor in net.items()}
    worst = attacked(lambda x: answer(frozen, x).log_softmax(-1), rows, steps=5)
    return cross_entropy(net, worst)


def score(net: Net, rows: Rows) -> float:
    """Clean plus attacked accuracy."""
    worst = attacked(net, rows)
    return right(net(rows.x), rows) + right(net(worst.x), rows)


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """The best sums of mixtures of probabilities and of logits, and those of the nets alone."""
    mixed = module("merge.outputs.adaptive_smoothing").mixed
    split = digits(seed)
    start = fresh(seed)
    plain = tuned(start, split.train, seed)
    robust = tuned(start, split.train, seed + 1, steps=250, loss=hardened)

    def joined(rule: Rule, share: float) -> Net:
        def net(x: Tensor) -> Tensor:
            first, second = answer(plain, x), answer(robust, x)
            return rule(first, second, share)

        return net

    def best(rule: Rule) -> float:
        nets = [joined(rule, share) for share in SHARES]
        scores = [score(net, split.valid) for net in nets]
        net = at_best(nets, scores)
        return score(net, split.test)

    plain_alone = score(joined(by_logits, 0.0), split.test)
    robust_alone = score(joined(by_logits, 1.0), split.test)
    return {"method": best(mixed), "baseline": best(by_logits), "plain net": plain_alone, "robust net": robust_alone}


def by_logits(accurate: Tensor, robust: Tensor, share: float) -> Tensor:
    """Log probabilities of mixed logits."""
    logits = torch.lerp(accurate, robust, share)
    return logits.log_softmax(-1)
