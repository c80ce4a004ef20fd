"""Compressor: the sizes of a small model under a limit of bytes, found by a genetic search for the most work a token.

**Equation:** genes: vocabulary, heads, width, hidden width, layers. Fitness = FLOPs a token over those of the largest
    model, below the limit; above it minus the excess over the limit. Each generation pairs at random: with `crossover`
    the genes from a random place on are swapped, else each child's are drawn anew from there; the best of parents and
    children live on. The student then learns T^2 KL(softmax(teacher / T) || softmax(student / T)).
**Shapes:** genes [5]; logits [.., V].
**Reference:** Shi et al. 2022 (2208.07120), section 3, and the authors' code.
**Differs:** sizes are those of this library's decoder (SwiGLU, rotary, tied or not), whose lookup costs nothing; theirs
    counts an embedding as a product, which rewards vocabulary. The limit holds; theirs is a penalty on either side,
    which fails at other scales.
**Fails when:** work a token says nothing of quality, as among very deep and narrow models.
**Cost:** population times generations evaluations of a formula; no training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.mixing import check_above, check_least


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the search: a range is (least, largest, step)."""

    limit_bytes: int = 3_000_000  # of all weights, at least 1
    bytes_per_weight: float = 2.0  # above 0
    vocab_size: tuple[int, int, int] = (512, 32_768, 512)
    heads: tuple[int, ...] = (1, 2, 4, 8)  # to choose from, each at least 1
    dim: tuple[int, int, int] = (16, 768, 16)
    hidden_dim: tuple[int, int, int] = (32, 3040, 32)
    layers: tuple[int, int, int] = (1, 12, 1)
    length: int = 512  # of a window, for attention's part of the work
    tie_embeddings: bool = True
    population: int = 50  # at least 2
    generations: int = 100  # at least 1
    crossover: float = 0.6  # chance that a pair swaps genes, 0 to 1

    def __post_init__(self) -> None:
        check_least(self, limit_bytes=1, length=1, population=2, generations=1)
        check_above(self, bytes_per_weight=0)
        for name in ("vocab_size", "dim", "hidden_dim", "layers"):
            least, largest, step = getattr(self, name)
            ordered = 1 <= least <= largest
            if not ordered or step < 1:
                raise ValueError(f"{name} is {least, largest, step}; expected 1 <= least <= largest and a step")
        if not self.heads or min(self.heads) < 1:
            raise ValueError(f"heads is {self.heads}; expected some, each at least 1")
        if not 0 <= self.crossover <= 1:
            raise ValueError(f"crossover is {self.crossover}; expected 0 to 1")


class Sizes(NamedTuple):
    """A model's genes."""

    vocab_size: int
    heads: int
    dim: int
    hidden_dim: int
    layers: int

    def fits(self) -> bool:
        """Whether its heads have whole pairs of channels, which positions turn."""
        return self.dim % (2 * self.heads) == 0

    def parameters(self, tied: bool) -> int:
        """Numbers of the decoder."""
        ends = 1 if tied else 2
        tables = ends * self.vocab_size * self.dim
        attention = 4 * self.dim * self.dim
        block = 3 * self.dim * self.hidden_dim
        norms = 2 * self.dim
        layer = attention + block + norms
        return tables + self.layers * layer + self.dim

    def flops(self, length: int) -> float:
        """Forward FLOPs a token, mean over a window of this length; a lookup costs nothing."""
        seen = (length + 1) / 2
        attention = 8 * self.dim * self.dim + 4 * self.dim * seen
        block = 6 * self.dim * self.hidden_dim
        head = 2 * self.vocab_size * self.dim
        return self.layers * (attention + block) + head

    def arch(self, tied: bool) -> dict[str, Any]:
        """The model of a recipe."""
        mixer = {"method": "experts.layers.swiglu", "hidden_dim": self.hidden_dim}
        return {"vocab_size": self.vocab_size, "dim": self.dim, "num_layers": self.layers, "num_heads": self.heads,
                "tie_embeddings": tied, "channel_mixer": mixer}


