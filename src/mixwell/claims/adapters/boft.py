"""BOFT: a butterfly of small rotations comes nearer to a dense one than one layer of larger blocks with more numbers.

Paper: Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization.
Tried: a random rotation of 32 inputs, fitted by five factors of blocks of two (80 free numbers) and by one factor of
blocks of eight (112), 200 steps of Adam each at its best rate. Squared distance, as a share of what no rotation leaves.
Against it: a distance that is no smaller.
"""

from __future__ import annotations

import torch

from mixwell.adapters.boft import cayley, turned
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.core.rng import generator

WIDTH, STEPS = 32, 200


def measure(bench: Bench, seed: int, *, lr: float, factors: int, block: int) -> float:
    """Distance to the rotation that is asked for."""
    drawn = torch.randn(WIDTH, WIDTH, generator=generator(seed, "rotation"))
    wanted, _ = torch.linalg.qr(drawn)
    eye = torch.eye(WIDTH)
    blocks = WIDTH // block
    R = torch.zeros(factors, blocks, block, block)
    R.requires_grad_()
    optimizer = torch.optim.Adam([R], lr=lr)
    for _ in range(STEPS):
        away = turned(eye, cayley(R)) - wanted
        distance = away.square().sum()
        optimizer.zero_grad()
        distance.backward()
        optimizer.step()
    nothing = (eye - wanted).square().sum()
    return float(distance.detach() / nothing)


GRID = {"lr": (1e-2, 3e-2, 1e-1)}
CLAIM = Claim(
    "A butterfly of small rotations fits a dense rotation better than one layer of larger blocks.",
    "squared distance to a random rotation, share of the identity's", at_least=0.05, relative=True,
    sides={"method": Side(measure, {"factors": 5, "block": 2}, GRID),
           "baseline": Side(measure, {"factors": 1, "block": 8}, GRID)})
