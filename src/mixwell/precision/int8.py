"""Weights in eight bits: symmetric integers with one scale for each output row.

**Equation:** q = clamp(round(w / s), -127, 127),  w' = s q,  s = max_j |w_j| / 127 for each row.
**Shapes:** w [..., O, I] -> q int8 [..., O, I], s float32 [..., O, 1].
**Reference:** Jacob et al. 2018 (1712.05877), section 2.1; row-wise absmax as in Dettmers et al. 2022 (2208.07339),
    section 2.
**Differs:** weights only: activations keep the compute type. Embeddings, norms and routers stay as they are.
**Fails when:** a row holds one huge weight beside many small ones; then the small ones round to zero.
**Cost:** 8 + 32 / I bits per weight; one pass over the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.core.checkpoint import Checkpoint
from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.mixing import check_above
from mixwell.precision._parts import WEIGHTS, is_weight, positive

LEVELS = 127
QUANTISED = {torch.int8: "eight-bit", torch.uint8: "in few bits"}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of eight-bit weights."""

    head: bool = False  # quantise the output head too
    max_kl_nats: float = 0.02  # promised: mean KL per token of the logits before and after, above 0

    def __post_init__(self) -> None:
        check_above(self, max_kl_nats=0)


def promises(config: Config) -> dict[str, float]:
    """What the receipt must show."""
    return {"kl_nats": config.max_kl_nats}


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(q int8 [..., O, I], s float32 [..., O, 1]) of a weight [..., O, I]; a row of zeros gets scale 1."""
    wide = weight.float()
    largest = wide.abs().amax(-1, keepdim=True)
    scale = positive(largest / LEVELS)
    steps = (wide / scale).round()
    q = steps.clamp(-LEVELS, LEVELS)
    return q.to(torch.int8), scale


def dequantise(q: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """s q in `dtype`."""
    return (q.float() * scale).to(dtype)


def bits_per_weight(shape: tuple[int, ...]) -> float:
    """Stored bits for each weight of a tensor [..., O, I], its scales included."""
    return 8.0 + 32.0 / shape[-1]


@method(
    title="Eight-bit weights, row by row",
    paper=("Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
           "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale"),
    year=2018,
)
def int8(checkpoint: Checkpoint, config: Config, generator: torch.Generator) -> Checkpoint:
    """A checkpoint whose large weights are int8, each beside its `<name>.scale`. Draws nothing from `generator`.

    Raises `MixwellError` where the weights are quantised already, or none is there to quantise.
    """
    before = checkpoint.tensors
    tensors: dict[str, Tensor] = {}
    for name, tensor in before.items():
        if tensor.dtype in QUANTISED:
            raise MixwellError(f"{name} is {QUANTISED[tensor.dtype]} already; hand in a model with full weights.")
        tensors[name] = tensor
        if is_weight(name, config.head):
            q, scale = quantise(tensor)
            tensors[name] = q
            tensors[f"{name}.scale"] = scale
    if len(tensors) == len(before):
        raise MixwellError(f"no weight to quantise among {len(before)} tensors; expected names ending in {WEIGHTS}.")
    # "auto": what can be loaded elsewhere is decided anew from the tensors
    arch = {**checkpoint.arch, "architecture": "auto"}
    return checkpoint.derive(arch=arch, tensors=tensors)


def example(generator: torch.Generator) -> dict[str, Any]:
    """One layer's feed-forward weights."""
    tensors = {
        "layers.0.channel_mixer.gate_up_proj": torch.randn(10, 6, generator=generator),
        "layers.0.channel_mixer.down_proj": torch.randn(6, 5, generator=generator),
        "norm.weight": torch.ones(6),
    }
    checkpoint = Checkpoint({"num_layers": 1}, tensors)
    return {"checkpoint": checkpoint, "config": Config(), "generator": generator}
