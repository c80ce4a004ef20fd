"""Sparse kernel selection: binary kernels drawn from a learned few of all sign patterns, none of them twice.

**Equation:** B [2^L, L] all sign patterns of L weights. P = Sinkhorn((X + G) / tau), G Gumbel noise in training; hard
    P = argmax of <P', P> over permutations P'; the codewords are U = (first n columns of P)^T B. Straight through: U is
    the hard one's forward, the soft one's backward. Each piece w of L weights becomes the u of U with the largest
    w . u (the nearest); its gradient goes to w where |w| <= 1 and to that u. y = alpha (sign(x) W^T), alpha = mean |w|
    of a row.
**Shapes:** x [..., D], w [M, D], D a multiple of L: an unfolded 3 x 3 convolution has L = 9; X [2^L, 2^L].
**Reference:** Wang et al. 2023 (2303.14470), sections 3 and 4; patterns and scales as in the authors' earlier SNN.
**Differs:** the permutation is sought anew every `every` steps and stays between, its soft form is taken each step;
    inputs are signs with the clipped slope.
**Fails when:** tau is far below 0.1: no gradient reaches X; n is 2^L: nothing is left to select, and it is a plain
    binary product. Needs SciPy (mixwell[tables]) for the assignment.
**Cost:** log2(n) / L bits a weight and L n a layer; a Sinkhorn of (2^L)^2 numbers a step while X is learned, and an
    assignment now and then.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.mixing import check_above, check_least, check_most
from mixwell.precision.training._parts import Product, product_example, sign

LARGEST = 10  # L at most: X has 4^L numbers
LEAST = 1e-9  # of a uniform draw


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of kernel selection."""

    length: int = 9  # L, weights of a piece, 1 to 10; 9: kernels of 3 by 3
    words: int = 32  # n, codewords that are selected, 2^L at most
    tau: float = 0.1  # temperature of the soft permutation, above 0
    rounds: int = 10  # of normalising rows and columns
    every: int = 5  # steps between assignments

    def __post_init__(self) -> None:
        check_least(self, length=1, words=1, rounds=1, every=1)
        check_most(self, length=LARGEST)
        check_above(self, tau=0)
        most = 2**self.length
        if self.words > most:
            raise ValueError(f"words is {self.words}; {self.length} weights have {most} patterns")


def patterns(length: int) -> Tensor:
    """All sign patterns [2^L, L] in order: pattern i has 1 where the bits of i, highest first, are 1."""
    numbers = torch.arange(2**length).unsqueeze(-1)
    places = torch.arange(length).flip(0)
    bits = (numbers >> places) & 1
    return (2 * bits - 1).float()


def pattern_numbers(pieces: Tensor) -> Tensor:
    """The number of the pattern of each piece's signs [..., L], int64."""
    places = torch.arange(pieces.shape[-1]).flip(0)
    bits = (pieces >= 0).long()
    return (bits << places).sum(-1)


def sinkhorn(logits: Tensor, rounds: int) -> Tensor:
    """Nearly doubly stochastic [K, K]: exp of logits whose rows and columns are brought to sums of 1 in turn."""
    for _ in range(rounds):
        logits = logits - logits.logsumexp(-1, keepdim=True)
        logits = logits - logits.logsumexp(-2, keepdim=True)
    return logits.exp()


def assigned(soft: Tensor) -> Tensor:
    """The row of each column in the permutation that agrees with a soft one most, int64 [K]."""
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise MixwellError("kernel selection needs SciPy: pip install 'mixwell[tables]'.") from error
    scores = soft.detach().T
    _, rows = linear_sum_assignment(scores.numpy(), maximize=True)
    return torch.from_numpy(rows)


def nearest(pieces: Tensor, words: Tensor) -> Tensor:
    """Which of the words [n, L] is nearest to each piece [..., L], int64; the first of several."""
    agreement = pieces.detach() @ words.detach().T
    return agreement.argmax(-1)


def bits_per_weight(config: Config, weights: int) -> float:
    """Stored bits for each of a layer's `weights`, codewords included, without the rows' scales."""
    index = math.ceil(math.log2(config.words)) / config.length
    book = config.length * config.words
    return index + book / weights


@method(title="Binary kernels from a learned few of all sign patterns",
        paper="Compacting Binary Neural Networks by Sparse Kernel Selection", year=2023)
class KernelSelection(Product):
    """A linear map whose pieces are selected codewords; see the module's card."""

    config: Config
    learns = True
    book: Tensor
    rows: Tensor
    step: Tensor

    def __init__(self, shape: tuple[int, int], config: Config, generator: torch.Generator) -> None:
        super().__init__(shape, config, generator)
        if shape[1] % config.length:
            raise ValueError(f"rows of {shape[1]} weights; expected a multiple of length, {config.length}")
        self.generator = generator
        count = 2**config.length
        start = torch.randn(count, count, generator=generator)
        self.preference = nn.Parameter(start * config.tau)  # X
        book = patterns(config.length)
        self.register_buffer("book", book)
        self.register_buffer("rows", torch.zeros(count, dtype=torch.int64))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def start(self, weight: Tensor) -> None:
        """Begin with the patterns that a trained weight [M, D] has most, in that order."""
        pieces = weight.unflatten(-1, (-1, self.config.length))
        numbers = pattern_numbers(pieces)
        counts = torch.bincount(numbers.flatten(), minlength=len(self.book))
        order = counts.argsort(descending=True, stable=True)
        self.preference.zero_()
        places = torch.arange(len(order))
        self.preference[order, places] = 1.0
        self.step.zero_()

    def words(self) -> Tensor:
        """The selected codewords [n, L], of which none stands twice."""
        noise: Tensor | float = self._noise() if self.training else 0.0
        logits = (self.preference + noise) / self.config.tau
        soft = sinkhorn(logits, self.config.rounds)
        count = self.config.words
        rows = self._settled(soft)[:count]
        hard = self.book[rows]
        blend = soft[:, :count].T @ self.book
        return hard + (blend - blend.detach())

    def _settled(self, soft: Tensor) -> Tensor:
        """The rows of the permutation: in training those that stay between assignments, else the best now."""
        if not self.training:
            return assigned(soft)
        if int(self.step) % self.config.every == 0:
            self.rows.copy_(assigned(soft))
        self.step.add_(1)
        return self.rows

    def _noise(self) -> Tensor:
        """Gumbel draws over the temperature's own scale."""
        uniform = torch.rand(self.preference.shape, generator=self.generator)
        inner = -uniform.clamp_min(LEAST).log()
        return -self.config.tau * inner.log()

    def binary(self, weight: Tensor) -> Tensor:
        """The weight [M, D] in codewords, without scales."""
        pieces = weight.unflatten(-1, (-1, self.config.length))
        words = self.words()
        chosen = words[nearest(pieces, words)]
        kept = pieces.clamp(-1, 1)
        through = kept - kept.detach()
        whole = chosen + through
        return whole.flatten(-2)

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """[..., D] -> [..., M]."""
        kept = x.clamp(-1, 1)
        signs = sign(x.detach()) + (kept - kept.detach())
        y = F.linear(signs, self.binary(weight))
        sizes = weight.detach().abs()
        return y * sizes.mean(-1)


def example(generator: torch.Generator) -> dict[str, Any]:
    """A small weight and its inputs."""
    return product_example(generator, Config(length=4, words=5))
