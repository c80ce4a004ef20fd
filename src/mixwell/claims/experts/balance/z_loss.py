"""ST-MoE: the router z-loss makes routing robust to rounding at no cost in quality.

Paper: ST-MoE: Designing Stable and Transferable Sparse Expert Models.
Tried: the bench's language model, top-2 of eight experts, the z-loss at 0.001 beside the Switch loss against the Switch
loss alone; share of held-out tokens whose experts change when the router computes in bfloat16. Against it: a share that
is no lower, or more than one per cent more bits per byte. Divergence of large models is not tried.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mixwell.claims._judging import at_no_more_bits
from mixwell.claims.bench import Bench
from mixwell.claims.language import Seen, bits, layers, over_layers
from mixwell.core.evidence import Evidence, weigh


@torch.no_grad()
def changed(seen: Seen) -> float:
    """Share of tokens whose set of experts differs between a float32 and a bfloat16 router."""
    weight, chosen = seen.mixer.router.weight, seen.mixed.routing.indices_TK
    logits = seen.hidden_TD.bfloat16() @ weight.bfloat16().T
    rounded = logits.float().topk(chosen.shape[1]).indices
    differ = in_order(rounded) != in_order(chosen)
    return float(differ.any(1).float().mean())


def in_order(indices_TK: Tensor) -> Tensor:
    """The same experts of each token, sorted."""
    return indices_TK.sort().values


def measure(bench: Bench, arch: dict[str, Any]) -> list[float]:
    """The share, mean over layers, from each seed."""
    return over_layers(layers(bench, arch), changed)


def claim(bench: Bench) -> Evidence:
    """Choices changed by rounding with and without the z-loss."""
    with_z = bench.arch({"balance": {"switch": 0.01, "z_loss": 0.001}})
    without = bench.arch({"balance": {"switch": 0.01}})
    evidence = weigh("The z-loss makes routing robust to rounding at no cost.",
                     "share of tokens whose experts change when the router computes in bfloat16",
                     measure(bench, with_z), measure(bench, without),
                     note="Shrinking the logits shrinks the gaps between experts as well, and rounding is relative: "
                          "more choices change, not fewer, and still fewer than one in a hundred. Quality is not "
                          "worse. Logits never grow large at this size, which is what the paper guards against.")
    return at_no_more_bits(evidence, bits(bench, with_z), bits(bench, without), margin=0.01)
