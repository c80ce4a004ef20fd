"""Attention turned into experts: after equal training, heads chosen by token beat as many fixed heads.

Paper: LLaMA-MoE v2: Exploring Sparsity of LLaMA from Perspective of Mixture-of-Experts with Post-Training.
Tried: the bench's dense model, its four heads as four attention experts of which a token works in two, scale tuned, and
trained on 60,000 tokens; against the same model with two of its heads alone, trained as long. Against it: bits per byte
that are no lower.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mixwell.claims._conversions import bits, dense_start, made, tuned
from mixwell.claims._judging import BITS
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.claims.grids import finer
from mixwell.core.checkpoint import Checkpoint

RATES, SCALES = (1e-3, 2e-3, 4e-3), (1.0, 2.0, 4.0)
HEADS, LEFT, WIDTH = 4, 2, 16  # of the bench's attention, of those the ones that work, numbers a head


def chosen(bench: Bench, seed: int, *, lr: float, scale: float) -> float:
    """Bits per byte with two heads for each token."""
    options = {"k": LEFT, "scale": scale}
    before = dense_start(bench, seed)
    routed = made(bench, "attention_experts", before, seed, options)
    return bits(bench, tuned(bench, routed, seed, lr=lr))


def fixed(bench: Bench, seed: int, *, lr: float) -> float:
    """Bits per byte with the first two heads for all."""
    before = dense_start(bench, seed)
    cut = without_heads(before)
    return bits(bench, tuned(bench, cut, seed, lr=lr))


def without_heads(checkpoint: Checkpoint) -> Checkpoint:
    """The model with the first heads alone."""
    tensors: dict[str, Tensor] = {}
    kept = LEFT * WIDTH
    for name, tensor in checkpoint.tensors.items():
        if name.endswith("qkv.weight"):
            maps = tensor.unflatten(0, (3, HEADS * WIDTH))
            tensor = maps[:, :kept].flatten(0, 1)
        elif name.endswith("out.weight"):
            tensor = tensor[:, :kept]
        tensors[name] = tensor
    arch: dict[str, Any] = {**checkpoint.arch, "num_heads": LEFT, "head_dim": WIDTH}
    return checkpoint.derive(arch=arch, tensors=tensors)


CLAIM = Claim(
    "Heads chosen by token beat as many fixed ones.", BITS,
    sides={"method": Side(chosen, {}, {"lr": RATES, "scale": SCALES}),
           "baseline": Side(fixed, {}, {"lr": finer(RATES, 9)})})
