"""MASHA: compressed differences to a point that all know reach a saddle point with fewer numbers sent.

Paper: Distributed Methods with Compressed Communication for Solving Variational Inequalities, with Theoretical
Guarantees.
Tried: a bilinear game of 15 and 15 numbers with curvature 0.1 over 10 workers whose games differ; numbers that a worker
sends (the whole operators at the common point counted) until the distance to the saddle is 1e-3 of the start's.
Against the extragradient method, which sends two operators a step, at nine steps in the place of three steps and three
numbers of entries. Beside it: MASHA2, with the largest entries and feedback. Against it: as many numbers or more.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.claims.grids import finer
from mixwell.core.rng import generator
from mixwell.parallel.compressed_games import Config, Operator, advanced, begun

WORKERS, HALF, CURVE = 10, 15, 0.1
MOST, NEAR = 8_000.0, 1e-3  # numbers sent by a worker; the distance that is to be reached


def game(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Slopes [M, D, D] and shifts [M, D] of the workers' operators, and the saddle [D]."""
    draws = generator(seed, "game")
    own = torch.randn(WORKERS + 1, HALF, HALF, generator=draws).double()
    both = own[1:] + own[:1]  # a worker's own, and one that all share
    couple = both / (2 * HALF**0.5)
    identity = torch.eye(HALF).double()
    curve = CURVE * identity.expand_as(couple)
    upper = torch.cat([curve, couple], dim=2)
    lower = torch.cat([-couple.mT, curve], dim=2)
    slope_MDD = torch.cat([upper, lower], dim=1)
    shift_MD = torch.randn(WORKERS, 2 * HALF, generator=draws).double()
    mean_DD = slope_MDD.mean(0)
    saddle_D = torch.linalg.solve(mean_DD, -shift_MD.mean(0))
    return slope_MDD, shift_MD, saddle_D


def operator_of(slope_MDD: Tensor, shift_MD: Tensor) -> Operator:
    """The workers' operators as a function."""
    return lambda z_D: slope_MDD @ z_D + shift_MD


def masha(bench: Bench, seed: int, *, lr: float, keep: int, feedback: bool) -> float:
    """Numbers that a worker sends, `MOST` where they do not do."""
    slope_MDD, shift_MD, saddle_D = game(seed)
    operator = operator_of(slope_MDD, shift_MD)
    config = Config(keep=keep, step=lr, feedback=feedback)
    draws = generator(seed, "steps")
    state = begun(torch.zeros_like(saddle_D), operator)
    near = NEAR * saddle_D.norm()
    while state.sent < MOST and not (state.z_D - saddle_D).norm() <= near:
        state = advanced(state, operator, config, draws)
        if not torch.isfinite(state.z_D).all():
            return MOST
    return min(state.sent, MOST)


def extragradient(bench: Bench, seed: int, *, lr: float) -> float:
    """The same of whole operators, two a step."""
    slope_MDD, shift_MD, saddle_D = game(seed)
    operator = operator_of(slope_MDD, shift_MD)
    z_D = torch.zeros_like(saddle_D)
    sent = 0.0
    near = NEAR * saddle_D.norm()
    while sent < MOST and not (z_D - saddle_D).norm() <= near:
        half_D = z_D - lr * operator(z_D).mean(0)
        z_D = z_D - lr * operator(half_D).mean(0)
        sent += 2 * len(z_D)
        if not torch.isfinite(z_D).all():
            return MOST
    return min(sent, MOST)


RATES, ENTRIES = (0.1, 0.2, 0.4), (2, 3, 5)
GRID = {"lr": RATES, "keep": ENTRIES}
CLAIM = Claim(
    "Compressed differences reach a saddle point with fewer numbers sent than whole operators.",
    "numbers sent by a worker", relative=True,
    sides={"method": Side(masha, {"feedback": False}, GRID),
           "baseline": Side(extragradient, {}, {"lr": finer((0.1, 2.0), 9)}),
           "largest entries": Side(masha, {"feedback": True}, GRID)})
