"""Gradients compressed by their largest entries, with the difference to what was said before sent (EF21, EF21-W).

**Equation:** client i of n keeps g_i, at the start C(grad f_i(x)), C the k largest entries of d. Each round
    x -= gamma mean_i g_i, then g_i += C(grad f_i(x) - g_i). EF21-W, with w_i = L_i / sum_j L_j, follows
    grad f_i / (n w_i) in place of grad f_i, and x -= gamma sum_i w_i g_i. With alpha = k / d and
    theta = 1 - sqrt(1 - alpha): gamma = 1 / (L + M sqrt(1 - alpha) / theta), where L is the smoothness of the mean and
    M the quadratic mean of the L_i, or their arithmetic mean, which is never larger.
**Shapes:** x [D]; g, gradients [C, D] of C clients; L_i [C].
**Reference:** Richtarik et al. 2024, Error Feedback Reloaded; EF21 of Richtarik et al. 2021.
**Differs:** formulas as recalled, not compared with the authors' code. The marked function runs quadratics
    f_i = x' A_i x / 2 - b_i' x, whose L_i are known; `started` and `answered` take any gradients. Full gradients only.
**Fails when:** gradients are noisy (EF21 keeps the noise of the entries it sends); where the L_i are equal the two
    means are too, and the weights change nothing.
**Cost:** k entries (and their places) sent by each client a round; C D numbers kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.mixing import check_least
from mixwell.parallel.sparse import top_k

MEANS = ("arithmetic", "quadratic")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of error feedback."""

    keep: int = 1  # k, 1 to D
    rounds: int = 100
    weighted: bool = False  # EF21-W
    mean: str = "arithmetic"  # of the clients' smoothness, in the step size: or "quadratic"

    def __post_init__(self) -> None:
        check_least(self, keep=1, rounds=0)
        if self.mean not in MEANS:
            raise ValueError(f"mean is {self.mean!r}; expected one of {', '.join(MEANS)}")
        if self.weighted and self.mean != "arithmetic":
            raise ValueError("weighted clients have the step of the arithmetic mean; set mean: arithmetic")


class Found(NamedTuple):
    """The point after all rounds, and what is known of each client's gradient."""

    x_D: Tensor
    known_CD: Tensor


def step_size(smooth_C: Tensor, smooth: float, share: float, mean: str) -> float:
    """The largest step that the theory allows, for `share` = k / D of the entries sent."""
    lost = math.sqrt(1 - share)
    power = 1 if mean == "arithmetic" else 2
    raised = smooth_C.double().pow(power).mean()
    middle = float(raised) ** (1 / power)
    factor = lost / (1 - lost)
    return 1 / (smooth + middle * factor)


def shares(smooth_C: Tensor, weighted: bool) -> Tensor:
    """The weight [C] of each client in the step; they sum to 1."""
    if weighted:
        return smooth_C / smooth_C.sum()
    return torch.full_like(smooth_C, 1 / len(smooth_C))


def answered(known_CD: Tensor, grads_CD: Tensor, share_C: Tensor, keep: int) -> Tensor:
    """What is known of the gradients after a round, from what was known before."""
    scale_C = 1 / (len(share_C) * share_C)
    target_CD = grads_CD * scale_C.unsqueeze(1)
    sent_CD = top_k(target_CD - known_CD, keep)
    return known_CD + sent_CD


def started(grads_CD: Tensor, share_C: Tensor, keep: int) -> Tensor:
    """What is known of the gradients at the start: their largest entries."""
    nothing = torch.zeros_like(grads_CD)
    return answered(nothing, grads_CD, share_C, keep)


@method(
    title="Error feedback of compressed gradients",
    paper="Error Feedback Reloaded: From Quadratic to Arithmetic Mean of Smoothness Constants",
    year=2024,
)
def error_feedback(x_D: Tensor, curve_CDD: Tensor, slope_CD: Tensor, config: Config) -> Found:
    """Quadratics of C clients, A [C, D, D] symmetric and no negative curvature, b [C, D], from the point x [D].

    Raises `ValueError` for more entries to keep than there are, and for a client that has no curvature.
    """
    smooth_C = torch.linalg.eigvalsh(curve_CDD)[:, -1]
    if not bool((smooth_C > 0).all()):
        raise ValueError("a client has no curvature above 0; expected a largest eigenvalue above 0 of each matrix")
    whole_DD = curve_CDD.mean(0)
    smooth = float(torch.linalg.eigvalsh(whole_DD)[-1])
    share_C = shares(smooth_C, config.weighted)
    known_CD = started(curve_CDD @ x_D - slope_CD, share_C, config.keep)
    step = step_size(smooth_C, smooth, config.keep / len(x_D), config.mean)
    for _ in range(config.rounds):
        x_D = x_D - step * (share_C @ known_CD)
        grads_CD = curve_CDD @ x_D - slope_CD
        known_CD = answered(known_CD, grads_CD, share_C, config.keep)
    return Found(x_D, known_CD)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Three clients in four dimensions, one of which curves ten times as much."""
    root_CDD = torch.randn(3, 4, 4, generator=generator)
    scale_C11 = torch.tensor([1.0, 1.0, 10.0]).view(3, 1, 1)
    curve_CDD = scale_C11 * (root_CDD @ root_CDD.mT)
    slope_CD = torch.randn(3, 4, generator=generator)
    start_D = torch.randn(4, generator=generator)
    return {"x_D": start_D, "curve_CDD": curve_CDD, "slope_CD": slope_CD, "config": Config(rounds=20)}
