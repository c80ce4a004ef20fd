"""One student knows all experts: a mixture gathered into a dense block of one expert's size, and distilled.

**Equation:** sum: W = sum_e W_e · mean: W = sum_e a_e W_e, a even or by usage · top_k: of each expert the F / E hidden
    units of largest ||W_gate[i]|| ||W_up[i]|| ||W_down[:, i]||, side by side · svd: W = sum_e U_e S_e V_e^T cut to the
    F_min / E leading parts, F_min the smaller side. W_down times the mean weight that a token's experts had together.
    Then L = q KL(MoE || student) + (1 - q) cross-entropy, on the gathered blocks alone.
**Shapes:** gate_up_proj [E, 2 F, D] -> [2 F, D]; down_proj [E, D, F] -> [D, F]; shared experts stay beside, F wider.
**Reference:** Xue et al. 2022, One Student Knows All Experts Know (2201.10890), sections 3.2-3.3.
**Differs:** details were rebuilt from abstract and surveys, no code being public: q, the temperature 1, and that only
    the gathered blocks are distilled, on calibration text. Top-KG takes a unit's three vectors together. The mean
    weight is folded in, else a student of an unnormalised router starts too loud.
**Fails when:** experts were trained from scratch: their units do not correspond, and mean, sum and svd mix them up.
**Cost:** one pass over the text; svd O(E D F min(D, F)); each pass of distilling three of training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mixwell.convert._distil import distil
from mixwell.convert._parts import (
    DOWN,
    GATE_UP,
    Block,
    Rewrite,
    channel,
    expert_units,
    loudness,
    mixture_layers,
    side_by_side,
    sparse_example,
    to_dense,
)
from mixwell.convert._usage import usage
from mixwell.convert.calibration import Calibration, Needs
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.mixing import check_above, check_least, check_not_negative


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of gathering experts into one."""

    how: Literal["mean", "sum", "top_k", "svd"] = "mean"  # how weights are gathered
    weights: Literal["even", "usage"] = "even"  # a_e of the mean: alike, or shares of the tokens
    passes: int = 0  # of distilling over the text, 0 or more
    lr: float = 1e-3  # of distilling, above 0
    soft: float = 0.75  # q: share of the MoE's word against the text's, 0 to 1
    layers: tuple[int, ...] | None = None  # which layers, from 0; default all mixtures
    tokens: int = 8192  # of text looked at

    def __post_init__(self) -> None:
        check_not_negative(self, "passes")
        check_above(self, lr=0)
        check_least(self, tokens=1, soft=0)
        if self.soft > 1:
            raise ValueError(f"soft is {self.soft}; expected 0 to 1")
        if self.weights == "usage" and self.how != "mean":
            raise ValueError(f"weights by usage are for the mean; how is {self.how!r}")


def needs(config: Config) -> Needs:
    """Text, to see how loud the experts are together, and to distil on."""
    return Needs(tokens=config.tokens)


def promises(config: Config) -> dict[str, float]:
    """Nothing: a dense block is no mixture."""
    return {}


def weighted_mean(experts: Block, share_E: Tensor) -> Block:
    """sum_e a_e W_e of each matrix, summed in float32 or better."""
    gate_up, down = (torch.einsum("eij,e->ij", weight.float(), share_E.float()) for weight in experts)
    return gate_up, down


def added(experts: Block, share_E: Tensor) -> Block:
    """sum_e W_e of each matrix."""
    gate_up, down = (weight.float().sum(0) for weight in experts)
    return gate_up, down


def loudest_units(experts: Block, share_E: Tensor) -> Block:
    """The F / E loudest hidden units of every expert, side by side; the first experts give one more where it is odd."""
    gate_up_E, down_E = experts
    hidden, count = down_E.shape[2], len(down_E)
    parts = []
    for e, (gate_up, down) in enumerate(zip(gate_up_E, down_E)):
        wanted = hidden // count + (e < hidden % count)
        units = loudness(gate_up, down).argsort(descending=True, stable=True)[:wanted]
        parts.append(expert_units(gate_up, down, units))
    return side_by_side(parts)


def leading_parts(experts: Block, share_E: Tensor) -> Block:
    """Each matrix as the sum of every expert's leading singular parts, so many that the rank is that of one."""
    gate_up_E, down_E = experts
    gate_E, up_E = gate_up_E.chunk(2, dim=1)
    gate = _low_rank_sum(gate_E)
    up = _low_rank_sum(up_E)
    both = torch.cat([gate, up])
    return both, _low_rank_sum(down_E)


def _low_rank_sum(weight_E: Tensor) -> Tensor:
    rank = max(1, min(weight_E.shape[1:]) // len(weight_E))
    u, s, v = torch.linalg.svd(weight_E.float(), full_matrices=False)
    leading = slice(rank)
    left = u[:, :, leading]
    scaled = left * s[:, None, leading]
    parts = scaled @ v[:, leading]
    return parts.sum(0)


GATHER: Mapping[str, Callable[[Block, Tensor], Block]] = {
    "mean": weighted_mean, "sum": added, "top_k": loudest_units, "svd": leading_parts}


def gather(experts: Block, share_E: Tensor, mass: float, config: Config) -> Block:
    """The dense block that stands for the experts, in their type."""
    dtype = experts[0].dtype
    even = 1 / len(share_E)
    if config.weights == "even":
        share_E = torch.full_like(share_E, even)
    how = GATHER[config.how]
    gate_up, down = how(experts, share_E)
    scaled = mass * down
    return gate_up.to(dtype), scaled.to(dtype)


@method(
    title="Gathering experts into a dense student",
    paper="One Student Knows All Experts Know: From Sparse to Dense",
    year=2022,
)
def densify(checkpoint: Checkpoint, config: Config, generator: torch.Generator, calibration: Calibration) -> Checkpoint:
    """Turn mixtures into dense blocks. Draws nothing from `generator`.

    Raises `MixwellError` where a mixture has gated shared experts, which a dense block cannot have.
    """
    work = Rewrite(checkpoint, "densifying")
    layers = mixture_layers(work.specs, config.layers, "densifying")
    if config.how == "top_k":
        _check_units(work, layers)
    for layer, found in usage(checkpoint, layers, calibration, norms=False).items():
        experts = work.take_block(layer)
        block = gather(experts, found.share_E, found.mean_mass, config)
        to_dense(work, layer, block)
    student = work.result()
    if not config.passes:
        return student
    names = [channel(layer, name) for layer in layers for name in (GATE_UP, DOWN)]
    return distil(checkpoint, student, names, calibration, passes=config.passes, lr=config.lr, soft=config.soft)


def _check_units(work: Rewrite, layers: list[int]) -> None:
    for layer in layers:
        spec = work.specs[layer]
        if spec["hidden_dim"] < spec["num_experts"]:
            raise MixwellError(f"layer {layer} has {spec['num_experts']} experts of {spec['hidden_dim']} units; top_k "
                               "takes one of each at least. Choose the mean.")


def example(generator: torch.Generator) -> dict[str, Any]:
    """A model of two mixtures of four experts, gathered and distilled."""
    checkpoint = sparse_example(generator)
    config = Config(passes=1, tokens=48)
    return {"checkpoint": checkpoint, "config": config, "generator": generator}
