"""FP8-LM: eight-bit products, gradients and first moments at float32's accuracy, by scales for each tensor.

Paper: FP8-LM: Training FP8 Large Language Models.
Tried: digits, a net of 64, 128, 64 and 10, 150 steps of 512 images (gradients of a mean over few are large), the
whole recipe (products, gradients, first moment in eight bits, second moment and masters in float16; 6 bytes a
parameter) against float32 Adam; the learning rate is tuned for all sides. Against it: more than half a point of
accuracy lost. That eight bits are felt is shown by the recipe without scales, whose loss has to be behind.
"""

from __future__ import annotations

from mixwell.claims._digits import Net, adam, trained, weighed
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Comparison, Side
from mixwell.precision.training.float8 import Config, Float8AdamW

WIDTHS, STEPS, SIZE = (64, 128, 64, 10), 150, 512
RATES = (0.0003, 0.001, 0.003)


def quality(bench: Bench, seed: int, *, lr: float, recipe: bool, scaled: bool = True) -> dict[str, float]:
    """Held-out loss and accuracy."""
    if not recipe:
        net = Net(WIDTHS, seed)
        move = adam(net)
        trained(net, seed, lr, STEPS, move, SIZE)
        return weighed(net)
    net = Net(WIDTHS, seed, "float8", scaled=scaled)
    own = dict(net.named_parameters())
    config = Config(scaled=scaled)
    optimizer = Float8AdamW(own, config, betas=(0.9, 0.999))
    trained(net, seed, lr, STEPS, optimizer.step, SIZE)
    return weighed(net)


CLAIM = Claim(
    "FP8-LM's recipe loses less than half a point of accuracy.", "held-out accuracy", quantity="accuracy",
    lower_is_better=False, at_least=-0.005, tuned_by="loss",
    provided=(Comparison(quantity="loss", baseline="without scales", at_least=0.0),),
    sides={"method": Side(quality, {"recipe": True}, {"lr": RATES}),
           "baseline": Side(quality, {"recipe": False}, {"lr": RATES}),
           "without scales": Side(quality, {"recipe": True, "scaled": False}, {"lr": RATES})})
