"""Sparse kernel selection: few learned sign patterns are better than as many drawn ones.

Paper: Compacting Binary Neural Networks by Sparse Kernel Selection.
Tried: digits, 8 channels of 3 by 3 in float32, then 16 of binary kernels from 16 of the 512 patterns, a head in
float32, 100 steps of Adam on 32 images: patterns learned by permutation against patterns drawn once; the learning
rate is tuned for both. Against it: held-out loss that is no lower. Beside: the patterns that are most frequent in a net
whose kernels were free for as many steps, which a user would try first.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from mixwell.claims._digits import adam, drawn, trained, weighed
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.core.rng import generator
from mixwell.precision.training.binary import Binary
from mixwell.precision.training.binary import Config as Free
from mixwell.precision.training.kernel_selection import Config, KernelSelection

FIRST, SECOND, WORDS, STEPS, SIZE = 8, 16, 16, 100, 32
RATES = (0.003, 0.01, 0.03)


class Convolutions(nn.Module):
    """Two convolutions, the second one binary, and a head on the means of 4 by 4 places."""

    def __init__(self, seed: int, free: bool = False) -> None:
        super().__init__()
        draws = generator(seed, "selection")
        self.first = nn.Parameter(drawn((FIRST, 1, 3, 3), draws, 2.0))
        shape = (SECOND, FIRST * 9)
        self.second = nn.Parameter(drawn(shape, draws))
        self.head = nn.Parameter(drawn((10, SECOND * 16), draws))
        if free:
            self.take: nn.Module = Binary(shape, Free(operator="dorefa"), draws)
        else:
            self.take = KernelSelection(shape, Config(words=WORDS, every=10), draws)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, 10]."""
        images = x.view(-1, 1, 8, 8)
        maps = F.conv2d(images, self.first, padding=1)
        pieces = F.unfold(maps, 3, padding=1).mT
        channels = self.take(pieces, self.second).mT
        second = channels.unflatten(-1, (8, 8))
        pooled = F.adaptive_avg_pool2d(second.relu(), 4)
        flat = pooled.flatten(1)
        return F.linear(flat, self.head)


def loss(bench: Bench, seed: int, *, lr: float, choice: str) -> float:
    """Held-out loss with patterns that are learned, drawn once, or most frequent in a net of free kernels."""
    net = Convolutions(seed)
    select: Any = net.take
    if choice != "learned":
        select.preference.requires_grad_(False)
    if choice == "frequent":
        free = Convolutions(seed, free=True)
        trained(free, seed, lr, STEPS, adam(free), SIZE)
        select.start(free.second)
    if choice != "learned":
        _settle(select)
    trained(net, seed, lr, STEPS, adam(net), SIZE)
    return weighed(net)["loss"]


def _settle(select: KernelSelection) -> None:
    """Take the patterns that are preferred now, once and for all."""
    order = select.eval().words().detach()

    def words() -> Tensor:
        return order

    select.words = words  # type: ignore[method-assign]


CLAIM = Claim(
    "Learned sign patterns lower the loss of drawn ones.", "held-out loss in nats",
    sides={"method": Side(loss, {"choice": "learned"}, {"lr": RATES}),
           "baseline": Side(loss, {"choice": "drawn"}, {"lr": RATES}),
           "frequent": Side(loss, {"choice": "frequent"}, {"lr": RATES})})
