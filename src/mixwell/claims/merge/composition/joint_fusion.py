"""JAM: twins for two kinds of tokens, joined by cross-attention, learn both together better than their mean does.

Paper: Jointly Training Large Autoregressive Multimodal Models.
Tried: a small causal transformer on text tokens, then continued apart on text and on digit images as 64 tokens of 17
levels; the twins joined by gated cross-attention, against the mean of their weights, both trained on as many mixed
tokens at tuned learning rates; mean of the held-out losses a token on both kinds. Beside it, as a condition: the text
twin trained on the same. Against it: a loss that is no lower than the mean's, or than the text twin's. The joined
twins take twice the operations.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixwell.claims import trunk
from mixwell.claims.bench import VOCAB_SIZE, Bench
from mixwell.claims.claim import Claim, Comparison, Side
from mixwell.claims.merge._digits import digits, module
from mixwell.core.rng import generator

DIM, HIDDEN, BLOCKS, LEVELS, LENGTH = 32, 64, 2, 17, 64
BASE_STEPS, TWIN_STEPS, JOINT_STEPS, BATCH = 60, 60, 40, 32
RATE, RATES = 4e-3, (1e-3, 3e-3, 1e-2)
ROWS = 64  # windows of each domain that text is taken from
Reader = Callable[[Tensor], Tensor]  # tokens [B, T] -> logits [B, T, V]


class Block(nn.Module):
    """One head of causal attention and a dense block, each behind a norm."""

    def __init__(self, draws: torch.Generator) -> None:
        super().__init__()
        shapes = {"qkv": (3 * DIM, DIM), "out": (DIM, DIM), "up": (HIDDEN, DIM), "down": (DIM, HIDDEN)}
        for name, shape in shapes.items():
            weight = torch.randn(shape, generator=draws) * shape[1] ** -0.5
            setattr(self, name, nn.Parameter(weight))

    def forward(self, x_BTD: Tensor) -> Tensor:
        """The hidden states behind it."""
        own: Any = self
        inner = F.layer_norm(x_BTD, (DIM,))
        q, k, v = (inner @ own.qkv.T).chunk(3, dim=-1)
        looked = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BTD = x_BTD + looked @ own.out.T
        inner = F.layer_norm(x_BTD, (DIM,))
        wide = (inner @ own.up.T).relu()
        return x_BTD + wide @ own.down.T


class Twin(nn.Module):
    """A language model of text tokens and of an image's levels."""

    def __init__(self, draws: torch.Generator) -> None:
        super().__init__()
        entries = VOCAB_SIZE + LEVELS
        self.embed = nn.Parameter(torch.randn(entries, DIM, generator=draws) * DIM**-0.5)
        self.places = nn.Parameter(torch.zeros(LENGTH, DIM))
        self.blocks = nn.ModuleList(Block(draws) for _ in range(BLOCKS))

    def entered(self, tokens_BT: Tensor) -> Tensor:
        """Hidden states before the first block."""
        length = tokens_BT.shape[1]
        return self.embed[tokens_BT] + self.places[:length]

    def left(self, x_BTD: Tensor) -> Tensor:
        """Logits, from hidden states behind the last block."""
        return F.layer_norm(x_BTD, (DIM,)) @ self.embed.T

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits."""
        x_BTD = self.entered(tokens_BT)
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return self.left(x_BTD)


class Joined(nn.Module):
    """Both twins with cross-attention between them."""

    def __init__(self, first: Twin, second: Twin, draws: torch.Generator) -> None:
        super().__init__()
        own = module("merge.composition.joint_fusion")
        self.first, self.second = first, second
        self.fusion = own.JointFusion(list(first.blocks), list(second.blocks), DIM, own.Config(every=1), draws)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits."""
        first, second = self.first.entered(tokens_BT), self.second.entered(tokens_BT)
        first, second = self.fusion(first, second)
        one, other = self.first.left(first), self.second.left(second)
        return self.fusion.joined(one, other)


