"""Composition of stochastic maps: with noises of their own, parts add their variances; with one noise it may cancel.

**Equation:** f(p, a) = w a + u + s e, e ~ N(0, 1), p = (w, u, s). Para: (g o f)(q, p, a) = g(q, f(p, a)) with e_g, e_f
    independent: N(w_g (w_f a + u_f) + u_g, w_g^2 s_f^2 + s_g^2), and its likelihood is the integral of L_g(c | b)
    L_f(b | a) over b. Co-Kleisli: one shared e: the deviation is w_g s_f + s_g. The learner: p <- p + eta dlogL/dp.
**Shapes:** numbers, or tensors of one shape.
**Reference:** Shiebler 2020 (2005.04735), sections 3 and 4, and the author's notebook.
**Differs:** linear Gaussian maps only, for which both compositions are closed.
**Fails when:** logarithms of the parts are composed instead: the log of an integral is not the integral of logs.
**Cost:** O(1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixwell.core.method import method

HALF_LOG = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of a composition."""

    shared: bool = False  # one noise for both parts (co-Kleisli), instead of one each (Para)


class Affine(NamedTuple):
    """w a + u + s e."""

    w: Tensor
    u: Tensor
    s: Tensor

    def mean(self, a: Tensor) -> Tensor:
        """Of what comes out."""
        return self.w * a + self.u

    def log_likelihood(self, a: Tensor, c: Tensor) -> Tensor:
        """Of c out of a, in nats."""
        apart = c - self.mean(a)
        standard = apart / self.s
        width = self.s.abs().log()
        return -0.5 * standard.square() - width - HALF_LOG


@method(title="Composed stochastic maps", paper="Categorical Stochastic Processes and Likelihood", year=2020)
def stochastic_maps(second: Affine, first: Affine, config: Config) -> Affine:
    """`second` behind `first`, as one map."""
    w = second.w * first.w
    u = second.w * first.u + second.u
    carried = second.w * first.s
    if config.shared:
        return Affine(w, u, carried + second.s)
    return Affine(w, u, torch.hypot(carried, second.s))


def integrated(second: Affine, first: Affine, a: Tensor, c: Tensor, points: int = 2001) -> Tensor:
    """log of the integral of L_second(c | b) L_first(b | a) over b, by the trapezoid rule."""
    reach = 12 * first.s.abs()
    steps = torch.linspace(-1, 1, points, dtype=reach.dtype)
    b = first.mean(a) + reach * steps
    before, behind = first.log_likelihood(a, b), second.log_likelihood(b, c)
    total = torch.logsumexp(before + behind, 0)
    width = b[1] - b[0]
    return total + width.log()


def learned(parameters: Affine, a: Tensor, c: Tensor, rate: float) -> tuple[Affine, Tensor]:
    """(update, request): parameters and input moved up the likelihood of c by `rate`."""
    given = [*parameters, a]
    leaves = [one.detach().clone().requires_grad_() for one in given]
    *own, begun = leaves
    gain = Affine(*own).log_likelihood(begun, c)
    grads = torch.autograd.grad(gain.sum(), leaves)
    moved = [one.detach() + rate * grad for one, grad in zip(leaves, grads)]
    *better, request = moved
    return Affine(*better), request


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two maps."""
    draws = torch.rand(2, 3, generator=generator, dtype=torch.float64)
    first, second = (Affine(*row) for row in draws)
    return {"second": second, "first": first, "config": Config()}