class Found(NamedTuple):
    """What a search ends with."""

    sizes: Sizes
    size_bytes: int
    flops: float
    history: tuple[float, ...]  # the best fitness of each generation


def values_of(config: Config) -> list[list[int]]:
    """What each gene may be."""
    heads = list(config.heads)
    first, *others = (config.vocab_size, config.dim, config.hidden_dim, config.layers)
    return [_span(first), heads, *map(_span, others)]


def _span(given: tuple[int, int, int]) -> list[int]:
    least, largest, step = given
    return list(range(least, largest + 1, step))


def fitness(sizes: Sizes, config: Config, most: float) -> float:
    """Work a token over `most` where the model fits and is within the limit, else below 0."""
    if not sizes.fits():
        return -float("inf")
    size = sizes.parameters(config.tie_embeddings) * config.bytes_per_weight
    if size > config.limit_bytes:
        return 1 - size / config.limit_bytes
    return sizes.flops(config.length) / most


class _Pool:
    """Draws of genes and of pairs."""

    def __init__(self, config: Config, generator: torch.Generator) -> None:
        self.config, self.generator = config, generator
        self.values = values_of(config)

    def below(self, count: int) -> int:
        """A whole number from 0 to `count` - 1."""
        return int(torch.randint(count, (), generator=self.generator))

    def redrawn(self, genes: Sequence[int], place: int) -> Sizes:
        """The genes, those from a place on anew."""
        kept = list(genes[:place])
        for values in self.values[place:]:
            drawn = self.below(len(values))
            kept.append(values[drawn])
        return Sizes(*kept)

    def children(self, one: Sizes, other: Sizes) -> list[Sizes]:
        """The two of a pair."""
        chance = float(torch.rand((), generator=self.generator))
        place = self.below(len(one))
        if chance >= self.config.crossover:
            return [self.redrawn(one, place), self.redrawn(other, place)]
        swapped = [*one[:place], *other[place:]], [*other[:place], *one[place:]]
        return [Sizes(*genes) for genes in swapped]


@method(title="Compressor: sizes under a limit of bytes by a genetic search",
        paper="Compressing Pre-trained Models of Code into 3 MB", year=2022, tags={"search"})
def compressor(config: Config, generator: torch.Generator) -> Found:
    """The sizes of most work a token that the search comes to below the limit.

    Raises `MixwellError` where no model that it met is below the limit.
    """
    pool = _Pool(config, generator)
    largest = [values[-1] for values in pool.values]
    most = Sizes(*largest).flops(config.length)

    def score(sizes: Sizes) -> float:
        return fitness(sizes, config, most)

    alive = [pool.redrawn((), 0) for _ in range(config.population)]
    history = []
    for _ in range(config.generations):
        born = []
        for _ in range(config.population // 2):
            pair = [alive[pool.below(len(alive))] for _ in range(2)]
            born += pool.children(*pair)
        every = dict.fromkeys([*alive, *born])  # each once
        alive = sorted(every, key=score, reverse=True)[: config.population]
        history.append(score(alive[0]))
    best = alive[0]
    size = best.parameters(config.tie_embeddings) * config.bytes_per_weight
    if history[-1] <= 0:
        raise MixwellError(f"no model of these ranges is within {config.limit_bytes} bytes; the nearest has "
                           f"{size:.0f}. Let the ranges begin lower, or raise limit_bytes.")
    return Found(best, int(size), best.flops(config.length), tuple(history))


def distillation(student: Tensor, teacher: Tensor, temperature: float = 10.0) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), mean over rows; no labels are read."""
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; expected above 0")
    rows = student.flatten(0, -2) / temperature
    wanted = teacher.detach().flatten(0, -2) / temperature
    apart = kl_div(rows.log_softmax(-1), wanted.log_softmax(-1), log_target=True, reduction="batchmean")
    return temperature**2 * apart


def example(generator: torch.Generator) -> dict[str, Any]:
    """A model of at most 100 kB."""
    config = Config(limit_bytes=100_000, vocab_size=(64, 512, 64), dim=(8, 64, 8), hidden_dim=(8, 128, 8),
                    layers=(1, 4, 1), population=12, generations=8)
    return {"config": config, "generator": generator}
