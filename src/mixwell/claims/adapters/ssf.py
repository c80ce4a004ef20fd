"""SSF: scaling and shifting what layers give adapts better than training all of them, where examples are few.

Paper: Scaling & Shifting Your Features: A New Baseline for Efficient Model Tuning.
Tried: a net that reads digits, adapted to 100 images in which ink and paper are exchanged and the contrast is halved,
by factors and shifts behind each layer, against training all weights; rates of their own. Beside: training the head
alone. Share of 697 others that are read wrongly. Against it: an error that is no smaller than full training's.
"""

from __future__ import annotations

from torch import Tensor

from mixwell.claims.adapters._turned import RATES, Rows, attached, base, images, trained, wrong
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side

FEW, STEPS = 100, 100
FULL_RATES = (3e-4, 1e-3, 3e-3, 1e-2)


def exchanged(seed: int) -> tuple[Rows, Rows]:
    """Images with ink and paper exchanged, of half the contrast: few to adapt on, and others to judge by."""
    _, few, many = images(seed)
    names = few.y[:FEW]
    learnt_from = _exchanged(few.x[:FEW])
    others = _exchanged(many.x)
    return Rows(learnt_from, names), Rows(others, many.y)


def _exchanged(turned: Tensor) -> Tensor:
    """Upright again, and exchanged."""
    square = turned.view(-1, 8, 8)
    upright = square.rot90(-1, (1, 2))
    pale = 0.75 - 0.5 * upright
    return pale.flatten(1)


def measure(bench: Bench, seed: int, *, lr: float, trained_part: str) -> float:
    """Error after adaptation; the head is trained on every side."""
    net = base(seed)
    if trained_part == "factors":
        attached(net, "ssf", seed, given={"trained": ["head.*"]})
    elif trained_part == "head":
        for layer in net.layers:
            layer.requires_grad_(False)
    few, many = exchanged(seed)
    trained(net, few, STEPS, lr)
    return wrong(net, many)


CLAIM = Claim(
    "Factors and shifts adapt a net better than training all of it, where examples are few.",
    "share of digits with ink and paper exchanged that are read wrongly",
    sides={"method": Side(measure, {"trained_part": "factors"}, {"lr": RATES}),
           "baseline": Side(measure, {"trained_part": "all"}, {"lr": FULL_RATES}),
           "head": Side(measure, {"trained_part": "head"}, {"lr": RATES})})
