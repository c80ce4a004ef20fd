"""bfloat16 with float32 masters: the accuracy of float32 in as many steps.

Paper: A Study of BFLOAT16 for Deep Learning Training.
Tried: digits, a net of 64, 128, 64 and 10, 250 steps of Adam, products in bfloat16 (emulated) with float32 masters
against float32; the learning rate is tuned for all sides. Against it: more than half a point of accuracy lost. That
the net feels sixteen bits at all is shown by weights kept in bfloat16 without masters, which have to be behind.
"""

from __future__ import annotations

import torch

from mixwell.claims._digits import Net, adam, trained, weighed
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Comparison, Side
from mixwell.precision.training.bfloat16 import rounded

WIDTHS, STEPS = (64, 128, 64, 10), 250
RATES = (0.0003, 0.001, 0.003)


def quality(bench: Bench, seed: int, *, lr: float, arithmetic: str = "", masters: bool = True) -> dict[str, float]:
    """Held-out loss and accuracy."""
    net = Net(WIDTHS, seed, arithmetic)
    move = adam(net)

    def step(now: float) -> None:
        move(now)
        if not masters:
            with torch.no_grad():
                for weight in net.parameters():
                    weight.copy_(rounded(weight))

    trained(net, seed, lr, STEPS, step)
    return weighed(net)


CLAIM = Claim(
    "Training in bfloat16 loses less than half a point of accuracy.", "held-out accuracy", quantity="accuracy",
    lower_is_better=False, at_least=-0.005, tuned_by="loss",
    provided=(Comparison(quantity="loss", baseline="without masters", at_least=0.0),),
    sides={"method": Side(quality, {"arithmetic": "bfloat16"}, {"lr": RATES}),
           "baseline": Side(quality, {}, {"lr": RATES}),
           "without masters": Side(quality, {"arithmetic": "bfloat16", "masters": False}, {"lr": RATES})})
