"""Particle filter whose proposal is a mixture of experts, fitted anew at every step to the optimal kernel.

**Equation:** particles x_i with weights w_i, transition q and likelihood g: the target is proportional to w_i
q(x_i, x') g(x', y) over (i, x'), the proposal is w_i r(x' | x_i) with r = sum_j alpha_j(x) rho(x'; A_j (1, x), S_j),
alpha = softmax(B (1, x)). EM minimises KL(target | proposal): draw a sample with importance weights v, E step
r_lj proportional to alpha_j(x_l) rho_j(x'_l), and statistics s <- (1 - gamma_m) s + gamma_m sum_l v_l r_lj (1,
x~ x~', x~ x'', x' x''), gamma_m = m^-decay; A_j, S_j are the weighted regression from s, and B takes a Newton step of
the weighted logistic regression. Student experts (degrees of freedom nu) weigh by (nu + D) / (nu + d^2) as well.

**Shapes:** observations y (T, ...), read one at a time by the model; states (N, D); outputs (T,) and (T, D).

**Reference:** Cornebise, Moulines, Olsson (2014), Adaptive sequential Monte Carlo by means of mixture of experts,
Statistics and Computing, arXiv:1108.2836, sections 3 and 4, algorithm 2.

**Differs:** written from memory of the paper. No adjustment multipliers; the first sample of a step comes from q; a
share `defence` of the final proposal is q itself, which bounds the weights by g / defence; gates are refitted
from the last sample alone.

**Fails when:** the fitting sample misses a mode of the target; D is large against the size of the fitting sample.

**Cost:** O((N + iterations M) J D^2) a step, for M draws in every fit: linear in the particles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.density._gaussian import log_diagonal, log_normal, outer, symmetric, whiten


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the particle filter; `ValueError` for one out of range."""

    proposal: Literal["experts", "bootstrap"] = "experts"  # the mixture, or the transition (the plain filter)
    particles: int = 1000  # N
    experts: int = 2  # J
    density: Literal["gaussian", "student"] = "gaussian"  # of the experts
    dof: float = 4.0  # of Student experts
    fit_draws: int = 500  # M, of every EM iteration
    iterations: int = 5  # of EM at every step of the filter
    decay: float = 0.6  # exponent of the steps gamma_m; 0 forgets all but the last sample
    defence: float = 0.1  # share of the transition in the proposal
    ridge: float = 1e-3  # of gates and regressions, against directions without data

    def __post_init__(self) -> None:
        known = self.proposal in ("experts", "bootstrap") and self.density in ("gaussian", "student")
        if not known:
            raise ValueError(f"proposal is {self.proposal!r} and density {self.density!r}; expected experts or "
                             "bootstrap, and gaussian or student")
        counts = (self.particles, self.experts, self.fit_draws, self.iterations)
        if min(counts) < 1:
            raise ValueError(f"particles, experts, fit_draws, iterations are {', '.join(map(str, counts))}; "
                             "expected 1 or more")
        shares = 0 <= self.decay <= 1 and 0 <= self.defence < 1
        if not (shares and self.dof > 0 and self.ridge > 0):
            raise ValueError(f"decay, defence, dof, ridge are {self.decay}, {self.defence}, {self.dof}, {self.ridge}; "
                             "expected within [0, 1], [0, 1), and above 0 twice")


class StateSpace(Protocol):
    """A Markov chain seen through a likelihood; `step` counts from 0."""

    def draw_first(self, count: int, generator: torch.Generator) -> Tensor:
        """States (count, D) before the first observation's step."""

    def draw_next(self, x_ND: Tensor, step: int, generator: torch.Generator) -> Tensor:
        """A successor (N, D) of every state."""

    def log_next(self, x_ND: Tensor, next_ND: Tensor, step: int) -> Tensor:
        """log q(x, x') (N,)."""

    def log_likelihood(self, x_ND: Tensor, y: Tensor, step: int) -> Tensor:
        """log g(x, y) (N,)."""