class Texts(NamedTuple):
    """Rows of tokens of both kinds [N, 64], to train on and held out."""

    text: Tensor
    images: Tensor
    held_text: Tensor
    held_images: Tensor


class Start(NamedTuple):
    """What all sides begin with."""

    texts: Texts
    text: Twin
    images: Twin


def levels(x: Tensor) -> Tensor:
    """An image's pixels as tokens behind those of text."""
    return (16 * x).round().long() + VOCAB_SIZE


def texts(bench: Bench, seed: int) -> Texts:
    """The bench's text and the digits."""
    split = digits(seed)
    rows, _ = trunk.windows(bench.data, "train", ROWS, LENGTH)
    held, _ = trunk.windows(bench.data, "held", ROWS // 4, LENGTH)
    images, unseen = levels(split.train.x), levels(split.test.x)
    return Texts(rows, images, held, unseen[: len(held)])


def loss(reader: Reader, rows_BT: Tensor) -> Tensor:
    """Mean cross-entropy of each next token."""
    logits_BTV = reader(rows_BT[:, :-1])
    logits_NV = logits_BTV.flatten(0, 1)
    following = rows_BT[:, 1:]
    return F.cross_entropy(logits_NV, following.flatten())


def trained(model: nn.Module, kinds: tuple[Tensor, ...], steps: int, seed: int, lr: float) -> None:
    """Steps of Adam on batches with as many rows of each kind."""
    draws = generator(seed, "batches")
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    each = BATCH // len(kinds)
    for _ in range(steps):
        drawn = [rows[torch.randint(0, len(rows), (each,), generator=draws)] for rows in kinds]
        missed = loss(model, torch.cat(drawn))
        optimizer.zero_grad()
        missed.backward()
        optimizer.step()


@functools.lru_cache(maxsize=1)
def _start(bench: Bench, seed: int) -> Start:
    found = texts(bench, seed)
    base = Twin(generator(seed, "twin"))
    trained(base, (found.text,), BASE_STEPS, seed, RATE)
    twins = []
    for rows in (found.text, found.images):
        twin = copy.deepcopy(base)
        trained(twin, (rows,), TWIN_STEPS, seed + 1, RATE)
        twins.append(twin)
    return Start(found, *twins)


def uniform(start: Start, seed: int) -> nn.Module:
    """The mean of the twins' weights."""
    mean = copy.deepcopy(start.text)
    with torch.no_grad():
        for own, other in zip(mean.parameters(), start.images.parameters()):
            own.lerp_(other, 0.5)
    return mean


def cross(start: Start, seed: int) -> nn.Module:
    """The twins joined."""
    draws = generator(seed, "joints")
    return Joined(copy.deepcopy(start.text), copy.deepcopy(start.images), draws)


def parent(start: Start, seed: int) -> nn.Module:
    """The text twin as it is."""
    return copy.deepcopy(start.text)


MADE = {"cross": cross, "uniform": uniform, "parent": parent}


def measure(bench: Bench, seed: int, *, made: str, lr: float) -> float:
    """Mean of the held-out losses on both kinds, after training on both."""
    start = _start(bench, seed)
    model = MADE[made](start, seed)
    known = start.texts
    trained(model, (known.text, known.images), JOINT_STEPS, seed + 2, lr)
    with torch.no_grad():
        apart = [float(loss(model, rows)) for rows in (known.held_text, known.held_images)]
    return sum(apart) / len(apart)


GRID = {"lr": RATES}
CLAIM = Claim(
    "Joined twins learn two kinds of tokens better than their mean.", "nats a token, mean of both kinds",
    provided=(Comparison(baseline="text twin"),),
    sides={"method": Side(measure, {"made": "cross"}, GRID), "baseline": Side(measure, {"made": "uniform"}, GRID),
           "text twin": Side(measure, {"made": "parent"}, GRID)})
