"""Composition of stochastic maps: with noises of their own, parts add their variances; with one noise it may cancel.

**Equation:** f(p, a) = w a + u + s e, e ~ N(0, 1), p = (w, u, s). Para: (g o f)(q, p, a) = g(q, f(p, a)) with e_g, e_f
    independent: N(w_g (w_f a + u_f) + u_g, w_g^2 s_f^2 + s_g^2), and its likelihood is the integral of L_g(c | b)
    L_f(b | a) over b. Co-Kleisli: one shared e: the deviation is w_g s_f + s_g. The learner: p <- p + eta d log L / d p.
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
        standard = (c - self.mean(a)) / self.s
        return -0.5 * standard.square() - self.s.abs().log() - 0.5 * math.log(2 * math.pi)


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
    logs = second.log_likelihood(b, c) + first.log_likelihood(a, b)
    width = (b[1] - b[0]).log()
    return torch.logsumexp(logs, 0) + width


def learned(parameters: Affine, a: Tensor, c: Tensor, rate: float) -> tuple[Affine, Tensor]:
    """(update, request): parameters and input moved up the likelihood of c by `rate`."""
    leaves = [one.detach().clone().requires_grad_() for one in (*parameters, a)]
    made = Affine(*leaves[:3])
    gain = made.log_likelihood(leaves[3], c).sum()
    grads = torch.autograd.grad(gain, leaves)
    w, u, s, request = (one.detach() + rate * grad for one, grad in zip(leaves, grads))
    return Affine(w, u, s), request


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two maps."""
    first, second = (Affine(*torch.rand(3, generator=generator, dtype=torch.float64)) for _ in range(2))
    return {"second": second, "first": first, "config": Config()}
