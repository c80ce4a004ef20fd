"""Trained feed-forwards as structured matrices: blocks and experts of a model, each map factorised by itself.

**Equation:** every map W of a block or an expert becomes the matrix of `structure` nearest to it that the method finds:
    blocks with shared bases by preconditioned descent (blast), leading singular parts (low_rank, maestro), those of
    each block (block_tensor_train), or of the blocks laid out anew (kronecker_sum).
**Shapes:** gate_up_proj [2 F, D] or [E, 2 F, D], down_proj [D, F] or [E, D, F] -> experts.{e}.gate, .up [F, D] and .out
    [D, F] in their structure's tensors; routers stay as they are.
**Reference:** Lee et al. 2024, BLAST (2410.21262), section 3.2.
**Differs:** feed-forwards alone, where the paper factorises attention's maps, too; nothing is trained afterwards: a
    recipe does that by a `train` stage behind. Gate and up are two matrices.
**Fails when:** the rank asked for holds little of the matrices: the loss rises, and the receipt says by how much.
**Cost:** that of the structure's factorising, for each map of each expert.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.core.checkpoint import Checkpoint
from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.mixing import check_above
from mixwell.mixing.structured import FACTORISES, factorising, structure
from mixwell.precision._blocks import Blocks, check_layers, structured_spec, whole_blocks
from mixwell.precision._parts import quantised_example


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of factorising."""

    structure: Mapping[str, Any]  # method of precision.structured that factorises, and its options
    layers: tuple[int, ...] | None = None  # which layers, from 0; default all
    max_kl_nats: float = 1.0  # promised: mean KL per token of the logits before and after, above 0

    def __post_init__(self) -> None:
        check_above(self, max_kl_nats=0)
        check_layers(self.layers)


def promises(config: Config) -> dict[str, float]:
    """What the receipt must show."""
    return {"kl_nats": config.max_kl_nats}


def factorised(weight: Tensor, spec: Mapping[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
    """The tensors of the structured matrix nearest to a weight [O, I], by name, in the weight's type."""
    entry, config = structure(spec)
    made = entry.load().from_dense(weight.float(), config, generator)
    made.to(weight.dtype)
    return made.state_dict()


@method(
    title="Trained feed-forwards as structured matrices",
    paper="BLAST: Block-Level Adaptive Structured Matrices for Efficient Deep Neural Network Inference",
    year=2024,
)
def factorise(checkpoint: Checkpoint, config: Config, generator: torch.Generator) -> Checkpoint:
    """A checkpoint whose feed-forwards are structured; every expert of a mixture is. `generator` draws starts.

    Raises `MixwellError` for a structure that factorises nothing, for a block that structured ones could not be, and
    for a matrix that the structure does not take.
    """
    entry, _ = structure(config.structure)
    if FACTORISES not in entry.tags:
        raise MixwellError(f"structure {entry.name} factorises no matrix; methods that do: {', '.join(factorising())}.")
    work = Blocks(checkpoint, config.layers, "factorising")
    for layer in work.layers:
        for place, weight in whole_blocks(work, layer):
            try:
                parts = factorised(weight, config.structure, generator)
            except ValueError as error:
                raise MixwellError(f"layer {layer}, {place}: {error}") from error
            work.put(layer, place, parts)
        work.specs[layer] = structured_spec(work.specs[layer], config.structure)
    return work.result()


def example(generator: torch.Generator) -> dict[str, Any]:
    """One layer's mixture, its maps of eight by sixteen in two by two blocks."""
    spec = {"method": "blast", "rank": 3, "blocks": 2, "steps": 40}
    return {"checkpoint": quantised_example(generator), "config": Config(structure=spec), "generator": generator}