@dataclass(frozen=True)
class Experts:
    """The proposal's parameters."""

    gate_JP: Tensor
    slope_JPD: Tensor
    root_JDD: Tensor  # lower Cholesky factors of the scales
    dof: float  # infinite for Gaussian experts

    def parts(self, x_ND: Tensor, next_ND: Tensor) -> tuple[Tensor, Tensor]:
        """log alpha_j rho_j (N, J) and squared distances (N, J)."""
        x_NP = with_one(x_ND)
        D = next_ND.shape[1]
        mean_NJD = torch.einsum("np,jpd->njd", x_NP, self.slope_JPD)
        gap_NJD = next_ND[:, None] - mean_NJD
        white_JND = whiten(gap_NJD.transpose(0, 1), self.root_JDD)
        square_NJ = white_JND.square().sum(-1).T
        log_scale_J = log_diagonal(self.root_JDD)
        if math.isinf(self.dof):
            log_NJ = log_normal(square_NJ, log_scale_J, D)
        else:
            log_NJ = log_student(square_NJ, log_scale_J, D, self.dof)
        logits_NJ = x_NP @ self.gate_JP.T
        return logits_NJ.log_softmax(-1) + log_NJ, square_NJ

    def log_prob(self, x_ND: Tensor, next_ND: Tensor) -> Tensor:
        """log r(x' | x) (N,)."""
        log_NJ, _ = self.parts(x_ND, next_ND)
        return log_NJ.logsumexp(-1)

    def draw(self, x_ND: Tensor, generator: torch.Generator) -> Tensor:
        """A successor (N, D) of every state."""
        x_NP = with_one(x_ND)
        logits_NJ = x_NP @ self.gate_JP.T
        gate_NJ = logits_NJ.softmax(-1)
        j_N = torch.multinomial(gate_NJ, 1, generator=generator)[:, 0]
        mean_ND = torch.einsum("np,npd->nd", x_NP, self.slope_JPD[j_N])
        noise_ND = torch.randn(mean_ND.shape, generator=generator, dtype=x_ND.dtype)
        noise_ND = torch.einsum("nde,ne->nd", self.root_JDD[j_N], noise_ND)
        if math.isfinite(self.dof):
            half = self.dof / 2
            shape_N = torch.full((len(x_ND),), half, dtype=x_ND.dtype)
            gamma_N = torch._standard_gamma(shape_N, generator=generator)
            stretch_N = (half / gamma_N).sqrt()
            noise_ND = noise_ND * stretch_N[:, None]
        return mean_ND + noise_ND


def log_student(square: Tensor, log_scale: Tensor, columns: int, dof: float) -> Tensor:
    """Log density (...) of Student's t, as `log_normal` gives that of the normal."""
    freedom = dof + columns
    half = freedom / 2
    gammas = math.lgamma(half) - math.lgamma(dof / 2)
    constant = gammas - 0.5 * columns * math.log(dof * math.pi)
    stretched = torch.log1p(square / dof)
    tail = 0.5 * freedom * stretched
    return constant - tail - log_scale


Statistics = tuple[Tensor, Tensor, Tensor, Tensor]  # (J,), (J, P, P), (J, P, D), (J, D, D)


def with_one(x_ND: Tensor) -> Tensor:
    """A column of ones before the others."""
    ones_N1 = torch.ones_like(x_ND[:, :1])
    return torch.cat([ones_N1, x_ND], 1)


def statistics(x_ND: Tensor, next_ND: Tensor, v_N: Tensor, resp_NJ: Tensor, precision_NJ: Tensor) -> Statistics:
    """Weighted sums that the experts' M step needs; `precision_NJ` is one but for Student experts."""
    x_NP = with_one(x_ND)
    w_NJ = v_N[:, None] * resp_NJ
    u_NJ = w_NJ * precision_NJ
    return (
        w_NJ.sum(0),
        torch.einsum("nj,np,nq->jpq", u_NJ, x_NP, x_NP),
        torch.einsum("nj,np,nd->jpd", u_NJ, x_NP, next_ND),
        torch.einsum("nj,nd,ne->jde", u_NJ, next_ND, next_ND),
    )


