"""Minimal experts: a wide block becomes many small ones of which a token visits one, alike in most of their units.

**Equation:** every expert has n hidden units: the n - n // 3 loudest ones of the block, the same in all, and n // 3 of
    its own, dealt out in turn (e, e + E, ..) from those that follow. y = p_max E_argmax(x), p = softmax(W_r x).
    Loudness: ||W_gate[i]|| ||W_up[i]|| ||W_down[:, i]||; all units are copies, no parameters stay in common.
**Shapes:** gate_up_proj [2 F, D] -> [E, 2 n, D]; down_proj [D, F] -> [E, D, n].
**Reference:** Zhang et al. 2023, Lifting the Curse of Capacity Gap (2305.12129), section 3; released code.
**Differs:** units are chosen by loudness, where the paper takes a pruned teacher; feed-forward blocks only, no minimal
    experts of attention; no noise on the gate. Distilling is left to what follows. `scale` may undo that p < 1 makes
    the block quieter.
**Fails when:** nothing is trained after: every expert lacks most of the block.
**Cost:** E n units, of which n are active; no forward pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.convert._parts import (
    SPARSE,
    Rewrite,
    dense_example,
    dense_layers,
    expert_units,
    fresh_router,
    loudness,
    stacked,
)
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.mixing import check_above, check_least

ROUTER = {"method": "top_k", "k": 1}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of minimal experts."""

    hidden_dim: int  # n, of each expert, at least 3
    num_experts: int = 4  # E, at least 2
    scale: float = 1.0  # factor on W_down, above 0
    balance: Mapping[str, Any] | None = None  # rule -> coefficient; default as in experts.layers.moe
    layers: tuple[int, ...] | None = None  # which layers, from 0; default all that are dense

    def __post_init__(self) -> None:
        check_least(self, hidden_dim=3, num_experts=2)
        check_above(self, scale=0)


def promises(config: Config) -> dict[str, float]:
    """Nothing: a small part of a block is not the block."""
    return {}


def deal(loud_F: Tensor, config: Config) -> list[Tensor]:
    """The units of each expert: those in common, then its own; raises `MixwellError` where there are too few."""
    own = config.hidden_dim // 3
    common = config.hidden_dim - own
    needed = common + own * config.num_experts
    if needed > len(loud_F):
        raise MixwellError(f"{config.num_experts} experts of {config.hidden_dim} units take {needed} different ones; "
                           f"the block has {len(loud_F)}. Make them fewer or smaller.")
    order = loud_F.argsort(descending=True, stable=True)
    alike, rest = order[:common], order[common:needed]
    return [torch.cat([alike, rest[e :: config.num_experts]]) for e in range(config.num_experts)]


def spec_of(config: Config) -> dict[str, Any]:
    """The options of a layer of minimal experts."""
    spec = {"method": SPARSE, "num_experts": config.num_experts, "hidden_dim": config.hidden_dim, "router": ROUTER}
    if config.balance is not None:
        spec["balance"] = dict(config.balance)
    return spec


@method(
    title="Minimal experts",
    paper="Lifting the Curse of Capacity Gap in Distilling Language Models",
    year=2023,
)
def minimal_experts(checkpoint: Checkpoint, config: Config, generator: torch.Generator) -> Checkpoint:
    """Turn dense layers into mixtures of small experts.

    Raises `MixwellError` where a block has too few units for them.
    """
    work = Rewrite(checkpoint, "making minimal experts")
    for layer in dense_layers(work.specs, config.layers, "making minimal experts"):
        gate_up, down = work.take_block(layer)
        loud_F = loudness(gate_up, down)
        scaled = config.scale * down
        experts = [expert_units(gate_up, scaled, own) for own in deal(loud_F, config)]
        work.put_block(layer, stacked(experts))
        router = fresh_router(ROUTER, down.shape[0], config.num_experts, generator)
        work.put_router(layer, router)
        work.specs[layer] = spec_of(config)
    return work.result()


def example(generator: torch.Generator) -> dict[str, Any]:
    """A dense model of two layers, three experts of three units in each."""
    checkpoint = dense_example(generator)
    return {"checkpoint": checkpoint, "config": Config(hidden_dim=3, num_experts=3), "generator": generator}
