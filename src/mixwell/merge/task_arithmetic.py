"""Task arithmetic: what models learned beyond their base, trimmed, agreed upon, scaled and added to it.

**Equation:** d_i = S(w_i - w_0), S trims and may rescale; m_i where a_i d_i has the sign of sum_j a_j d_j (`consensus`;
    a sum of zero counts as positive), else 1. w = w_0 + lambda sum_i m_i a_i d_i / q, q = sum_i m_i a_i (`normalize`,
    where it is not 0) or 1.
    S by `sparsify`: magnitude keeps the share `density` of largest |d|; outliers drops the share gamma of largest ones
    first; random keeps each with probability density; ranked with density - epsilon + 2 epsilon (rank - 1) / (L - 1),
    rank of |d| in its row of L (the smallest has rank 1). `rescale` restores sum |d|.
    Rows of `ROWS` are the published methods: task_arithmetic, ties, dare_*, breadcrumbs*, della*.
**Shapes:** any; magnitudes are compared within a tensor, ranks within a row of its second axis.
**Reference:** Ilharco et al. 2022 (2212.04089); TIES, Yadav et al. 2023 (2306.01708); DARE, Yu et al. 2023
    (2311.03099); Breadcrumbs, Davari and Belilovsky 2023 (2312.06795); DELLA, Deep et al. 2024 (2406.11617). Defaults
    of mergekit 0.1.5.
**Differs:** as mergekit does: breadcrumbs trims tensors, not rows; rescaling is by sum |d|, not by 1 / density. Here
    numbers as large as the last one kept are all kept. ranked takes rows of one number as the largest of theirs.
**Fails when:** tasks overlap and lambda is 1: changes add up beyond any one model's.
**Cost:** O(models) a number, each read twice; a selection a model and tensor where magnitudes count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.core.rng import spawn
from mixwell.merge._parts import MANY, Each, call, check_share, each, fine_tunes, majority, needed
from mixwell.merge._sparsify import Everything, Kept, Trim, decided

MODELS = range(1, MANY)
NOTHING = 1e-8  # sum of weights that is not divided by
Sparsifier = Literal["none", "magnitude", "outliers", "random", "ranked"]
ROWS: dict[str, dict[str, Any]] = {
    "task_arithmetic": {},
    "ties": {"sparsify": "magnitude", "consensus": True, "normalize": True},
    "dare_ties": {"sparsify": "random", "consensus": True, "rescale": True},
    "dare_linear": {"sparsify": "random", "rescale": True},
    "breadcrumbs": {"sparsify": "outliers"},
    "breadcrumbs_ties": {"sparsify": "outliers", "consensus": True},
    "della": {"sparsify": "ranked", "consensus": True, "normalize": True, "rescale": True},
    "della_linear": {"sparsify": "ranked", "rescale": True},
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of task arithmetic; a row of `ROWS` sets the first four."""

    sparsify: Sparsifier = "none"  # S
    consensus: bool = False  # entries that go against the majority's sign count for nothing
    normalize: bool = False  # divide by the sum of weights
    rescale: bool = False  # restore sum |d| after trimming
    weight: Each = 1.0  # a_i
    density: Each = 1.0  # share kept
    gamma: Each = 0.01  # share of largest entries dropped (outliers)
    epsilon: Each = 0.15  # half the spread of probabilities (ranked)
    scale: float = 1.0  # lambda

    def __post_init__(self) -> None:
        check_share(self.density, "density")
        check_share(self.gamma, "gamma")
        check_share(self.epsilon, "epsilon")


def survey(tensors: Sequence[Tensor], base: Tensor | None, config: Config, generator: torch.Generator) -> list[Kept]:
    """What is kept of each model's changes, which takes whole tensors to know."""
    count = len(tensors)
    densities = each(config.density, count, "density")
    gammas, epsilons = each(config.gamma, count, "gamma"), each(config.epsilon, count, "epsilon")
    found: list[Kept] = []
    for place, draws in enumerate(spawn(generator, count)):
        trim = Trim(densities[place], gammas[place], epsilons[place], config.rescale)
        if config.sparsify == "none" or trim.density >= 1:
            found.append(Everything())
            continue
        kept = decided(tensors, place, needed(base), config.sparsify, trim, draws)
        found.append(kept)
    return found


@method(title="Task arithmetic, TIES, DARE, Breadcrumbs, DELLA",
        paper="Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse Masks", year=2022,
        tags={"base", "elementwise", "surveys"})
def task_arithmetic(tensors: Sequence[Tensor], base: Tensor | None, config: Config,
                    generator: torch.Generator, known: Sequence[Kept] | None = None) -> Tensor:
    """The base and the models' changes. Weights or shares of another number than the models raise `ValueError`.

    known: what `survey` found, where these are pieces.
    """
    start = needed(base)
    weights = each(config.weight, len(tensors), "weight")
    kept = known or survey(tensors, base, config, generator)
    deltas = []
    for tensor, weight, part in zip(tensors, weights, kept):
        delta = part.of(tensor - start)
        deltas.append(delta.mul_(weight))
    if config.consensus:
        total, divisor = _agreed(deltas, weights)
    else:
        total = torch.stack(deltas).sum(0)
        divisor = torch.tensor(sum(weights), dtype=start.dtype)
    if config.normalize:
        total /= torch.where(divisor.abs() < NOTHING, 1.0, divisor)
    return start + config.scale * total


def _agreed(deltas: Sequence[Tensor], weights: Sequence[float]) -> tuple[Tensor, Tensor]:
    """The sum of the changes with the majority's sign, and that of their weights."""
    signs = majority(deltas)
    total = torch.zeros_like(signs)
    divisor = torch.zeros_like(signs)
    for delta, weight in zip(deltas, weights):
        agreeing = delta.mul_(signs).clamp_(min=0)
        total += agreeing
        divisor.add_(agreeing.sign_(), alpha=weight)
    return total.mul_(signs), divisor


def example(generator: torch.Generator) -> dict[str, Any]:
    """Three fine-tunes and their base, TIES."""
    base, tensors = fine_tunes(generator, 3)
    config = Config(**ROWS["ties"], density=0.5)
    return call(tensors, base, config, generator)
