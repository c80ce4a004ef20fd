"""ST-MoE: the router z-loss makes routing robust to rounding at no cost in quality.

Paper: ST-MoE: Designing Stable and Transferable Sparse Expert Models.
Tried: the bench's language model, top-2 of eight experts, the z-loss at 0.0003, 0.001 or 0.003 beside the Switch loss
against the Switch loss alone; share of held-out tokens whose experts change when the router computes in bfloat16.
Against it: a share that is no lower, or more than one per cent more bits per byte. Divergence of large models is not
tried.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side, no_worse
from mixwell.claims.grids import variants
from mixwell.claims.language import FINE, RATES, Seen, from_trunk, mean_over, probe


@torch.no_grad()
def changed(seen: Seen) -> float:
    """Share of tokens whose set of experts differs between a float32 and a bfloat16 router."""
    chosen = seen.mixed.routing.indices_TK
    weight = seen.mixer.router.weight.bfloat16()
    hidden = seen.hidden_TD.bfloat16()
    logits = hidden @ weight.T
    k = chosen.shape[1]
    rounded = logits.float().topk(k).indices
    differ = in_order(rounded) != in_order(chosen)
    moved = differ.any(1)
    return float(moved.float().mean())


def in_order(indices_TK: Tensor) -> Tensor:
    """The same experts of each token, sorted."""
    return indices_TK.sort().values


def measure(bench: Bench, seed: int, *, lr: float, balance: Mapping[str, Any]) -> dict[str, float]:
    """The share, mean over layers, and bits per byte."""
    trained = from_trunk(bench, seed, lr=lr, balance=balance)
    share = mean_over(probe(bench, trained.model), changed)
    return {"changed": share, "bits": trained.bits_per_byte}


WITH = {"lr": RATES, "balance": variants({"switch": 0.01}, z_loss=(0.0003, 0.001, 0.003))}

CLAIM = Claim(
    "The z-loss makes routing robust to rounding at no cost.",
    "share of tokens whose experts change when the router computes in bfloat16", quantity="changed", tuned_by="bits",
    provided=(no_worse("bits", 0.01),),
    sides={"method": Side(measure, {}, WITH), "baseline": Side(measure, {"balance": {"switch": 0.01}}, FINE)})
