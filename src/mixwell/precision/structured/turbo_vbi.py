"""Turbo-VBI: a prior of three layers, whose support runs along each neuron's weights, and message passing for it.

**Equation:** w ~ N(0, 1 / rho), rho ~ Gamma(a, b) where s = 1, Gamma(a', b') where s = 0; s a Markov chain along a row
    of W with P(1|0) = p01, P(0|1) = p10. Module A: q(w) = N(mu, v), q(rho | s = 1) = Gamma(a + 1 / 2, b + <w^2> / 2),
    q(rho | s = 0) likewise; q = q(s = 1) = pi C / (pi C + (1 - pi) C'), C = b^a Gamma(a + 1 / 2) / (Gamma(a) (b + <w^2>
    / 2)^(a + 1 / 2)), C' likewise. Module B: forward and backward over the chain on the odds C / C'; what it says of a
    place from all others is A's next pi. Weights with q < 1 / 2 are left out.
**Shapes:** x [..., I]; mu (weight) [O, I]; log_variance [O I]; precision, support [O, I]. Regression: X [N, I], y [N].
**Reference:** Xia, Tsang and Lau 2023, Structured Bayesian Compression; the equations by other work on Turbo-VBI.
**Differs:** built from the opening of the paper, no code being public. q(rho, s) is kept whole, where others have
    q(rho) q(s): there an active weight stays active however small it is, for q > 3 / (2 ln 1 / b'). Regression begins
    with rounds of ARD, <rho> = 1 / <w^2>, since with fewer rows than columns all-active is a fixed point. Weights are
    counted in units of the dense start's std, which a, b, a', b' are for. In nets q(w) goes down the gradient with the
    rest of the model, by one draw for each output, and modules A and B follow every `every` steps; in regression v is
    exact and noise is estimated.
**Fails when:** the support is scattered: an independent prior (chain False) is then as good.
**Cost:** 4 O I FLOPs a row in training; O I for each message passing; regression O(I^3) a round.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.core.routing import Context
from mixwell.kernels.linear import linear
from mixwell.mixing import Structured, check_above, check_below, check_least, check_not_negative, normal_parameter
from mixwell.precision.structured._parts import structured_example

EPS = 1e-8  # of the variance of an output
NOISE = 1e-6, 1e-6  # shape and rate of the prior of the regression's precision


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of Turbo-VBI."""

    shape: float = 1.0  # a, of an active weight's precision; above 0
    rate: float = 1.0  # b
    idle_shape: float = 1.0  # a', of an idle one's
    idle_rate: float = 1e-2  # b'
    start: float = 0.05  # p01: chance that an active weight follows an idle one, 0 to 1
    stop: float = 0.2  # p10: chance that an idle weight follows an active one, 0 to 1
    chain: bool = True  # False: an independent prior of the same share p01 / (p01 + p10)
    kl: float = 1e-3  # coefficient of the KL in a net's loss: one over the number of examples; 0 or more
    every: int = 20  # steps between two message passings
    warmup: int = 100  # steps before the first one
    start_std: float = 0.05  # of q(w) at the start of a net, in units of the dense start's std; above 0
    rounds: int = 50  # of a regression, A and B in turn
    warm: int = 100  # rounds of ARD before them, 0 or more

    def __post_init__(self) -> None:
        check_above(self, shape=0, rate=0, idle_shape=0, idle_rate=0, start_std=0)
        check_least(self, every=1, warmup=0, rounds=1, warm=0)
        check_not_negative(self, "kl")
        check_above(self, start=0, stop=0)
        check_below(self, start=1, stop=1)

    @property
    def share(self) -> float:
        """The share of weights that the prior holds for active."""
        return self.start / (self.start + self.stop)


class Fit(NamedTuple):
    """What a regression finds."""

    mean: Tensor  # mu [I]
    variance: Tensor  # v [I]
    support: Tensor  # q(s = 1) [I]


def evidence(square: Tensor, config: Config) -> Tensor:
    """ln C - ln C' of each weight: what <w^2> says for its being active."""
    active = _log_marginal(config.shape, config.rate, square)
    return active - _log_marginal(config.idle_shape, config.idle_rate, square)


def _log_marginal(a: float, b: float, square: Tensor) -> Tensor:
    """The log of a normal density, up to 1 / sqrt(2 pi), its precision summed over Gamma(a, b)."""
    more = a + 0.5
    constant = a * math.log(b) - math.lgamma(a) + math.lgamma(more)
    rate = b + square / 2
    return constant - more * rate.log()


def precision(square: Tensor, support: Tensor, config: Config) -> Tensor:
    """<rho> of weights with these <w^2> and q(s = 1)."""
    half = square / 2
    active = (config.shape + 0.5) / (config.rate + half)
    idle = (config.idle_shape + 0.5) / (config.idle_rate + half)
    return support * active + (1 - support) * idle


def extrinsic(odds: Tensor, config: Config) -> Tensor:
    """Log odds that each place [..., I] is active as the chain and the evidence at all other places have it."""
    alone = math.log(config.start / config.stop)
    if not config.chain:
        return torch.full_like(odds, alone)
    ahead = _passed(odds, config)
    back = _passed(odds.flip(-1), config)
    both = ahead + back.flip(-1)
    return both - alone  # each has the prior of the place in it, which counts once


