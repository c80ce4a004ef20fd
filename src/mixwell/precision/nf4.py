"""NF4: four bits whose sixteen values are quantiles of a normal distribution, with the largest magnitude of a group.

**Equation:** s = max |w| of a group, c = argmin_k |w / s - T_k|, w' = s T_c; T are 16 quantiles from -1 to 1.
**Shapes:** w [..., O, I] -> codes of 4 bits, s [..., O, I / G].
**Reference:** Dettmers et al. 2023, QLoRA (2305.14314), section 3 and appendix E.
**Differs:** groups lie within a row; scales are bfloat16 rather than float32, and not quantised a second time. Ties
    take the lower value.
**Fails when:** weights are not close to normal; at equal bits other four-bit formats are as good on normal ones.
**Cost:** 4 + 16 / G bits per weight, and the table once a matrix; one pass over the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.core.checkpoint import Checkpoint
from mixwell.core.method import method
from mixwell.mixing import check_above, check_least
from mixwell.precision._parts import Coded, by_table, each_weight, grouped, positive, quantised_example

BITS = 4
TABLE = (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
         -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634,
         0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of NF4."""

    group_size: int = 64  # G, numbers of a row that share a scale; 0: the whole row
    head: bool = False  # quantise the output head too
    max_kl_nats: float = 1.0  # promised: mean KL per token of the logits before and after, above 0

    def __post_init__(self) -> None:
        check_least(self, group_size=0)
        check_above(self, max_kl_nats=0)


def promises(config: Config) -> dict[str, float]:
    """What the receipt must show."""
    return {"kl_nats": config.max_kl_nats}


def encode(weight: Tensor, config: Config) -> Coded:
    """The codes of a weight [..., O, I]."""
    groups = grouped(weight, config.group_size)
    largest = groups.abs().amax(-1)
    scale = positive(largest.to(torch.bfloat16))
    table = torch.tensor(TABLE, device=weight.device)
    middles = (table[1:] + table[:-1]) / 2
    unit = scale.to(groups.dtype)
    shares = groups / unit.unsqueeze(-1)
    codes = torch.bucketize(shares, middles.to(shares.dtype))
    return by_table(weight, codes, scale, table)


def bits_per_weight(config: Config, width: int) -> float:
    """Stored bits for each weight of a row of `width`, scales included, without table and the bits of rows."""
    return BITS + 16 / (config.group_size or width)


@method(title="Four-bit normal floats (NF4)", paper="QLoRA: Efficient Finetuning of Quantized LLMs", year=2023,
        tags={"codes", "nearest"})
def nf4(checkpoint: Checkpoint, config: Config, generator: torch.Generator) -> Checkpoint:
    """A checkpoint whose large weights are NF4. Draws nothing from `generator`.

    Raises `MixwellError` where weights are quantised already, none is there, or a group does not divide a row.
    """
    return each_weight(checkpoint, config.head, lambda weight: encode(weight, config))


def example(generator: torch.Generator) -> dict[str, Any]:
    """One layer's mixture."""
    return {"checkpoint": quantised_example(generator), "config": Config(group_size=8), "generator": generator}
