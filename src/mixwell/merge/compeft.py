"""ComPEFT: a task vector as signs of its largest entries times one number, small to send and good to merge.

**Equation:** t = w - w_0 over the whole model; keep the share k of largest |t|; t' = alpha std(t) sign(t) there, else 0;
    w = w_0 + lambda sum_i a_i t'_i. Stored by Golomb's code of the gaps between entries kept, a sign each, and one
    number of 16 bits: about -(1 - k) log2(1 - k) - k log2 k + k bits a weight.
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
from mixwell.merge._parts import MANY, Each, check_share, each, needed
from mixwell.merge._quantiles import smallest
from mixwell.merge.overview import Pieces

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
    found = []
    for place in range(count):
        def changes(place: int = place) -> Iterator[Tensor]:
            return (tensors[place] - needed(base) for tensors, base in pieces())

        whole, deviation = _deviation(changes())
        kept = int(config.density * whole)
        if kept == 0:
            found.append(Signs(math.inf, 0.0))
            continue
        (least,) = smallest(lambda: (delta.abs() for delta in changes()), [whole - kept])  # noqa: B023  # called here
        found.append(Signs(least, config.alpha * deviation))
    return found


def _deviation(changes: Iterator[Tensor]) -> tuple[int, float]:
    """(how many numbers, their standard deviation), in float64."""
    count, total, squares = 0, 0.0, 0.0
    for delta in changes:
        wide = delta.double()
        count += wide.numel()
        total += float(wide.sum())
        squares += float(wide.square().sum())
    variance = (squares - total**2 / count) / max(count - 1, 1)
    return count, math.sqrt(max(variance, 0.0))


@method(title="ComPEFT", paper="ComPEFT: Compression for Communicating Parameter Efficient Updates via Sparsification "
                               "and Quantization", year=2023, tags={"base", "elementwise", "overviews"})
def compeft(tensors: Sequence[Tensor], base: Tensor | None, config: Config, generator: torch.Generator,
            known: Sequence[Signs] | None = None) -> Tensor:
    """The base and ternary changes. known: what `overview` found; else these tensors are the whole model."""
    start = needed(base)
    signs = known or overview(lambda: iter([(list(tensors), base)]), len(tensors), config)
    merged = torch.zeros_like(start)
    for tensor, own, weight in zip(tensors, signs, each(config.weight, len(tensors), "weight")):
        merged += weight * own.of(tensor - start)
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
    places = torch.nonzero(ternary).flatten().numpy()
    width = rice_bits(len(places) / max(len(ternary), 1))
    gaps = np.diff(places, prepend=-1) - 1
    ones = gaps >> width
    lengths = ones + 2 + width
    starts = np.concatenate([[0], np.cumsum(lengths)])
    bits = np.zeros(int(starts[-1]), dtype=np.uint8)
    unary = np.repeat(starts[:-1] - np.concatenate([[0], np.cumsum(ones)[:-1]]), ones) + np.arange(int(ones.sum()))
    bits[unary] = 1
    for bit in range(width):
        bits[starts[:-1] + ones + 1 + bit] = (gaps >> (width - 1 - bit)) & 1
    bits[starts[1:] - 1] = ternary.numpy()[places] > 0
    head = len(places).to_bytes(8, "little") + bytes([width])
    return head + np.packbits(bits).tobytes()


def decoded(data: bytes, count: int) -> Tensor:
    """The `count` entries that `encoded` wrote."""
    kept, width = int.from_bytes(data[:8], "little"), data[8]
    bits = np.unpackbits(np.frombuffer(data[9:], dtype=np.uint8))
    ternary = torch.zeros(count)
    at, place = 0, -1
    for _ in range(kept):
        end = at + int(np.argmin(bits[at:]))
        rest = bits[end + 1 : end + 1 + width]
        gap = ((end - at) << width) + int("".join(map(str, rest)) or "0", 2)
        place += gap + 1
        sign = bits[end + 1 + width]
        ternary[place] = 1.0 if sign else -1.0
        at = end + 2 + width
    return ternary


def example(generator: torch.Generator) -> dict[str, Any]:
    """Three fine-tunes and their base."""
    base = torch.randn(4, 5, generator=generator)
    tensors = [base + torch.randn(4, 5, generator=generator) for _ in range(3)]
    return {"tensors": tensors, "base": base, "config": Config(density=0.5), "generator": generator}