def regress(s: Statistics, ridge: float) -> tuple[Tensor, Tensor]:
    """Slopes (J, P, D) and Cholesky factors (J, D, D) of the residual scales, slightly shrunk towards the identity."""
    mass_J, xx_JPP, xy_JPD, yy_JDD = s
    mass_J11 = mass_J[:, None, None]
    eye_PP = torch.eye(xx_JPP.shape[1], dtype=xx_JPP.dtype)
    eye_DD = torch.eye(yy_JDD.shape[1], dtype=yy_JDD.dtype)
    penalty_JPP = ridge * mass_J11.clamp(min=1e-6) * eye_PP
    slope_JPD = torch.linalg.solve(xx_JPP + penalty_JPP, xy_JPD)
    cross_JDD = slope_JPD.mT @ xy_JPD
    explained_JDD = slope_JPD.mT @ xx_JPP @ slope_JPD
    rest_JDD = symmetric(yy_JDD - cross_JDD - xy_JPD.mT @ slope_JPD + explained_JDD)
    scale = yy_JDD.diagonal(dim1=1, dim2=2).mean() + 1e-12
    least = ridge * (1e-3 * scale + 1e-9)  # no direction of the residuals may vanish
    rest_JDD = rest_JDD + least * eye_DD
    return slope_JPD, torch.linalg.cholesky(rest_JDD / mass_J11.clamp(min=1e-12))


def gate_step(gate_JP: Tensor, x_ND: Tensor, v_N: Tensor, resp_NJ: Tensor, ridge: float) -> Tensor:
    """A Newton step of weighted logistic regression, halved until the penalised likelihood does not fall."""
    x_NP = with_one(x_ND)

    def height(b_JP: Tensor) -> Tensor:
        log_gate_NJ = (x_NP @ b_JP.T).log_softmax(-1)
        likelihood = (v_N[:, None] * resp_NJ * log_gate_NJ).sum()
        return likelihood - 0.5 * ridge * (b_JP**2).sum()

    step_JP = _newton(gate_JP, x_NP, v_N, resp_NJ, ridge)
    start = height(gate_JP)
    for _ in range(20):
        new_JP = gate_JP + step_JP
        if height(new_JP) >= start:
            return new_JP
        step_JP = step_JP / 2
    return gate_JP


def _newton(gate_JP: Tensor, x_NP: Tensor, v_N: Tensor, resp_NJ: Tensor, ridge: float) -> Tensor:
    """The whole Newton step (J, P) of weighted logistic regression with a ridge."""
    size = gate_JP.numel()
    p_NJ = (x_NP @ gate_JP.T).softmax(-1)
    rest_NJ = resp_NJ - p_NJ
    pull_JP = torch.einsum("n,nj,np->jp", v_N, rest_NJ, x_NP)
    slope_JP = pull_JP - ridge * gate_JP
    curve_NJJ = torch.diag_embed(p_NJ) - outer(p_NJ, p_NJ)
    curve_JPJP = torch.einsum("n,njk,np,nq->jpkq", v_N, curve_NJJ, x_NP, x_NP)
    curve = curve_JPJP.reshape(size, size)
    penalty = ridge * torch.eye(size, dtype=curve.dtype)
    step = torch.linalg.solve(curve + penalty, slope_JP.flatten())
    return step.view_as(gate_JP)


def em_step(experts: Experts, x_ND: Tensor, next_ND: Tensor, v_N: Tensor, ridge: float,
            earlier: Statistics | None = None, rate: float = 1.0) -> tuple[Experts, Statistics]:
    """One step of online EM on a weighted sample (weights sum to one); `rate` 1 is plain EM, which never raises KL."""
    log_NJ, square_NJ = experts.parts(x_ND, next_ND)
    resp_NJ = log_NJ.softmax(-1)
    precision_NJ = torch.ones_like(square_NJ)
    if math.isfinite(experts.dof):
        freedom = experts.dof + next_ND.shape[1]
        precision_NJ = freedom / (experts.dof + square_NJ)
    new = statistics(x_ND, next_ND, v_N, resp_NJ, precision_NJ)
    if earlier is not None:
        kept = 1 - rate
        mass_J, xx_JPP, xy_JPD, yy_JDD = (kept * old + rate * now for old, now in zip(earlier, new))
        new = mass_J, xx_JPP, xy_JPD, yy_JDD
    slope_JPD, root_JDD = regress(new, ridge)
    gate_JP = gate_step(experts.gate_JP, x_ND, v_N, resp_NJ, ridge)
    moved = Experts(gate_JP, slope_JPD, root_JDD, experts.dof)
    return moved, new


