"""BiPFT: estimates of rank one of what binarising took off attention lower a binary transformer's loss.

Paper: BiPFT: Binary Pre-trained Foundation Transformer with Low-rank Estimation of Binarization Residual Polynomials.
Tried: digits as eight tokens of eight points, two layers of width 64 with two heads, binary attention and binary
blocks, embedding and head whole, 150 steps of Adam: with the estimates against without; the learning rate is tuned for
both. Against it: held-out loss that is no lower. The paper's tasks are language, and its margin is in points of GLUE.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from mixwell.claims._digits import adam, drawn, trained, weighed
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.core.rng import generator
from mixwell.precision.training.binary_attention import BinaryAttention, BinaryMap, Config

WIDTH, LAYERS, STEPS, SIZE = 64, 2, 150, 64
RATES = (0.001, 0.003, 0.01)


class Transformer(nn.Module):
    """A small one of binary layers that reads an image row by row."""

    def __init__(self, seed: int, rank: int) -> None:
        super().__init__()
        draws, config = generator(seed, "transformer"), Config(rank=rank)
        self.embed = nn.Parameter(drawn((WIDTH, 8), draws))
        self.places = nn.Parameter(drawn((8, WIDTH), draws))
        self.head = nn.Parameter(drawn((10, WIDTH), draws))
        self.mixers, self.maps = nn.ModuleList(), nn.ModuleList()
        self.weights = nn.ParameterList()
        shape = (WIDTH, WIDTH)
        for _ in range(LAYERS):
            mixer = BinaryAttention(WIDTH, 2, config, draws, causal=False)
            self.mixers.append(mixer)
            block = BinaryMap(shape, config, draws)
            self.maps.append(block)
            weight = drawn(shape, draws)
            self.weights.append(weight)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, 10]."""
        rows = x.view(-1, 8, 8)
        h = F.linear(rows, self.embed) + self.places
        layers = zip(self.mixers, self.maps, self.weights)
        for mixer, take, weight in layers:
            normed = _normed(h)
            h = h + mixer(normed)
            inner = _normed(h)
            h = h + take(inner, weight)
        pooled = _normed(h.mean(1))
        return F.linear(pooled, self.head)


def _normed(h: Tensor) -> Tensor:
    return F.layer_norm(h, (WIDTH,))


def loss(bench: Bench, seed: int, *, lr: float, rank: int) -> float:
    """Held-out loss."""
    net = Transformer(seed, rank)
    trained(net, seed, lr, STEPS, adam(net), SIZE)
    return weighed(net)["loss"]


CLAIM = Claim(
    "Estimates of rank one lower a binary transformer's loss.", "held-out loss in nats",
    sides={"method": Side(loss, {"rank": 1}, {"lr": RATES}), "baseline": Side(loss, {"rank": 0}, {"lr": RATES})})
