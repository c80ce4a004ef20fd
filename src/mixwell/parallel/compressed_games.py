"""Saddle points over workers that send compressed differences to a point that all know (MASHA1, MASHA2).

**Equation:** F = mean_m F_m; of a saddle f(x, y): z = (x, y), F = (df/dx, -df/dy). All know the point w. A step:
    half = tau z + (1 - tau) w - g F(w);
    MASHA1: z = half - g Q0(mean_m Q(F_m(half) - F_m(w))), Q unbiased: k entries by chance, D / k times as large;
    MASHA2: s_m = C(g (F_m(half) - F_m(w)) + e_m), e_m keeps what C leaves out; z = half - C0(mean_m s_m + e_0),
    C the k largest entries. Q0 and C0 compress the server's answer where both directions are compressed.
    With probability 1 - tau, w = z, and each worker sends its whole F_m(w).
**Shapes:** z, w, half [D]; F_m, s_m, e_m [M, D] of M workers.
**Reference:** Beznosikov, Richtarik, Diskin, Ryabinin and Gasnikov 2021 (2110.03313), algorithms 1 and 2.
**Differs:** steps as recalled, not compared with the authors' code; no constraint set, all workers in every step, whole
    operators. The marked function takes affine operators F_m z = B_m z + c_m; `advanced` takes any.
**Fails when:** k is so small that g must shrink with the square root of k / D and more steps send more in all.
**Cost:** k + (1 - tau) D entries sent by a worker a step on average: the whole F_m(w) is most of it where tau is low.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.mixing import check_above, check_least
from mixwell.parallel.sparse import rand_k, top_k

Operator = Callable[[Tensor], Tensor]  # z [D] -> each worker's F_m(z) [M, D]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of compressed steps."""

    keep: int = 1  # k, 1 to D
    step: float = 0.1  # g, above 0
    stay: float | None = None  # tau, 0 up to 1: chance that w stays; default: 1 - k / D
    feedback: bool = False  # MASHA2: the largest entries with error feedback, in place of entries by chance
    both: bool = False  # whether the server's answer is compressed as well
    steps: int = 100

    def __post_init__(self) -> None:
        check_least(self, keep=1, steps=0)
        check_above(self, step=0)
        chance = 0.0 if self.stay is None else self.stay
        if not 0 <= chance < 1:
            raise ValueError(f"stay is {chance}; expected a chance from 0 up to, not including, 1")


class State(NamedTuple):
    """Where the workers and the server stand."""

    z_D: Tensor
    w_D: Tensor  # the point that all know
    at_w_MD: Tensor  # F_m(w)
    owed_MD: Tensor  # e_m, of MASHA2
    owed_D: Tensor  # e_0, the server's
    sent: float  # entries that a worker has sent


def begun(z_D: Tensor, operator: Operator) -> State:
    """The state before the first step, in which every worker has sent its whole operator."""
    at_w_MD = operator(z_D)
    return State(z_D, z_D, at_w_MD, torch.zeros_like(at_w_MD), torch.zeros_like(z_D), float(len(z_D)))


def advanced(state: State, operator: Operator, config: Config, generator: torch.Generator | None = None) -> State:
    """The state after a step."""
    width = len(state.z_D)
    stay = 1 - config.keep / width if config.stay is None else config.stay
    between_D = torch.lerp(state.w_D, state.z_D, stay)
    known_D = state.at_w_MD.mean(0)
    half_D = between_D - config.step * known_D
    change_MD = operator(half_D) - state.at_w_MD
    gap_MD = config.step * change_MD
    moved_D, owed_MD, owed_D = _answer(gap_MD, state, config, generator)
    z_D = half_D - moved_D
    sent = state.sent + config.keep
    if torch.rand((), generator=generator) < stay:
        return State(z_D, state.w_D, state.at_w_MD, owed_MD, owed_D, sent)
    return State(z_D, z_D, operator(z_D), owed_MD, owed_D, sent + width)


def _answer(gap_MD: Tensor, state: State, config: Config,
            generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
    """(what the server answers [D], what the workers owe, what it owes itself)."""
    keep = config.keep
    if not config.feedback:
        told_MD = rand_k(gap_MD, keep, generator)
        answer_1D = told_MD.mean(0, keepdim=True)
        if config.both:
            answer_1D = rand_k(answer_1D, keep, generator)
        return answer_1D[0], state.owed_MD, state.owed_D
    due_MD = gap_MD + state.owed_MD
    sent_MD = top_k(due_MD, keep)
    owed_MD = due_MD - sent_MD
    mean_1D = sent_MD.mean(0, keepdim=True)
    if not config.both:
        return mean_1D[0], owed_MD, state.owed_D
    due_1D = mean_1D + state.owed_D
    answer_1D = top_k(due_1D, keep)
    left_1D = due_1D - answer_1D
    return answer_1D[0], owed_MD, left_1D[0]


class Found(NamedTuple):
    """The point after all steps, the one that all know, and the entries that a worker sent."""

    z_D: Tensor
    w_D: Tensor
    sent: Tensor


@method(
    title="Compressed steps to a saddle point",
    paper="Distributed Methods with Compressed Communication for Solving Variational Inequalities, with Theoretical "
          "Guarantees",
    year=2022,
)
def compressed_games(z_D: Tensor, slope_MDD: Tensor, shift_MD: Tensor, config: Config,
                     generator: torch.Generator | None = None) -> Found:
    """Steps of workers with affine operators B_m z + c_m, from z [D]; the means of B_m must be monotone.

    Raises `ValueError` for more entries to keep than there are.
    """

    def operator(point_D: Tensor) -> Tensor:
        return slope_MDD @ point_D + shift_MD

    state = begun(z_D, operator)
    for _ in range(config.steps):
        state = advanced(state, operator, config, generator)
    return Found(state.z_D, state.w_D, torch.tensor(state.sent))


def example(generator: torch.Generator) -> dict[str, Any]:
    """Three workers of a bilinear game of two and two numbers with a little curvature."""
    couple_M22 = torch.randn(3, 2, 2, generator=generator)
    curve_22 = 0.3 * torch.eye(2).expand(3, 2, 2)
    upper = torch.cat([curve_22, couple_M22], dim=2)
    lower = torch.cat([-couple_M22.mT, curve_22], dim=2)
    slope_MDD = torch.cat([upper, lower], dim=1)
    shift_MD = torch.randn(3, 4, generator=generator)
    start_D = torch.randn(4, generator=generator)
    return {"z_D": start_D, "slope_MDD": slope_MDD, "shift_MD": shift_MD, "generator": generator,
            "config": Config(keep=2, steps=20)}