def first_experts(x_ND: Tensor, next_ND: Tensor, v_N: Tensor, config: Config, generator: torch.Generator) -> Experts:
    """One regression for all, then one for each of the groups its residuals fall into around k-means++ centres."""
    ones_N1 = torch.ones(len(x_ND), 1, dtype=x_ND.dtype)
    for_all = statistics(x_ND, next_ND, v_N, ones_N1, ones_N1)
    slope_1PD, _ = regress(for_all, config.ridge)
    (slope_PD,) = slope_1PD
    rest_ND = next_ND - with_one(x_ND) @ slope_PD
    resp_NJ = _groups(rest_ND, v_N, config.experts, generator)
    ones_NJ = torch.ones_like(resp_NJ)
    by_group = statistics(x_ND, next_ND, v_N, resp_NJ, ones_NJ)
    slope_JPD, root_JDD = regress(by_group, config.ridge)
    gate_JP = torch.zeros_like(slope_JPD[:, :, 0])
    dof = config.dof if config.density == "student" else math.inf
    return Experts(gate_JP, slope_JPD, root_JDD, dof)


def _groups(rest_ND: Tensor, v_N: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Indicators (N, J) of the nearest among k-means++ centres."""
    distance_NJ = torch.empty(len(rest_ND), 0, dtype=rest_ND.dtype)
    chance_N = v_N
    for _ in range(count):
        row = torch.multinomial(chance_N, 1, generator=generator)
        gap_ND = rest_ND - rest_ND[row]
        square_N1 = (gap_ND**2).sum(1, keepdim=True)
        distance_NJ = torch.cat([distance_NJ, square_N1], 1)
        chance_N = v_N * distance_NJ.amin(1)
        if float(chance_N.sum()) <= 0:  # fewer distinct draws than experts
            chance_N = v_N
    nearest_N = distance_NJ.argmin(1)
    return torch.nn.functional.one_hot(nearest_N, count).to(rest_ND.dtype)


def fit_experts(model: StateSpace, y: Tensor, step: int, x_ND: Tensor, w_N: Tensor, config: Config,
                generator: torch.Generator) -> Experts:
    """The proposal of one step of the filter."""
    experts, sums = None, None
    for m in range(1, config.iterations + 1):
        rows_M = torch.multinomial(w_N, config.fit_draws, replacement=True, generator=generator)
        from_MD = x_ND[rows_M]
        next_MD, log_r_M = _propose(model, experts, from_MD, step, config.defence, generator)
        log_target_M = _log_target(model, from_MD, next_MD, y, step)
        log_v_M = log_target_M - log_r_M
        v_M = log_v_M.softmax(0)
        if experts is None:
            experts = first_experts(from_MD, next_MD, v_M, config, generator)
        rate = m**-config.decay
        experts, sums = em_step(experts, from_MD, next_MD, v_M, config.ridge, sums, rate)
    assert experts is not None
    return experts


def _log_target(model: StateSpace, x_ND: Tensor, next_ND: Tensor, y: Tensor, step: int) -> Tensor:
    """log q(x, x') g(x', y) (N,)."""
    log_next_N = model.log_next(x_ND, next_ND, step)
    return log_next_N + model.log_likelihood(next_ND, y, step)


def _propose(model: StateSpace, experts: Experts | None, x_ND: Tensor, step: int, defence: float,
             generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Successors (N, D) and their log proposal densities (N,), from the transition where there are no experts."""
    own_ND = model.draw_next(x_ND, step, generator)
    if experts is None:
        log_own_N = model.log_next(x_ND, own_ND, step)
        return own_ND, log_own_N
    chance_N1 = torch.rand(len(x_ND), 1, generator=generator, dtype=x_ND.dtype)
    from_experts_ND = experts.draw(x_ND, generator)
    next_ND = torch.where(chance_N1 < defence, own_ND, from_experts_ND)
    log_from_experts_N = experts.log_prob(x_ND, next_ND)
    log_N = log_from_experts_N + math.log1p(-defence)
    if defence:
        log_own_N = model.log_next(x_ND, next_ND, step)
        log_N = torch.logaddexp(log_N, log_own_N + math.log(defence))
    return next_ND, log_N


@dataclass(frozen=True)
class Filtered:
    """What a run of the filter gives."""

    log_likelihood_T: Tensor  # log p(y_t | earlier y), estimated; the product's exponential is unbiased
    mean_TD: Tensor  # E[x_t | y_1..y_t]
    effective_T: Tensor  # effective sample size, 1 to N
    x_ND: Tensor  # last particles
    weights_N: Tensor  # their weights


@method(
    title="Particle filter with mixture-of-experts proposals",
    paper="Adaptive sequential Monte Carlo by means of mixture of experts",
    year=2014,
    tags={"value"},
)
def particle_filter(model: StateSpace, observations: Sequence[Tensor] | Tensor, generator: torch.Generator,
                    config: Config | None = None) -> Filtered:
    """Filter a series of observations; see the module's card. A step whose weights all vanish is a `ValueError`."""
    config = config or Config()
    x_ND = model.draw_first(config.particles, generator)
    if x_ND.ndim != 2 or len(x_ND) != config.particles:
        raise ValueError(f"draw_first gave {tuple(x_ND.shape)}; expected ({config.particles}, D)")
    N = len(x_ND)
    w_N = x_ND.new_full((N,), 1 / N)
    log_likelihoods, means, sizes = [], [], []
    for step, y in enumerate(observations):
        experts = None
        if config.proposal == "experts":
            experts = fit_experts(model, y, step, x_ND, w_N, config, generator)
        rows_N = torch.multinomial(w_N, N, replacement=True, generator=generator)
        from_ND = x_ND[rows_N]
        x_ND, log_r_N = _propose(model, experts, from_ND, step, config.defence, generator)
        log_w_N = _log_target(model, from_ND, x_ND, y, step) - log_r_N
        _check_weights(log_w_N, step)
        log_likelihoods.append(log_w_N.logsumexp(0) - math.log(N))
        w_N = log_w_N.softmax(0)
        means.append(w_N @ x_ND)
        sizes.append(1 / (w_N**2).sum())
    return Filtered(torch.stack(log_likelihoods), torch.stack(means), torch.stack(sizes), x_ND, w_N)


def _check_weights(log_w_N: Tensor, step: int) -> None:
    if log_w_N.isnan().any() or not log_w_N.isfinite().any():
        raise ValueError(f"every particle has weight zero at step {step}: the observation is impossible under the "
                         "model, or a density is not a number; use more particles or a wider likelihood")


@dataclass(frozen=True)
class NoisyWalk:
    """x' = a x + N(0, s^2), y = |x|^p sign(x)^p + N(0, r^2), in one dimension; p = 2 sees only the size of x."""

    a: float = 0.9
    s: float = 1.0
    r: float = 0.3
    power: int = 1

    def draw_first(self, count: int, generator: torch.Generator) -> Tensor:
        """Standard normal states."""
        return torch.randn(count, 1, generator=generator, dtype=torch.float64)

    def draw_next(self, x_ND: Tensor, step: int, generator: torch.Generator) -> Tensor:
        """One step of the walk."""
        noise_ND = torch.randn(x_ND.shape, generator=generator, dtype=x_ND.dtype)
        return self.a * x_ND + self.s * noise_ND

    def log_next(self, x_ND: Tensor, next_ND: Tensor, step: int) -> Tensor:
        """Normal log density."""
        normal = torch.distributions.Normal(self.a * x_ND, self.s)
        return normal.log_prob(next_ND)[:, 0]

    def log_likelihood(self, x_ND: Tensor, y: Tensor, step: int) -> Tensor:
        """Normal log density."""
        seen_N = x_ND[:, 0] ** self.power
        normal = torch.distributions.Normal(seen_N, self.r)
        return normal.log_prob(y)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Three observations of the size of a walk."""
    observations = torch.tensor([1.0, 2.0, 1.5], dtype=torch.float64)
    return {
        "model": NoisyWalk(power=2),
        "observations": observations,
        "generator": generator,
        "config": Config(particles=100, fit_draws=100, iterations=2),
    }
