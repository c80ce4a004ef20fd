"""DIVISION: a tenth of the activations' bytes without loss of accuracy, by block means beside two bits.

Paper: DIVISION: Memory Efficient Training via Dual Activation Precision.
Tried: digits drawn at 32 by 32 points, three convolutions of 8 channels (the last two with what they keep counted),
100 steps of Adam on 32 images: block means and two bits against exact activations; the learning rate is tuned for all
sides. Against it: more than a point of accuracy lost, or more than a tenth of the bytes kept. Beside: two bits alone,
against which the split has to have the lower loss.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from mixwell.claims._digits import adam, drawn, trained, weighed
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Comparison, Side
from mixwell.core.rng import generator
from mixwell.precision.training.dual_activations import Config, conv2d, kept

CHANNELS, STEPS, SIZE, SIDE = 8, 100, 32, 32
RATES = (0.003, 0.01, 0.03)


class Convolutions(nn.Module):
    """Three convolutions, rectified, and a head on the means of 4 by 4 places."""

    def __init__(self, seed: int, config: Config | None) -> None:
        super().__init__()
        draws = generator(seed, "convolutions")
        self.config, self.draws = config, generator(seed, "rounding")
        self.kernels = nn.ParameterList()
        for inputs in (1, CHANNELS, CHANNELS):
            shape = CHANNELS, inputs, 3, 3
            kernel = drawn(shape, draws, 2.0)
            self.kernels.append(kernel)
        head = drawn((10, CHANNELS * 16), draws)
        self.head = nn.Parameter(head)
        self.shares: list[float] = []  # of the bytes of float32 that were kept

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, 10]."""
        images = x.view(-1, 1, 8, 8)
        drawn_large = F.interpolate(images, (SIDE, SIDE), mode="bilinear", align_corners=True)
        first, *others = self.kernels
        maps = F.conv2d(drawn_large, first, padding=1).relu()
        for kernel in others:
            linear = self._convolved(maps, kernel)
            maps = linear.relu()
        pooled = F.adaptive_avg_pool2d(maps, 4)
        flat = pooled.flatten(1)
        return F.linear(flat, self.head)

    def _convolved(self, maps: Tensor, kernel: Tensor) -> Tensor:
        if self.config is None or not self.training:
            return F.conv2d(maps, kernel, padding=1)
        if not self.shares:
            found = kept(maps.detach(), self.config, self.draws)
            share = found.size_bytes / maps.nbytes
            self.shares.append(share)
        return conv2d(maps, kernel, self.config, self.draws, 1, 1)


def quality(bench: Bench, seed: int, *, lr: float, block: int | None) -> dict[str, float]:
    """Held-out loss and accuracy, and the share of bytes kept; without a block activations are exact."""
    config = None if block is None else Config(block=block)
    net = Convolutions(seed, config)
    move = adam(net)
    trained(net, seed, lr, STEPS, move, SIZE)
    shares = net.shares or [1.0]
    found = weighed(net)
    return {**found, "share": shares[0]}


CLAIM = Claim(
    "DIVISION keeps a tenth of the bytes and loses less than a point of accuracy.", "held-out accuracy",
    quantity="accuracy", lower_is_better=False, at_least=-0.01, tuned_by="loss",
    provided=(Comparison(quantity="share", baseline=0.1), Comparison(quantity="loss", baseline="two bits alone")),
    sides={"method": Side(quality, {"block": 8}, {"lr": RATES}),
           "baseline": Side(quality, {"block": None}, {"lr": RATES}),
           "two bits alone": Side(quality, {"block": 0}, {"lr": RATES})})
