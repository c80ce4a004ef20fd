"""K-sort: cached keys in block floating point, channels of like size side by side.

**Equation:** in each block of n channels of a key, in the order pi of its head: e = floor(log2 max |k|), q =
    clamp(round(k 2^(m - 2 - e)), -L, L), k' = q 2^(e - m + 2), L = 2^(m - 1) - 1. pi sorts channels by the norms of
    their rows of W_k, largest first; both members of a rotary pair count as the pair. Queries in the order pi give the
    same scores.
**Shapes:** keys [B, G, S, P] behind the rotation, sizes [G, P]: an order for each of G heads of keys.
**Reference:** Trukhanov and Soloveychik 2024 (2403.20137).
**Differs:** channels go back to their places when keys are read, so that rotation and queries stay as they are. Sizes
    may come from keys over text (`key_sizes`) as well as from weights (`row_sizes`). Queries are not rounded.
**Fails when:** a block is as wide as a head: then no order changes anything. Queries of like size in all channels: then
    the error of large ones counts most, which stays. Norms of weights do not know the inputs.
**Cost:** m + 8 / n bits a number; one gather a key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.kernels.codes import BYTE
from mixwell.mixing import check_least
from mixwell.precision.activations._parts import Rounded


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of keys in blocks."""

    bits: int = 4  # m, of a mantissa with its sign, 2 to 8
    block: int = 32  # n, channels that share an exponent, a divisor of P
    sort: bool = True  # whether channels of like size share blocks; else as they come

    def __post_init__(self) -> None:
        check_least(self, block=1)
        if not 2 <= self.bits <= BYTE:
            raise ValueError(f"bits is {self.bits}; expected 2 to {BYTE}")


def paired(sizes_GP: Tensor, turned: int) -> Tensor:
    """Sizes whose first `turned` channels, which turn in pairs (i, i + turned / 2), count as their pair's."""
    turning_GR, still = sizes_GP.split([turned, sizes_GP.shape[1] - turned], 1)
    halves = turning_GR.unflatten(1, (2, -1))
    both = halves.square().sum(1).sqrt()
    return torch.cat([both, both, still], 1)


def row_sizes(weight_GPD: Tensor, turned: int) -> Tensor:
    """Norms of the rows of W_k [G, P]."""
    return paired(weight_GPD.norm(dim=-1), turned)


def key_sizes(keys_BGSP: Tensor, turned: int) -> Tensor:
    """Root mean squares of keys over text [G, P]."""
    squares = keys_BGSP.square().mean((0, 2))
    return paired(squares.sqrt(), turned)


def in_blocks(x: Tensor, block: int, bits: int) -> Tensor:
    """x [..., P] in block floating point."""
    groups = x.unflatten(-1, (-1, block))
    largest = groups.abs().amax(-1, keepdim=True)
    _, above = torch.frexp(largest)  # largest = mantissa 2^above, mantissa from 0.5 to below 1
    places = above - 1 - bits + 2
    one = torch.ones_like(largest)
    step = torch.ldexp(one, places)
    most = 2 ** (bits - 1) - 1
    steps = (groups / step).round()
    kept = steps.clamp(-most, most)
    return (kept * step).flatten(-2)


def rounded_keys(keys_BGSP: Tensor, sizes_GP: Tensor, config: Config) -> Tensor:
    """Keys as they are read back."""
    if not config.sort:
        return in_blocks(keys_BGSP, config.block, config.bits)
    order_GP = sizes_GP.argsort(dim=1, descending=True, stable=True)
    order = order_GP.unsqueeze(1).expand_as(keys_BGSP)
    kept = in_blocks(keys_BGSP.gather(-1, order), config.block, config.bits)
    back = order.argsort(-1)
    return kept.gather(-1, back)


@method(title="K-sort: keys in block floating point", paper="Accurate Block Quantization in LLMs with Outliers",
        year=2024)
def key_blocks(keys_BGSP: Tensor, sizes_GP: Tensor, config: Config) -> Rounded:
    """Keys rounded in blocks, the sizes of their channels given. `serve.keeping.rounded` makes a model's cache so.

    Raises ValueError where a block does not divide a head.
    """
    width = keys_BGSP.shape[-1]
    if width % config.block:
        raise ValueError(f"blocks of {config.block} do not divide heads of {width}; choose a divisor")
    values = rounded_keys(keys_BGSP, sizes_GP, config)
    bits = keys_BGSP.numel() * (config.bits + 8 / config.block)
    return Rounded(values, keys_BGSP, bits)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Keys of two heads whose channels differ in size."""
    sizes_GP = torch.rand(2, 16, generator=generator) * 8
    keys = torch.randn(1, 2, 5, 16, generator=generator) * sizes_GP.unsqueeze(1)
    return {"keys_BGSP": keys, "sizes_GP": sizes_GP, "config": Config(block=4)}
