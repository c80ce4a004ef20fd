"""JLCM: the words of a codebook and which word each weight takes are learned together, one word up or down at a time.

**Equation:** w'_oi = s_o c[k_oi], c sorted, k = floor(z + 1/2). Minimise tr(D H D^T), D = W' - W, H = 2 / n sum x x^T.
    The slope of c_k is that of its weights, s_o dL/dw'; z takes s_o dL/dw' as its own, as if words stood one apart, and
    moves by one at most. Start: rows alike in spread and quantiles share s, their root mean square; c by k-means of
    w / s; z = k.
**Shapes:** W [O, I], H [I, I], c [2^b], z [O, I]; each expert of a stack by itself.
**Reference:** Yvinec et al. 2023, JLCM (no public code; the abstract and what reviewers say of the method).
**Differs:** the rule by which rows are grouped is not told; here it is k-means of their quantiles. Groups have scales,
    not codebooks of their own, and rows stay in their places: a scale is kept for each row, the same one in a group.
    The squared error of all text by its second moments stands in for batches; the best step of all is kept.
**Fails when:** bits are many: then words are so dense that nearest ones serve.
**Cost:** O(O I^2) a step; b bits per weight with 16 / I of scales and 16 2^b / (O I) of words.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mixwell.core.checkpoint import Checkpoint
from mixwell.core.method import method
from mixwell.kernels.codes import BYTE
from mixwell.mixing import check_above, check_least
from mixwell.mixing.calibration import Inputs, Needs
from mixwell.precision._parts import Coded, by_table, chosen, each_coded, positive, quantised_example
from mixwell.precision._statistics import by_moments
from mixwell.precision._words import clustered, means, nearest_words

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)  # of a row, by which it is grouped


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of JLCM."""

    bits: int = 3  # b, 1 to 8
    groups: int = 0  # of rows that share a scale; 0: each row has its own
    clustering: int = 30  # rounds of k-means at most
    steps: int = 400  # of Adam on words and mappings
    lr: float = 0.05  # of z, above 0; falls to nothing along a line
    word_lr: float = 0.01  # of c, above 0; likewise
    tokens: int = 16_384  # of calibration text
    max_kl_nats: float = 1.0  # promised: mean KL per token of the logits before and after, above 0

    def __post_init__(self) -> None:
        check_least(self, bits=1, groups=0, clustering=1, steps=0, tokens=1)
        check_above(self, lr=0, word_lr=0, max_kl_nats=0)
        if self.bits > BYTE:
            raise ValueError(f"bits is {self.bits}; expected 1 to {BYTE}")


def needs(config: Config) -> Needs:
    """Text, for the inputs of every weight."""
    return Needs(tokens=config.tokens)


def promises(config: Config) -> dict[str, float]:
    """What the receipt must show."""
    return {"kl_nats": config.max_kl_nats}


def scales(weight: Tensor, groups: int, rounds: int, generator: torch.Generator) -> Tensor:
    """s [O], the root mean square of a row or of all rows of its group."""
    squares_O = weight.square().mean(1)
    if groups:
        shares = torch.tensor(QUANTILES, dtype=weight.dtype, device=weight.device)
        quantiles = torch.quantile(weight, shares, dim=1)
        spread = weight.std(1)
        traits_OQ = torch.cat([quantiles, spread[None]]).T
        middles = clustered(traits_OQ, groups, rounds, generator)
        group_O = nearest_words(traits_OQ, middles)
        of_group = means(squares_O[:, None], group_O, torch.zeros_like(middles[:, :1]))
        squares_O = of_group[group_O, 0]
    return positive(squares_O.sqrt().to(torch.bfloat16))


@dataclass(frozen=True, eq=False)
class Mapped:
    """A matrix as words of one codebook."""

    words_K: Tensor  # sorted
    codes_OI: Tensor  # int64
    scale_O: Tensor

    def weight(self) -> Tensor:
        """The matrix [O, I]."""
        return self.scale_O.unsqueeze(1) * self.words_K[self.codes_OI]


