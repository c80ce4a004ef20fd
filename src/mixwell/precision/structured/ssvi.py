"""Sparse subspace variational inference (SSVI): a normal posterior over a few weights, which of them moves in training.

**Equation:** q(w) = N(mu, sigma^2) on the active set, 0 elsewhere; sigma = softplus(rho). In training y = N(x mu, x^2
    sigma^2), one draw for each output; beta min(t / ramp, 1) KL(q || N(0, s^2)) joins the loss. Every `every` steps up
    to `until` of all the share drop / 2 (1 + cos(pi t / T)), T = until steps, of the active weights goes, those of the
    lowest signal to noise of |w|,  E|w| = mu erf(mu / (sigma sqrt 2)) + sigma sqrt(2 / pi) exp(-mu^2 / (2 sigma^2)),
    E|w| / sqrt(sigma^2 + mu^2 - E|w|^2), and as many with the largest |dL / dmu| of one batch come.
**Shapes:** x [..., I]; mu (weight) [O, I]; rho [O I]; active bool [O, I].
**Reference:** Li et al. 2024 (2402.11025), algorithm 1, and its code.
**Differs:** the exchange is made after a step instead of in its place, and what an optimiser remembers of a weight
    that went stays. What leaves may come back in the same exchange, with mu = 0. rho is stored flat, so that weight
    decay, which would pull sigma to 0.69, does not reach it.
**Fails when:** few exchanges fit into the training: then the first random set stays.
**Cost:** 4 d O I FLOPs a row in training at density d, if products are sparse (here they are dense); 2 d O I after.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.core.routing import Context
from mixwell.kernels.linear import linear
from mixwell.mixing import Structured, check_above, check_least, check_most, check_not_negative, normal_parameter
from mixwell.precision.structured._parts import structured_example, uniform

EPS = 1e-8  # of the variance of an output


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the sparse posterior."""

    density: float = 0.1  # d: share of the weights that are active, above 0, at most 1
    steps: int = 1000  # of the training as a whole
    every: int = 100  # steps between exchanges
    until: float = 0.75  # share of the steps after which the set stays, 0 to 1
    drop: float = 0.3  # share of the active weights that the first exchange replaces, 0 to 1
    kl: float = 1e-6  # beta: coefficient of the KL; the paper's is 0.01 over the number of examples; 0 or more
    ramp: int = 500  # steps in which beta rises
    prior_std: float = 0.005  # s, above 0
    start_std: float = 6e-4  # sigma at the start, above 0

    def __post_init__(self) -> None:
        check_above(self, density=0, prior_std=0, start_std=0)
        check_most(self, density=1, until=1, drop=1)
        check_least(self, steps=1, every=1, ramp=1, until=0)
        check_not_negative(self, "drop", "kl")


def signal_to_noise(mean: Tensor, std: Tensor) -> Tensor:
    """E|w| over the deviation of |w|, w normal."""
    ratio = mean / std
    near = torch.erf(ratio / 2**0.5)
    far = torch.exp(-ratio.square() / 2)
    spread = (2 / math.pi) ** 0.5 * std
    size = mean * near + spread * far
    square = std.square() + mean.square()
    variance = square - size.square()
    floor = 1e-12 * square  # where the difference is nothing but rounding
    return size / torch.maximum(variance, floor).sqrt()


def divergence(mean: Tensor, std: Tensor, prior_std: float) -> Tensor:
    """KL(N(mu, sigma^2) || N(0, s^2)), summed over all weights."""
    spread = (std / prior_std).square()
    moved = (mean / prior_std).square()
    each = (spread + moved - 1 - spread.log()) / 2
    return each.sum()


def dropped_share(step: int, config: Config) -> float:
    """Share of the active weights that an exchange replaces."""
    last = config.until * config.steps
    done = min(step / last, 1.0)
    left = 1 + math.cos(math.pi * done)
    return config.drop / 2 * left


