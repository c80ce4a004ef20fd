"""BCT: every tensor of a model in small integers, cut in blocks that each have a power of two of their own.

**Equation:** block by block: s = the largest shift at which max |w| 2^s <= L, q = round(w 2^s), w' = q 2^-s, L =
    2^(b - 1) - 1.
**Shapes:** w [..., O, I] in blocks of R x G numbers; other tensors in runs of R G numbers.
**Reference:** Dong et al. 2023, BCT (blockwise compression of transformers without retraining).
**Differs:** large weights and the head become codes, with an exponent for each G numbers of a row, the same one through
    a block's rows. Embedding, norms, routers and biases are rounded and stay in the type they were in. Inputs of
    products are rounded token by token (`input_bits`), with a scale that is no power of two; what softmax, gates and
    norms give is not rounded, and products are taken in floating point.
**Fails when:** one number of a block is far above the others; a power of two wastes up to a bit, on average half.
**Cost:** b + 8 / G bits per weight as stored, b + 8 / (R G) with an exponent a block, which the record tells; one pass
    over the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mixwell.core.checkpoint import Checkpoint
from mixwell.core.method import method
from mixwell.kernels.codes import BYTE, E8M0_BIAS
from mixwell.mixing import check_above, check_least
from mixwell.precision._parts import (
    Coded,
    Grid,
    check_bits,
    check_input_bits,
    chosen,
    each_weight,
    grouped,
    on_grid,
    positive,
    quantised_example,
    top,
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of BCT."""

    bits: int = 4  # b of large weights, 2 to 8
    group_size: int = 64  # G, numbers of a row in a block; 0: the whole row
    rows: int = 16  # R, rows in a block; 0: all of them
    others: int = 8  # bits of every other tensor, 2 to 8; 0 leaves them as they are
    input_bits: int = 8  # of the inputs of products, 2 to 8; 0 leaves them as they are
    head: bool = True  # whether the output head becomes codes
    max_kl_nats: float = 1.0  # promised: mean KL per token of the logits before and after, above 0

    def __post_init__(self) -> None:
        check_bits(self)
        check_input_bits(self)
        check_least(self, rows=0)
        check_above(self, max_kl_nats=0)
        if self.others and not 2 <= self.others <= BYTE:
            raise ValueError(f"others is {self.others}; expected 2 to {BYTE}, or 0")


def promises(config: Config) -> dict[str, float]:
    """What the receipt must show."""
    return {"kl_nats": config.max_kl_nats}


def exponents(largest: Tensor, bits: int) -> Tensor:
    """-s of blocks with these largest magnitudes, as it is stored: uint8 with its bias."""
    step = positive(largest) / top(bits)
    mantissa, above = torch.frexp(step)  # step = mantissa 2^above, mantissa from 0.5 to below 1
    whole = (mantissa == 0.5).int()
    kept = (above - whole).clamp(-E8M0_BIAS, E8M0_BIAS)
    return (kept + E8M0_BIAS).to(torch.uint8)


def largest_of_blocks(groups: Tensor, rows: int) -> Tensor:
    """The largest magnitude [..., O, C] of the block that each group [..., O, C, G] is in."""
    largest = groups.abs().amax(-1)
    count = largest.shape[-2]
    found = []
    for block in largest.split(rows or count, -2):
        most = block.amax(-2, keepdim=True)
        found.append(most.expand_as(block))
    return torch.cat(found, -2)


def encode(weight: Tensor, config: Config) -> Coded:
    """The codes of a weight [..., O, I]."""
    groups = grouped(weight, config.group_size)
    largest = largest_of_blocks(groups, config.rows)
    scale = exponents(largest, config.bits)
    grid = Grid(scale, None, config.bits)
    codes = grid.codes(groups)
    return on_grid(weight, grid, codes, config.input_bits)


def rounded_runs(tensor: Tensor, length: int, bits: int) -> Tensor:
    """A tensor with every run of so many numbers rounded; the last run may be shorter."""
    numbers = tensor.double().flatten()
    missing = -len(numbers) % length
    runs = F.pad(numbers, (0, missing)).unflatten(0, (-1, length))
    largest = runs.abs().amax(-1)
    grid = Grid(exponents(largest, bits), None, bits)
    rounded = grid.nearest(runs).flatten()
    return rounded[: len(numbers)].view_as(tensor).to(tensor.dtype)


def others(tensors: Mapping[str, Tensor], coded: set[str], config: Config) -> dict[str, Tensor]:
    """Every floating tensor that does not become codes, rounded."""
    made = {}
    for name, tensor in tensors.items():
        if name in coded or not tensor.is_floating_point() or not tensor.numel():
            continue
        width = config.group_size or tensor.shape[-1:].numel()
        length = width * max(1, config.rows)
        made[name] = rounded_runs(tensor, length, config.others)
    return made


def bits_per_weight(config: Config, width: int) -> float:
    """Stored bits for each weight of a row of `width`, exponents included, without the bits of rows."""
    return config.bits + 8 / (config.group_size or width)


def told(checkpoint: Checkpoint, names: list[str], config: Config) -> dict[str, Any]:
    """The record: bits of codes and exponents, an exponent a block, and what else was rounded."""
    numbers, blocks = 0, 0
    for name in names:
        *lead, count, width = checkpoint.tensors[name].shape
        matrices = lead[0] if lead else 1
        down = -(-count // (config.rows or count))
        across = width // (config.group_size or width)
        numbers += checkpoint.tensors[name].numel()
        blocks += matrices * down * across
    bits = config.bits + 8 * blocks / numbers
    return {"blocks": {"bits_per_weight": bits, "bits_of_other_tensors": config.others}}


@method(title="BCT: integers in blocks with powers of two",
        paper="Blockwise Compression of Transformer-based Models without Retraining", year=2023,
        tags={"codes", "nearest"})
def blockwise(checkpoint: Checkpoint, config: Config, generator: torch.Generator) -> Checkpoint:
    """A checkpoint whose tensors are all rounded in blocks. Draws nothing from `generator`.

    Raises `MixwellError` as `precision.integers`.
    """
    names = chosen(checkpoint, config.head)
    tensors = dict(checkpoint.tensors)
    if config.others:
        tensors |= others(tensors, set(names), config)
    rounded = checkpoint.derive(tensors=tensors)
    record = told(checkpoint, names, config)
    return each_weight(rounded, config.head, lambda weight: encode(weight, config), record)


def example(generator: torch.Generator) -> dict[str, Any]:
    """One layer's mixture."""
    return {"checkpoint": quantised_example(generator), "config": Config(group_size=8, rows=4),
            "generator": generator}
