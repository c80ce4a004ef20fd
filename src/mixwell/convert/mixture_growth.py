"""MixtureGrowth: blocks of templates are widened by mixing their trained templates anew, or made plain dense blocks.

**Equation:** block b of a layer has the weights sum_t a_bt T_t; a new block takes the same T and, for gate, up and down
    each, the unit vector c of least ||A c|| over the rows A of all blocks before it (orthogonal), or N(0, 1) (normal),
    times `scale` for the map down.  dense: the sums are written out, and the templates go.
**Shapes:** coefficients [3, B, n] -> [3, B + blocks, n]; dense: gate_up_proj [2 (B + blocks) F, D], down_proj alike.
**Reference:** Pham et al. 2024, MixtureGrowth (2311.04251), and the authors' code for both ways of new coefficients.
**Differs:** feed-forward blocks of one model grow in hidden width alone. The authors train two half-wide networks and
    join them on the diagonal, input and output widths doubled; their loop leaves the first new block its drawn
    coefficients. With `scale` 0 the grown model gives what it gave.
**Fails when:** scale is 1 and the blocks are wide: new ones of full size swamp trained ones at first; see the receipt.
    With no more templates than blocks no vector is orthogonal.
**Cost:** none; no forward pass. The block's FLOPs grow by (B + blocks) / B.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mixwell.convert._parts import DENSE, Block, Rewrite, channel, is_method
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.experts.layers.templates import folded, least_aligned
from mixwell.mixing import check_least

TEMPLATES = "experts.layers.templates"
COEFFICIENTS = "coefficients"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of growing."""

    blocks: int = 1  # new ones in each layer, 0 or more
    rule: Literal["orthogonal", "normal"] = "orthogonal"  # of new coefficients
    scale: float = 1.0  # factor on new coefficients of the map down, 0 or more
    dense: bool = False  # write the sums out: a plain dense block, whose units then learn each by itself
    layers: tuple[int, ...] | None = None  # which layers, from 0; default all of templates

    def __post_init__(self) -> None:
        check_least(self, blocks=0, scale=0)
        if not self.blocks and not self.dense:
            raise ValueError("blocks is 0 without dense, which changes nothing; expected one of the two")


def promises(config: Config) -> dict[str, float]:
    """The same logits to rounding, where nothing is added to what blocks give."""
    same = config.blocks == 0 or config.scale == 0
    return {"max_logit_error": 1e-3, "kl_nats": 1e-6} if same else {}


def new_row(rows_Bn: Tensor, config: Config, generator: torch.Generator) -> Tensor:
    """Coefficients of one more block [n]."""
    if config.rule == "orthogonal":
        return least_aligned(rows_Bn)
    drawn = torch.randn(rows_Bn.shape[1], generator=generator)
    return drawn.to(rows_Bn.dtype)


def grown(rows_3Bn: Tensor, config: Config, generator: torch.Generator) -> Tensor:
    """Coefficients of gate, up and down with those of the new blocks below, [3, B + blocks, n]."""
    parts = []
    for rows_Bn in rows_3Bn:
        for _ in range(config.blocks):
            row = new_row(rows_Bn, config, generator)
            rows_Bn = torch.cat([rows_Bn, row[None]])
        parts.append(rows_Bn)
    result = torch.stack(parts)
    before = rows_3Bn.shape[1]
    result[2, before:] *= config.scale
    return result


def written_out(templates: Block, rows_3Bn: Tensor) -> Block:
    """The dense block that templates make, in their type."""
    gate_up_n, down_n = templates
    gate_up, down = folded(gate_up_n.float(), down_n.float(), rows_3Bn)
    return gate_up.to(gate_up_n.dtype), down.to(down_n.dtype)


def layers_of(work: Rewrite, config: Config) -> list[int]:
    """The layers to grow; raises `MixwellError` where there is none, or a named one is not of templates."""
    found = [layer for layer, spec in enumerate(work.specs) if is_method(spec, TEMPLATES)]
    if not found:
        raise MixwellError(f"no layer of templates to grow: train a model with channel_mixer {TEMPLATES} first.")
    chosen = found if config.layers is None else list(config.layers)
    for layer in chosen:
        if layer not in found:
            raise MixwellError(f"layers names {layer}; expected layers of templates, which are {found}.")
    return chosen


@method(title="Growing by mixing templates anew",
        paper="MixtureGrowth: Growing Neural Networks by Recombining Learned Parameters", year=2024)
def mixture_growth(checkpoint: Checkpoint, config: Config, generator: torch.Generator) -> Checkpoint:
    """Widen blocks of templates, write them out as dense ones, or both.

    Raises `MixwellError` where a layer has no templates, see `layers_of`, or weights are quantised.
    """
    work = Rewrite(checkpoint, "growing")
    for layer in layers_of(work, config):
        templates = work.take_block(layer)
        before = work.take(layer, COEFFICIENTS)
        rows_3Bn = grown(before, config, generator)
        blocks = rows_3Bn.shape[1]
        if config.dense:
            dense = written_out(templates, rows_3Bn)
            work.put_block(layer, dense)
            work.specs[layer] = {"method": DENSE, "hidden_dim": dense[1].shape[1]}
        else:
            work.put_block(layer, templates)
            work.put(layer, COEFFICIENTS, rows_3Bn)
            work.specs[layer] = {**work.specs[layer], "blocks": blocks}
    return work.result()


def example(generator: torch.Generator) -> dict[str, Any]:
    """A model of two layers of three templates, grown from one block to two."""
    mixer = {"method": TEMPLATES, "hidden_dim": 4, "templates": 3}
    tensors = {}
    for layer in range(2):
        tensors[channel(layer, "gate_up_proj")] = torch.randn(3, 8, 6, generator=generator)
        tensors[channel(layer, "down_proj")] = torch.randn(3, 6, 4, generator=generator)
        tensors[channel(layer, COEFFICIENTS)] = torch.randn(3, 1, 3, generator=generator)
    checkpoint = Checkpoint({"num_layers": 2, "dim": 6, "channel_mixer": mixer}, tensors)
    return {"checkpoint": checkpoint, "config": Config(), "generator": generator}
