"""Munit scaling: eight-bit products without any scale at the quality of the same net in float32.

Paper: μnit Scaling: Simple and Scalable FP8 LLM Training.
Tried: digits, a stream of 96 with two residual branches of two products (GELU, norm at the end, tau 0.4), first and
last product in float32 as in the paper, 150 steps of Adam on 256 images: hidden products in eight bits against
float32; the learning rate is tuned for all sides. Against it: more than half a point of accuracy lost. Beside: a usual
start (He, norm before the branch) with products cast without scales, whose accuracy has to be behind.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from mixwell.claims._digits import adam, drawn, product_of, trained, weighed
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Comparison, Side
from mixwell.core.rng import generator
from mixwell.precision.training.unit_scaling import multiplier, residual

WIDTH, BRANCHES, TAU, STEPS, SIZE = 96, 2, 0.4, 150, 256
RATES = (0.01, 0.03, 0.1)
USUAL_RATES = (0.001, 0.003, 0.01)
Start = Literal["unit", "usual"]


class Stream(nn.Module):
    """A residual net of one of two starts."""

    def __init__(self, start: Start, eight_bits: bool, seed: int) -> None:
        super().__init__()
        draws = generator(seed, "stream")
        self.start = start
        shape = (WIDTH, WIDTH)
        gain = WIDTH if start == "unit" else 2.0
        self.hidden = nn.ParameterList()
        for _ in range(2 * BRANCHES):
            weight = drawn(shape, draws, gain)
            self.hidden.append(weight)
        into = drawn((WIDTH, 64), draws, 64)
        self.into = nn.Parameter(into)
        head = drawn((10, WIDTH), draws, WIDTH)
        self.head = nn.Parameter(head)
        name, option = ("unit_scaling", "eight_bits") if start == "unit" else ("float8", "scaled")
        on = eight_bits and start == "unit"  # the usual start is cast without scales
        self.take = product_of(name, shape, draws, **{option: on})

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, 10]."""
        read = F.linear(x, self.into)
        h = read * multiplier(64)
        hidden = iter(self.hidden)
        for up in hidden:
            h = self._behind(h, up, next(hidden))
        normed = F.layer_norm(h, (WIDTH,))
        logits = F.linear(normed, self.head)
        place = "head" if self.start == "unit" else "hidden"
        scale = multiplier(WIDTH, place)
        return logits * scale

    def _behind(self, h: Tensor, up: Tensor, down: Tensor) -> Tensor:
        unit = self.start == "unit"
        read = h if unit else F.layer_norm(h, (WIDTH,))
        hidden = self.take(read, up)
        inner = F.gelu(hidden)
        branch = self.take(inner, down)
        return residual(h, branch, TAU) if unit else h + branch


def quality(bench: Bench, seed: int, *, lr: float, start: Start, eight_bits: bool) -> dict[str, float]:
    """Held-out loss and accuracy; without eight bits the usual start is no side here."""
    net = Stream(start, eight_bits, seed)
    trained(net, seed, lr, STEPS, adam(net), SIZE)
    return weighed(net)


CLAIM = Claim(
    "Munit scaling in eight bits loses less than half a point of accuracy.", "held-out accuracy", quantity="accuracy",
    lower_is_better=False, at_least=-0.005,
    provided=(Comparison(quantity="accuracy", baseline="usual start, cast", lower_is_better=False),),
    sides={"method": Side(quality, {"start": "unit", "eight_bits": True}, {"lr": RATES}),
           "baseline": Side(quality, {"start": "unit", "eight_bits": False}, {"lr": RATES}),
           "usual start, cast": Side(quality, {"start": "usual", "eight_bits": True}, {"lr": USUAL_RATES})})
