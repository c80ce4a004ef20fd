"""Linear merge: the weighted mean of the models' weights (model soups).

**Equation:** w = sum_i a_i w_i / sum_i a_i; without `normalize` the sum itself.
**Shapes:** any; one tensor of every model, all alike.
**Reference:** Wortsman et al. 2022 (2203.05482), uniform soup.
**Differs:** none.
**Fails when:** the models have no common ancestor: their hidden units mean different things.
**Cost:** O(models) a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.merge._parts import MANY, Each, call, drawn, each, weighted_sum

MODELS = range(1, MANY)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the linear merge."""

    weight: Each = 1.0  # a_i: one number, or one a model
    normalize: bool = True  # divide by the sum of the weights


@method(title="Linear merge", year=2022, tags={"elementwise", "averages"})
def linear(tensors: Sequence[Tensor], base: Tensor | None, config: Config, generator: torch.Generator) -> Tensor:
    """The weighted mean of `tensors`. Weights that sum to zero raise `ValueError` where they are divided by it."""
    weights = each(config.weight, len(tensors), "weight")
    total = weighted_sum(tensors, weights)
    if not config.normalize:
        return total
    divisor = sum(weights)
    if divisor == 0:
        raise ValueError("the weights sum to 0; give others, or normalize: false")
    return total.div_(divisor)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Three models."""
    config = Config(weight=(1.0, 2.0, 1.0))
    return call(drawn(generator, 3), None, config, generator)
