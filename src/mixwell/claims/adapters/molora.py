"""MoV: factors mixed by a soft router adapt to several tasks better than the same factors for all tokens.

Paper: Pushing Mixture of Experts to the Limit: Extremely Parameter Efficient MoE for Instruction Tuning.
Tried: a decoder that knows three tasks on strings, frozen, and adapted to moving letters on by four distances, each
named by a word: eight vectors of factors at each matrix, mixed token by token, against one vector at each, which is
(IA)^3. Beside: MoLoRA, eight low-rank changes of rank 1, and a LoRA of rank 8. Rates of their own. Cross-entropy of
answers to new strings. Against it: one that is no lower than that of (IA)^3.
"""

from __future__ import annotations

from typing import Any

from mixwell.adapters import ia3, lora
from mixwell.adapters import molora as method
from mixwell.claims.adapters._tasks import NATS, learnt
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.claims.strings import base

TARGETS = ["qkv", "out", "gate_up_proj", "down_proj"]


def measure(bench: Bench, seed: int, *, lr: float, kind: Any, config: Any) -> dict[str, float]:
    """Loss, share right, and numbers trained."""
    return learnt(base(seed), seed, kind, config, TARGETS, lr)


GRID = {"lr": (3e-3, 1e-2, 3e-2, 1e-1)}
VECTORS = {"kind": method.MoLoRA, "config": method.Config(form="vectors", num_experts=8)}
CLAIM = Claim("Factors mixed by a soft router adapt to several tasks better than one vector of them.", NATS,
              quantity="nats",
              sides={"method": Side(measure, VECTORS, GRID),
                     "baseline": Side(measure, {"kind": ia3.IA3, "config": ia3.Config()}, GRID),
                     "MoLoRA": Side(measure, {"kind": method.MoLoRA,
                                              "config": method.Config(num_experts=8, rank=1, alpha=1.0)}, GRID),
                     "LoRA": Side(measure, {"kind": lora.LoRA, "config": lora.Config(rank=8, alpha=8.0)}, GRID)})