def exchanged(active: Tensor, score: Tensor, slope: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(the new active set, those that came): `count` of the lowest score go, as many of the largest |slope| come."""
    flat = active.flatten()
    low = score.flatten().masked_fill(~flat, float("inf"))
    goes = low.argsort(stable=True)[:count]
    kept = flat.clone()
    kept[goes] = False
    wanted = slope.abs().flatten().masked_fill(kept, -1.0)
    comes = wanted.argsort(descending=True, stable=True)[:count]
    came = torch.zeros_like(flat)
    came[comes] = True
    both = kept | came
    return both.view_as(active), came.view_as(active)


@method(
    title="Sparse subspace variational inference (SSVI)",
    paper="Training Bayesian Neural Networks with Sparse Subspace Variational Inference",
    year=2024,
)
class SparsePosterior(Structured):
    """A normal posterior over a moving sparse set; see the module's card."""

    keep_float32: ClassVar[bool] = True  # the set is changed in place: an optimiser may have no copy of its own
    config: Config
    active: Tensor
    steps: Tensor

    def __init__(self, rows: int, columns: int, config: Config, generator: torch.Generator | None = None,
                 std: float | None = None) -> None:
        super().__init__(rows, columns, config)
        size = rows * columns
        count = max(1, round(config.density * size))
        entry = self.own_std(std) * (size / count) ** 0.5
        self.weight = normal_parameter((rows, columns), generator, entry)
        start = math.log(math.expm1(config.start_std))
        self.rho = nn.Parameter(torch.full((size,), start))
        order = uniform((size,), generator).argsort()
        chosen = order < count  # ranks of draws: each set of this size is as likely
        self.register_buffer("active", chosen.view(rows, columns))
        none = torch.zeros((), dtype=torch.int64)
        self.register_buffer("steps", none)
        self._slope: Tensor | None = None

    def std(self) -> Tensor:
        """sigma [O, I], of the active set and of the others."""
        return F.softplus(self.rho).view_as(self.weight)

    def dense(self) -> Tensor:
        """The mean of W [O, I]."""
        return self.weight * self.active

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[..., I] -> [..., O]: drawn in training and inside `sampled`, else by the mean of W.

        Training without a generator in the context, and in several processes, raises `MixwellError`.
        """
        if not self.training:
            return linear(x, self.dense().to(x.dtype))
        if context.peers is not None and self.config.drop:
            raise MixwellError("SparsePosterior exchanges weights by the gradients of its own process; train in one, "
                               "or set drop: 0.")
        if context.generator is None:
            raise MixwellError("SparsePosterior draws in training; give Context(generator=...), or call eval().")
        return self.sampled(x, context.generator)

    def sampled(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """As `forward`, with the noise of the posterior."""
        mean = self.dense()
        if self._due() and mean.requires_grad:
            mean.register_hook(self._keep)
        variance = self.std().square() * self.active
        centre = linear(x, mean.to(x.dtype))
        spread = linear(x.square(), variance.to(x.dtype))
        noise = torch.randn(centre.shape, generator=generator, device=x.device, dtype=x.dtype)
        return centre + (spread + EPS).sqrt() * noise

    def _keep(self, slope: Tensor) -> None:
        """Remember dL / dmu of every weight, active or not, of the last batch."""
        self._slope = slope.detach()

    def _due(self) -> bool:
        """Whether the step under way ends in an exchange."""
        after = int(self.steps) + 1
        last = self.config.until * self.config.steps
        return after % self.config.every == 0 and after <= last

    def penalty(self) -> Tensor | None:
        """beta min(t / ramp, 1) KL of the active weights."""
        if not self.config.kl:
            return None
        config = self.config
        mean = self.weight[self.active]
        std = self.std()[self.active]
        now = int(self.steps) + 1
        risen = min(now / config.ramp, 1.0)
        return config.kl * risen * divergence(mean, std, config.prior_std)

    @torch.no_grad()
    def after_step(self) -> None:
        """Exchange weights where the step was one for it."""
        due = self._due()
        self.steps += 1
        slope, self._slope = self._slope, None
        if not due or slope is None:
            return
        share = dropped_share(int(self.steps), self.config)
        count = int(share * int(self.active.sum()))
        score = signal_to_noise(self.weight, self.std())
        active, came = exchanged(self.active, score, slope, count)
        level = self.rho.view_as(self.weight)[self.active].mean()
        self.weight[came] = 0.0
        self.rho[came.flatten()] = level
        self.active.copy_(active)

    def flops_per_token(self) -> float:
        """2 for each active weight."""
        if self.active.is_meta:
            return 2.0 * self.config.density * self.active.numel()
        return 2.0 * int(self.active.sum())


def example(generator: torch.Generator) -> dict[str, Any]:
    """A matrix of eight by twelve of which a quarter is active."""
    return structured_example(generator, Config(density=0.25))
