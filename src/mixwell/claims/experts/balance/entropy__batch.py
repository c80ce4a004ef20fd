"""Sigma-MoE: sigmoid gates with an entropy loss over the batch beat softmax gates with the Switch loss.

Paper: Approximating Two-Layer Feedforward Networks for Efficient Transformers; on the method balance.entropy with rule
batch.
Tried: the bench's language model, two of eight experts; sigmoid scores as they are with the batch's entropy at three
coefficients, against softmax with the Switch loss at three. Against it: bits per byte that are no lower.
"""

from __future__ import annotations

from mixwell.claims._judging import BITS
from mixwell.claims.claim import Claim, Side
from mixwell.claims.language import BALANCED, RATES, quality

SIGMOID = {"router": {"method": "top_k", "k": 2, "scores": "sigmoid", "renormalise": False}}
LOSSES = [{"entropy": {"coefficient": coefficient, "rule": "batch"}} for coefficient in (0.001, 0.003, 0.01)]

CLAIM = Claim(
    "Sigmoid gates with batch entropy beat softmax gates with the Switch loss.", BITS,
    sides={"method": Side(quality, {"mixer": SIGMOID}, {"lr": RATES, "balance": LOSSES}),
           "baseline": Side(quality, {}, BALANCED)})
