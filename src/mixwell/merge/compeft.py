"""ComPEFT: a task vector as signs of its largest entries times one number, small to send and good to merge.

**Equation:** t = w - w_0 over the whole model; keep the share k of largest |t|; t' = alpha std(t) sign(t) there, 0
    elsewhere; w = w_0 + lambda sum_i a_i t'_i. Stored by Golomb's code of the gaps between entries kept, a sign each,
    and one number of 16 bits: about -(1 - k) log2(1 - k) - k log2 k + k bits a weight.
**Shapes:** any; the threshold and std(t) are those of all of a model's tensors together.
**Reference:** Yadav, Choshen, Raffel and Bansal 2023 (2311.13171), algorithm 1, section 2.
**Differs:** alpha is given, not tuned on validation; entries as large as the last one kept are all kept. Gaps are coded
    with Rice's powers of two.
**Fails when:** tensors of the adapter have unlike scales: one number wipes out the small ones.
**Cost:** O(models) a number, each read five times; holds pieces.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.merge._parts import MANY, Each, call, check_share, each, fine_tunes, needed
from mixwell.merge._quantiles import smallest
from mixwell.merge.overview import Pieces, alone

MODELS = range(1, MANY)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of ComPEFT."""

    density: float = 0.2  # k: share of entries kept
    alpha: float = 1.0  # size of what is kept, in standard deviations of all
    weight: Each = 1.0  # a_i
    scale: float = 1.0  # lambda

    def __post_init__(self) -> None:
        check_share(self.density, "density")


class Signs(NamedTuple):
    """Of one task vector: the least |t| kept, and what stands for all of them."""

    least: float
    size: float

    def of(self, delta: Tensor) -> Tensor:
        """t'."""
        kept = delta.abs().float() >= self.least
        return self.size * delta.sign() * kept


def overview(pieces: Pieces, count: int, config: Config) -> list[Signs]:
    """Thresholds and deviations over the whole model."""
    changes = [Change(pieces, place) for place in range(count)]
    return [_signs(change, config) for change in changes]


class Change(NamedTuple):
    """What one model learned, piece by piece."""

    pieces: Pieces
    place: int

    def values(self) -> Iterator[Tensor]:
        """The changes."""
        for tensors, base in self.pieces():
            yield tensors[self.place] - needed(base)

    def sizes(self) -> Iterator[Tensor]:
        """Their sizes."""
        for delta in self.values():
            yield delta.abs()


def _signs(change: Change, config: Config) -> Signs:
    """The threshold and the size of one model's changes."""
    whole, deviation = _deviation(change.values())
    kept = int(config.density * whole)
    if kept == 0:
        return Signs(math.inf, 0.0)
    (least,) = smallest(change.sizes, [whole - kept])
    return Signs(least, config.alpha * deviation)


def _deviation(changes: Iterator[Tensor]) -> tuple[int, float]:
    """(how many numbers, their standard deviation), in float64."""
    count, total, squares = 0, 0.0, 0.0
    for delta in changes:
        wide = delta.double()
        count += wide.numel()
        total += wide.sum().item()
        squares += wide.square().sum().item()
    around = squares - total**2 / count
    variance = max(around, 0.0) / max(count - 1, 1)
    return count, math.sqrt(variance)


@method(title="ComPEFT", paper="ComPEFT: Compression for Communicating Parameter Efficient Updates via Sparsification "
                               "and Quantization", year=2023, tags={"base", "elementwise", "overviews"})
def compeft(tensors: Sequence[Tensor], base: Tensor | None, config: Config, generator: torch.Generator,
            known: Sequence[Signs] | None = None) -> Tensor:
    """The base and ternary changes. known: what `overview` found; else these tensors are the whole model."""
    start = needed(base)
    signs = known or overview(alone(tensors, base), len(tensors), config)
    weights = each(config.weight, len(tensors), "weight")
    merged = torch.zeros_like(start)
    for tensor, own, weight in zip(tensors, signs, weights):
        ternary = own.of(tensor - start)
        merged += weight * ternary
    return start + config.scale * merged


def bits_per_weight(density: float) -> float:
    """The entropy of signs of a share `density` of entries: no code takes less."""
    if density in (0.0, 1.0):
        return density
    zeros = 1 - density
    return -zeros * math.log2(zeros) - density * math.log2(density) + density


def rice_bits(density: float) -> int:
    """Bits of a gap's remainder, from the mean gap."""
    if density <= 0:
        return 0
    return max(0, math.floor(math.log2(max(1.0, math.log(2) / density))))


def encoded(ternary: Tensor) -> bytes:
    """A flat tensor of -1, 0 and 1 as bits: for each entry that is not 0 the gap before it in Rice's code, its sign."""
    entries = ternary.numpy()
    (places,) = np.nonzero(entries)
    signs = entries[places] > 0
    count = len(places)
    share = count / max(len(entries), 1)
    width = rice_bits(share)
    gaps = np.diff(places, prepend=-1) - 1
    bits = _rice(gaps, signs, width)
    head = count.to_bytes(8, "little") + bytes([width])
    return head + np.packbits(bits).tobytes()


def _rice(gaps: np.ndarray, signs: np.ndarray, width: int) -> np.ndarray:
    """For each gap its upper part in ones and a zero, `width` bits of the rest, and the sign behind them."""
    ones = gaps >> width
    lengths = ones + 2 + width
    ends = np.cumsum(lengths)
    starts = ends - lengths
    bits = np.zeros(int(lengths.sum()), dtype=np.uint8)
    before = np.cumsum(ones) - ones  # ones of earlier gaps
    unary = np.repeat(starts - before, ones)
    unary += np.arange(len(unary))
    bits[unary] = 1
    for bit in range(width):
        shift = width - 1 - bit
        place = starts + ones + 1 + bit
        bits[place] = (gaps >> shift) & 1
    bits[ends - 1] = signs
    return bits


def decoded(data: bytes, count: int) -> Tensor:
    """The `count` entries that `encoded` wrote."""
    kept = int.from_bytes(data[:8], "little")
    width = data[8]
    raw = np.frombuffer(data[9:], dtype=np.uint8)
    bits = np.unpackbits(raw)
    ternary = torch.zeros(count)
    at, place = 0, -1
    for _ in range(kept):
        ones = int(np.argmin(bits[at:]))
        start = at + ones + 1
        behind = start + width
        digits = "".join(map(str, bits[start:behind]))
        rest = int(digits or "0", 2)
        place += (ones << width) + rest + 1
        ternary[place] = 1.0 if bits[behind] else -1.0
        at = behind + 1
    return ternary


def example(generator: torch.Generator) -> dict[str, Any]:
    """Three fine-tunes and their base."""
    base, tensors = fine_tunes(generator, 3)
    config = Config(density=0.5)
    return call(tensors, base, config, generator)
