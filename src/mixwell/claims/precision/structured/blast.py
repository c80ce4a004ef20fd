"""BLAST: a trained matrix is nearer in blocks with shared bases than in factors of low rank of equal numbers.

Paper: BLAST: Block-Level Adaptive Structured Matrices for Efficient Deep Neural Network Inference.
Tried: the two wide maps (128 x 128) of a net that learnt handwritten digits, each at half its numbers; four by four
blocks against the decomposition by singular values. Beside: block tensor trains of an eighth more numbers, and BLAST by
plain descent at the best of three rates, each tried on the matrix itself.
Against it: a mean relative error that is no lower.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.precision._digit_nets import WHOLE, descend, digits, net
from mixwell.core.rng import generator
from mixwell.mixing.structured import structure

SIZES = (64, 128, 128, 128, 10)
RATES = (1e-4, 1e-3, 1e-2)  # of plain descent, whose entries have variance one
SIDES: Mapping[str, Mapping[str, Any]] = {
    "method": {"method": "blast", "rank": 30, "blocks": 4},  # 30 (256 + 16) = 8,160 numbers
    "baseline": {"method": "low_rank", "rank": 32},  # 32 * 256 = 8,192
    "trains": {"method": "block_tensor_train", "rank": 3},  # 3 * 8 * 16 * (8 + 16) = 9,216: more than the others
}

CLAIM = Claim("Half the numbers hold more of a trained matrix as BLAST than as low rank.",
              "relative error in the Frobenius norm, mean over two matrices")


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Errors of all sides."""
    data = digits(seed)
    model = net(seed, SIZES, WHOLE)
    trained = descend(model, data, seed, steps=300, lr=2e-3)
    weights = [trained.maps[place].weight.detach() for place in (1, 2)]
    found = {name: _mean(weights, seed, spec) for name, spec in SIDES.items()}
    plain = []
    for rate in RATES:
        spec = {**SIDES["method"], "preconditioned": False, "lr": rate}
        plain.append(_mean(weights, seed, spec))
    found["plain descent"] = min(plain)
    return found


def _mean(weights: list[Tensor], seed: int, spec: Mapping[str, Any]) -> float:
    """The mean relative error in one structure; a descent that left the numbers counts as one that found nothing."""
    entry, config = structure(spec)
    errors = []
    for place, weight in enumerate(weights):
        draws = generator(seed, "factorise", place)
        made = entry.load().from_dense(weight, config, draws)
        with torch.no_grad():
            error = float((made.dense() - weight).norm() / weight.norm())
        errors.append(error)
    return sum(errors) / len(errors)