def start(weight: Tensor, config: Config, generator: torch.Generator) -> Mapped:
    """Words by k-means, each weight at the nearest."""
    scale_O = scales(weight, config.groups, config.clustering, generator).to(weight.dtype)
    shares = weight / scale_O.unsqueeze(1)
    points_N1 = shares.reshape(-1, 1)
    words_K1 = clustered(points_N1, 2**config.bits, config.clustering, generator)
    words_K, _ = words_K1.flatten().sort()
    codes_N = nearest_words(points_N1, words_K[:, None])
    return Mapped(words_K, codes_N.view_as(weight), scale_O)


def slopes(found: Mapped, weight: Tensor, moments_II: Tensor) -> tuple[Tensor, Tensor, float]:
    """(by z [O, I], by the words [K], the error)."""
    change = found.weight() - weight
    outputs = change @ moments_II
    squares = outputs * change
    scale_O1 = found.scale_O.unsqueeze(1)
    by_z = 2 * outputs * scale_O1
    codes_N = found.codes_OI.flatten()
    by_words = torch.zeros_like(found.words_K)
    by_words.index_add_(0, codes_N, by_z.flatten())
    return by_z, by_words, float(squares.sum())


def resorted(words_K: Tensor, z_OI: Tensor) -> tuple[Tensor, Tensor]:
    """The words in order, and each z at the new place of its word."""
    ordered_K, order_K = words_K.sort()
    place_K = order_K.argsort()
    codes_OI = nearest_place(z_OI)
    beside = z_OI - codes_OI
    return ordered_K, place_K[codes_OI] + beside


def nearest_place(z_OI: Tensor) -> Tensor:
    """k, halves up."""
    return (z_OI + 0.5).floor().long()


def learn(found: Mapped, weight: Tensor, moments_II: Tensor, config: Config) -> Mapped:
    """The best of all steps of descent on words and mappings."""
    words = found.words_K.clone()
    z = found.codes_OI.to(weight.dtype)
    last = len(words) - 1
    rates = [{"params": [z], "lr": config.lr}, {"params": [words], "lr": config.word_lr}]
    optimiser = torch.optim.Adam(rates)
    falling = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, max(1, config.steps))
    best, least = found, float("inf")
    for step in range(config.steps + 1):
        now = Mapped(words.clone(), nearest_place(z), found.scale_O)
        z.grad, words.grad, error = slopes(now, weight, moments_II)
        if error < least:
            best, least = now, error
        if step == config.steps:
            break
        before = z.clone()
        optimiser.step()
        falling.step()
        near = torch.clamp(z, before - 1, before + 1)
        inside = near.clamp(0, last)
        ordered, places = resorted(words, inside)
        words.copy_(ordered)
        z.copy_(places)
    return best


def encode(weight: Tensor, moments_II: Tensor, config: Config, generator: torch.Generator) -> Coded:
    """The codes of a matrix [O, I] whose inputs have these second moments."""
    wide = weight.double()
    moments_II = moments_II.double()
    first = start(wide, config, generator)
    found = learn(first, wide, moments_II, config)
    scale = found.scale_O.to(torch.bfloat16)
    scale_O1 = scale.unsqueeze(1)
    codes = found.codes_OI.unsqueeze(1)
    words = found.words_K.half()
    return by_table(weight, codes, scale_O1, words)


def encode_all(weight: Tensor, moments: Tensor, config: Config, generator: torch.Generator) -> Coded:
    """The codes of a matrix, or of each expert of a stack; moments [I, I] are all experts', [E, I, I] one for each."""
    return each_coded(weight, moments, 2, partial(encode, config=config, generator=generator))


@method(title="JLCM: words and mappings learned together",
        paper="Network Memory Footprint Compression Through Jointly Learnable Codebooks and Mappings", year=2023,
        tags={"codes", "calibrated"})
def joint_codebooks(checkpoint: Checkpoint, config: Config, generator: torch.Generator,
                    calibration: Inputs) -> Checkpoint:
    """A checkpoint whose large weights are words of a codebook a matrix. `generator` draws the first words.

    Raises `MixwellError` as `precision.integers`.
    """
    names = chosen(checkpoint, False)

    def encoded(weight: Tensor, moments: Tensor) -> Coded:
        return encode_all(weight, moments, config, generator)

    return by_moments(checkpoint, names, calibration, encoded)


def example(generator: torch.Generator) -> dict[str, Any]:
    """One layer's mixture."""
    config = Config(tokens=72, steps=5, clustering=3)
    return {"checkpoint": quantised_example(generator), "config": config, "generator": generator}
