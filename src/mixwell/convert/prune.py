"""Pruning experts: those that do least on calibration text go, with their rows of the router.

**Equation:** over the tokens T_e that choose expert e, with output f_e(x) before its weight and g_e(x) = score over the
    sum of the scores chosen:  reap = mean g ||f|| · frequency = |T_e| · weighted_frequency = sum g · output_sum =
    sum ||f|| · output_mean = mean ||f|| · weighted_output = sum g ||f|| · score = the router's score summed over all
    tokens. The int(E share) of smallest value go in every layer, or all below `keep` places, or those whose share of
    the sum is below beta / E. One expert kept: the layer turns dense, W_down times the mean weight it replaces.
**Shapes:** gate_up_proj [E, 2 F, D] -> [n, 2 F, D]; router.weight [E, D] -> [n, D].
**Reference:** Lasby et al. 2025, REAP (2510.13999), eq. 9; Jaiswal et al. 2025 (2504.05586) for output norms; Chen et
    al. 2022, Task-Specific Expert Pruning (2206.00277), section 3 (score, beta, one expert at last).
**Differs:** one pass over the text; task-specific pruning drops experts at times during fine-tuning, which a recipe
    does by stages of pruning and training in turn. Super experts are not held back.
**Fails when:** the text is not what the model will read: frequency depends wholly on it.
**Cost:** one pass over the text and the chosen experts' outputs once more; no weights change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mixwell.convert._parts import (
    Rewrite,
    mixture_layers,
    sparse_example,
    to_dense,
    top_k,
)
from mixwell.convert._usage import CRITERIA, Usage, check_plain_router, kept_rows, usage
from mixwell.convert.calibration import Calibration, Needs
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.mixing import check_above, check_least

Criterion = Literal["reap", "frequency", "weighted_frequency", "output_sum", "output_mean", "weighted_output", "score"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of pruning experts."""

    criterion: Criterion = "reap"  # what an expert is worth
    share: float | None = None  # of the experts of each layer that go, above 0 and below 1; default 0.5
    keep: int | None = None  # experts of each layer that stay, in place of share; 1 makes it dense
    beta: float | None = None  # in place of both: those go whose share of the worth is below beta / E; 0 to 1
    layers: tuple[int, ...] | None = None  # which layers, from 0; default all mixtures
    tokens: int = 8192  # of text looked at

    def __post_init__(self) -> None:
        check_least(self, keep=1, tokens=1)
        check_above(self, share=0, beta=0)
        given = [name for name in ("share", "keep", "beta") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{given[0]} and {given[1]} both say how many go; give one")
        if (self.share or 0) >= 1 or (self.beta or 0) > 1:
            raise ValueError(f"{given[0]} is {getattr(self, given[0])}; expected a share below 1")


def needs(config: Config) -> Needs:
    """Text, to see what the experts do."""
    return Needs(tokens=config.tokens)


def promises(config: Config) -> dict[str, float]:
    """Nothing: what goes is missed."""
    return {}


def kept_experts(worth_E: Tensor, config: Config, k: int) -> Tensor:
    """Numbers of the experts that stay, in order; of equal worth the first ones do.

    Raises `MixwellError` where fewer would stay than a token visits, unless it is one by `keep`.
    """
    experts = len(worth_E)
    if config.beta is not None:
        fair = config.beta / experts
        staying = int((worth_E / worth_E.sum() >= fair).sum())
        count = max(staying, k)
    elif config.keep is not None:
        count = config.keep
    else:
        count = experts - int(experts * (config.share or 0.5))
    if count > experts or (count < k and config.keep != 1):
        raise MixwellError(f"{count} of {experts} experts would stay, and a token visits {k}; expected {k} to "
                           f"{experts}, or keep = 1 for a dense layer.")
    order = worth_E.argsort(descending=True, stable=True)
    return order[:count].sort().values


def prune_layer(work: Rewrite, layer: int, kept: Tensor) -> None:
    """Keep these experts and their rows of the router."""
    spec = work.specs[layer]
    whole_router = work.take_router(layer)
    router = kept_rows(whole_router, kept, spec["num_experts"], layer)
    gate_up, down = work.take_block(layer)
    work.put_block(layer, (gate_up[kept], down[kept]))
    for name, value in router.items():
        work.put(layer, name, value)
    work.specs[layer] = {**spec, "num_experts": len(kept)}


def _prune(work: Rewrite, layer: int, found: Usage, config: Config) -> None:
    spec = work.specs[layer]
    k = top_k(spec, layer, "pruning")
    worth = CRITERIA[config.criterion]
    kept = kept_experts(worth(found), config, k)
    if len(kept) == 1:
        best = int(kept[0])
        gate_up, down = work.take_block(layer)
        to_dense(work, layer, (gate_up[best], found.mean_mass * down[best]))
    else:
        check_plain_router(spec, layer, "pruning")
        prune_layer(work, layer, kept)


@method(
    title="Expert pruning",
    paper=("REAP the Experts: Why Pruning Prevails for One-Shot MoE compression",
           "Task-Specific Expert Pruning for Sparse Mixture-of-Experts"),
    year=2025,
)
def prune(checkpoint: Checkpoint, config: Config, generator: torch.Generator, calibration: Calibration) -> Checkpoint:
    """Drop the experts that do least. Draws nothing from `generator`.

    Raises `MixwellError` where too few would stay, or a router has no row an expert.
    """
    work = Rewrite(checkpoint, "pruning")
    layers = mixture_layers(work.specs, config.layers, "pruning")
    for layer, found in usage(checkpoint, layers, calibration).items():
        _prune(work, layer, found, config)
    return work.result()


def example(generator: torch.Generator) -> dict[str, Any]:
    """A model of two mixtures of four experts, of which two stay."""
    checkpoint = sparse_example(generator)
    return {"checkpoint": checkpoint, "config": Config(tokens=48), "generator": generator}
