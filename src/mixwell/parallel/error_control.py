"""Compressed gradients whose error is fed back by a chosen strength (EControl).

**Equation:** client i keeps h_i, what the server knows of its gradient, and e_i, what it owes; both start at 0.
    Each round:
    d_i = C(eta e_i + g_i - h_i),  h_i += d_i,  e_i += g_i - h_i,  x -= gamma mean_i h_i,
    C the k largest entries and g_i a gradient at x, of a minibatch as well. eta = 0 is EF21.
**Shapes:** x [D]; g, h, e [C, D] of C clients.
**Reference:** Gao, Islamov and Stich 2023 (2311.05645), algorithm 1.
**Differs:** recursion as recalled, not compared with the authors' code. The marked function runs quadratics
    f_i = x' A_i x / 2 - b_i' x with noise that is handed in; `controlled` takes any gradients.
**Fails when:** eta is far above k / D: what is owed is then sent several times over and the rounds diverge.
**Cost:** k entries (and their places) sent by each client a round; 2 C D numbers kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.mixing import check_above, check_least, check_not_negative
from mixwell.parallel.sparse import top_k


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of controlled error."""

    keep: int = 1  # k, 1 to D
    strength: float = 0.1  # eta, 0 or more: how much of what is owed is asked for each round
    step: float = 0.1  # gamma, above 0

    def __post_init__(self) -> None:
        check_least(self, keep=1)
        check_not_negative(self, "strength")
        check_above(self, step=0)


class Ledger(NamedTuple):
    """What stands between the clients and the server."""

    known_CD: Tensor  # h
    owed_CD: Tensor  # e


class Found(NamedTuple):
    """The point after all rounds, and the ledger."""

    x_D: Tensor
    known_CD: Tensor
    owed_CD: Tensor


def opened(clients: int, like_D: Tensor) -> Ledger:
    """A ledger in which nothing is known and nothing owed."""
    nothing = torch.zeros_like(like_D).repeat(clients, 1)
    return Ledger(nothing, nothing)


def controlled(ledger: Ledger, grads_CD: Tensor, config: Config) -> Ledger:
    """The ledger after a round; the mean of its `known_CD` is the direction of the step."""
    news_CD = grads_CD - ledger.known_CD
    asked_CD = news_CD + config.strength * ledger.owed_CD
    sent_CD = top_k(asked_CD, config.keep)
    known_CD = ledger.known_CD + sent_CD
    missed_CD = grads_CD - known_CD
    owed_CD = ledger.owed_CD + missed_CD
    return Ledger(known_CD, owed_CD)


@method(
    title="Error feedback of a chosen strength",
    paper="EControl: Fast Distributed Optimization with Compression and Error Control",
    year=2023,
)
def error_control(x_D: Tensor, curve_CDD: Tensor, slope_CD: Tensor, noise_RCD: Tensor, config: Config) -> Found:
    """As many rounds as there is noise [R, C, D], which is added to the gradients A x - b of C quadratics, from x [D].

    Raises `ValueError` for more entries to keep than there are.
    """
    ledger = opened(len(curve_CDD), x_D)
    for noise_CD in noise_RCD:
        grads_CD = curve_CDD @ x_D - slope_CD + noise_CD
        ledger = controlled(ledger, grads_CD, config)
        x_D = x_D - config.step * ledger.known_CD.mean(0)
    return Found(x_D, *ledger)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Three clients in four dimensions, twenty rounds with a little noise."""
    root_CDD = torch.randn(3, 4, 4, generator=generator)
    curve_CDD = root_CDD @ root_CDD.mT
    slope_CD = torch.randn(3, 4, generator=generator)
    noise_RCD = 0.1 * torch.randn(20, 3, 4, generator=generator)
    start_D = torch.randn(4, generator=generator)
    return {"x_D": start_D, "curve_CDD": curve_CDD, "slope_CD": slope_CD, "noise_RCD": noise_RCD,
            "config": Config(step=0.02)}