def _passed(odds: Tensor, config: Config) -> Tensor:
    """Log odds of each place from the evidence before it, along the last axis."""
    *before, _ = odds.unbind(-1)
    alone = math.log(config.start / config.stop)
    now = torch.full_like(odds[..., 0], alone)
    found = [now]
    stays = 1 - config.stop
    for own in before:
        active = torch.sigmoid(now + own)
        idle = 1 - active
        chance = active * stays + idle * config.start
        now = torch.logit(chance)
        found.append(now)
    return torch.stack(found, -1)


def passed(square: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """(<rho>, q(s = 1)) by modules A and B, from <w^2> [..., I]."""
    odds = evidence(square, config)
    prior = extrinsic(odds, config)
    support = torch.sigmoid(prior + odds)
    return precision(square, support, config), support


def regression(X: Tensor, y: Tensor, config: Config) -> Fit:
    """The posterior of w in y = X w + noise, whose precision is estimated; X [N, I], y [N], in float64.

    Raises `ValueError` for shapes that do not fit.
    """
    if X.ndim != 2 or y.shape != X.shape[:1]:
        raise ValueError(f"X is {list(X.shape)} and y {list(y.shape)}; expected [N, I] and [N]")
    X = X.double()
    y = y.double()
    rows, columns = X.shape
    gram = X.T @ X
    noise = rows / y.square().sum()
    level = torch.ones(columns, dtype=X.dtype)
    for turn in range(config.warm + config.rounds):
        held = noise * gram + torch.diag(level)
        covariance = torch.linalg.inv(held)
        mean = noise * covariance @ X.T @ y
        variance = covariance.diagonal()
        rest = y - X @ mean
        unsure = (gram * covariance).sum()
        missed = rest.square().sum() + unsure
        shape, rate = NOISE
        noise = (shape + rows / 2) / (rate + missed / 2)
        square = mean.square() + variance
        if turn < config.warm:
            level = 1 / square
        else:
            level, support = passed(square, config)
    return Fit(mean, variance, support)


@method(
    title="Turbo-VBI: sparse weights in runs",
    paper="Structured Bayesian Compression for Deep Neural Networks Based on The Turbo-VBI Approach",
    year=2023,
)
class TurboPosterior(Structured):
    """A posterior over weights whose support runs along rows; see the module's card."""

    keep_float32: ClassVar[bool] = True  # precisions span many orders
    config: Config
    precision: Tensor
    support: Tensor
    steps: Tensor
    unit: Tensor  # the dense start's std

    def __init__(self, rows: int, columns: int, config: Config, generator: torch.Generator | None = None,
                 std: float | None = None) -> None:
        super().__init__(rows, columns, config)
        unit = self.own_std(std)
        self.weight = normal_parameter((rows, columns), generator, unit)
        start = 2 * math.log(config.start_std * unit)
        self.log_variance = nn.Parameter(torch.full((rows * columns,), start))
        self.register_buffer("unit", torch.tensor(unit))
        ones = torch.ones(rows, columns)
        self.register_buffer("precision", ones * config.shape / config.rate)
        self.register_buffer("support", ones)
        none = torch.zeros((), dtype=torch.int64)
        self.register_buffer("steps", none)

    def dense(self) -> Tensor:
        """The mean of W [O, I], idle weights left out."""
        return self.weight * (self.support >= 0.5)

    def variance(self) -> Tensor:
        """v [O, I]."""
        return self.log_variance.exp().view_as(self.weight)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[..., I] -> [..., O]: drawn in training from all weights, else by the mean of the active ones.

        Training without a generator in the context raises `MixwellError`.
        """
        if not self.training:
            return linear(x, self.dense().to(x.dtype))
        if context.generator is None:
            raise MixwellError("TurboPosterior draws in training; give Context(generator=...), or call eval().")
        centre = linear(x, self.weight.to(x.dtype))
        spread = linear(x.square(), self.variance().to(x.dtype))
        noise = torch.randn(centre.shape, generator=context.generator, device=x.device, dtype=x.dtype)
        return centre + (spread + EPS).sqrt() * noise

    def _square(self) -> Tensor:
        """<w^2> [O, I] in units of the start."""
        square = self.weight.square() + self.variance()
        return square / self.unit**2

    def penalty(self) -> Tensor | None:
        """kl times KL(q(w) || N(0, 1 / <rho>))."""
        if not self.config.kl:
            return None
        scaled = self.variance() / self.unit**2
        log_spread = (scaled * self.precision).log()
        each = self._square() * self.precision - log_spread - 1
        return self.config.kl / 2 * each.sum()

    @torch.no_grad()
    def after_step(self) -> None:
        """Let modules A and B follow the weights where it is their turn."""
        self.steps += 1
        done = int(self.steps)
        if done < self.config.warmup or done % self.config.every:
            return
        level, support = passed(self._square(), self.config)
        self.precision.copy_(level)
        self.support.copy_(support)

    def flops_per_token(self) -> float:
        """2 for each weight that is not left out."""
        if self.support.is_meta:
            return 2.0 * self.support.numel()
        active = self.support >= 0.5
        return 2.0 * int(active.sum())


def runs(active: Tensor) -> int:
    """How many runs of active weights the rows [O, I] of a support have: fewer for as many weights is more regular."""
    before = F.pad(active[:, :-1], (1, 0))
    starts = active & ~before
    return int(starts.sum())


def example(generator: torch.Generator) -> dict[str, Any]:
    """A matrix of eight by twelve."""
    return structured_example(generator, Config())
