"""BiBench: the binary operator decides, above all whether a row has a scale.

Paper: BiBench: Benchmarking and Analyzing Network Binarization.
Tried: digits, a net of 64, 128, 128 and 10 whose middle product is binary, without normalisation (which would take a
row's scale in), 300 steps of Adam: signs with each row's mean magnitude against signs alone; the learning rate is tuned
for all operators. Against it: no point of accuracy gained. Beside: four other operators.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from mixwell.claims._digits import Net, adam, product_of, trained, weighed
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.core.rng import generator

WIDTHS, STEPS = (64, 128, 128, 10), 300
RATES = (0.001, 0.003, 0.01)
METHOD, BASELINE = "dorefa", "bnn"
OTHERS = ("xnor", "bi_real", "react", "recu")


class Middle(nn.Module):
    """A net whose ends are whole and whose middle product is binary; signs are its only bend there."""

    def __init__(self, seed: int, operator: str) -> None:
        super().__init__()
        self.net = Net(WIDTHS, seed)
        self.take = product_of("binary", (128, 128), generator(seed, "binary"), operator=operator)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, 10]."""
        first, middle, last = self.net.weights
        before, behind, end = self.net.biases
        h = F.linear(x, first, before)
        binary = self.take(h, middle)
        moved = binary + behind
        kept = moved.clamp(-1, 1)
        return F.linear(kept, last, end)


def quality(bench: Bench, seed: int, *, lr: float, operator: str) -> dict[str, float]:
    """Held-out loss and accuracy."""
    net = Middle(seed, operator)
    trained(net, seed, lr, STEPS, adam(net))
    return weighed(net)


SIDES = {"method": METHOD, "baseline": BASELINE, **{name: name for name in OTHERS}}
CLAIM = Claim(
    "A scale for each row gains a point of accuracy.", "held-out accuracy", quantity="accuracy", lower_is_better=False,
    at_least=0.01, sides={side: Side(quality, {"operator": name}, {"lr": RATES}) for side, name in SIDES.items()})
