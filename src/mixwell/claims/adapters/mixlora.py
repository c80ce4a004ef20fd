"""MixLoRA: low-rank experts behind a router beat one LoRA of as many numbers on tasks that conflict.

Paper: MixLoRA: Enhancing Large Language Models Fine-Tuning with LoRA based Mixture of Experts.
Tried: a decoder that knows three tasks on strings, frozen, and adapted to moving letters on by four distances, each
named by a word: four low-rank experts of rank 2 in each block, two for a token, against a LoRA of rank 8 on the same
matrices. The rate is chosen on both sides, beside it the coefficient of balance or as many rates more. Cross-entropy of
answers to new strings. Against it: one that is no lower.
"""

from __future__ import annotations

from mixwell.adapters import lora
from mixwell.adapters import mixlora as method
from mixwell.claims.adapters._tasks import NATS, learnt
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.claims.grids import finer
from mixwell.claims.strings import base

RATES = (1e-2, 2e-2, 4e-2)


def mixed(bench: Bench, seed: int, *, lr: float, balance: float) -> dict[str, float]:
    """Loss with experts."""
    config = method.Config(num_experts=4, rank=2, alpha=4.0, balance={"switch": balance})
    return learnt(base(seed), seed, method.MixLoRA, config, None, lr)


def plain(bench: Bench, seed: int, *, lr: float) -> dict[str, float]:
    """Loss with one change of each matrix."""
    config = lora.Config(rank=8, alpha=16.0)
    return learnt(base(seed), seed, lora.LoRA, config, ["gate_up_proj", "down_proj"], lr)


CLAIM = Claim("Low-rank experts behind a router beat one LoRA of as many numbers on tasks that conflict.", NATS,
              quantity="nats",
              sides={"method": Side(mixed, {}, {"lr": RATES, "balance": (1e-3, 1e-2)}),
                     "baseline": Side(plain, {}, {"lr": finer(RATES, 6)})})
