"""Mixture of variational auto-encoders whose decoders are the charts of a manifold, and descent on that manifold.

**Equation:** D_k = T_k o A_k with T_k invertible on R^D and A_k: R^d -> R^D padding with zeros; E_k = A_k^+ o T_k^-1,
so E_k o D_k = id. With y = E_k(x) + sigma_z eps and a flow on the latent space, z = L_k^-1(y), ELBO_k(x) =
log q(z) + log|det dL_k^-1(y)| + log N(x; D_k(y), sigma_x^2 I) + (d/2) log(2 pi e sigma_z^2); q is a product of
densities that are flat, fall over the last `ramp` before |z| = 1 and decay as exp(-decay (|z| - 1)) beyond.
Loss: -sum_i log sum_k alpha_k exp ELBO_k(x_i) = -sum_ik beta_ik (log alpha_k + ELBO_k(x_i) - log beta_ik), with
beta_ik proportional over k to alpha_k exp ELBO_k(x_i). Charts overlap by a second loss -sum_ik gamma_ik ELBO_k(x_i),
gamma_ik fixed, proportional to max_l beta_ik where chart l has q(scale z) for q(z); alpha_k = mean_i gamma_ik.
Descent of F: v_k = (J_k^T J_k)^-1 J_k^T grad F with J_k the Jacobian of C_k = D_k o L_k at z_k = C_k^-1(x), and
x <- sum_k beta_k(x) R_k(-s v_k); the retraction R_k(v) is D_k(E_k(x + J_k v)) or C_k(z_k + v).
F = |G(x) - y|^2 / 2 is an inverse problem, |x - y|^2 / 2 a projection.

**Shapes:** x (B, D) or (N, D); for each of K charts z (K, B, L) with L = d, x (K, B, D), ELBO (K, B); resp (B, K).

**Reference:** Alberti, Hertrich, Santacesaria, Sciutto (2024), Manifold Learning by Mixture Models of VAEs for Inverse
Problems, arXiv:2303.15244, sections 2 to 4; read in the authors' code, where the paper's text was not at hand.

**Differs:** the loss keeps -log beta; `objective="weighted"` leaves it out, as the authors' code does. Coupling blocks
are dense. Batches are drawn with replacement and the last parameters kept, not the best. Descent takes beta without
latent noise, wants F to fall (the code lets it rise by a thousandth), leaves a chart out of a step that would take it
beyond |z| = 1 (the code: a penalty, if any), and stops when no point moves. `hop="best"` is ours.

**Fails when:** d is not the manifold's dimension; charts are too few to cover it, which leaves gaps; a chart's Jacobian
is nearly singular. The mean of two charts' steps lies off the manifold as far as they disagree, and a point stays where
that costs F more than a step gains.

**Cost:** a bound O(K B layers (D H + H^2)); a step of descent d times that for the Jacobians.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from mixwell.core.method import method
from mixwell.density._gaussian import LOG_2PI, log_normal
from mixwell.density._training import update
from mixwell.density.latent._atlas import (
    Direction,
    Flow,
    check_ranges,
    draw_latent,
    latent_log_density,
    misfit,
    mixed,
    overlap_responsibilities,
    riemannian_gradient,
    spread_out,
)

IGNORE = 1e-6  # charts less responsible than this take no part in a step of descent
GROW, HALVINGS, DECREASE = 1.5, 20, 1e-4  # of step sizes, after a step or before it; of F, per s |grad F|^2


@dataclass(frozen=True, kw_only=True)
class Config:
    """The mixture: its charts and its loss; `ValueError` for a value out of range."""

    n_charts: int = 2  # K
    latent_dim: int = 1  # d, the manifold's dimension
    layers: int = 5  # coupling blocks of T_k
    latent_layers: int = 3  # coupling blocks of L_k; a single coordinate has none
    hidden_dim: int = 64  # of the blocks' perceptrons
    clamp: float = 1.4  # largest log scale in a block
    sigma_x: float = 0.01  # standard deviation of the decoder, in units of x
    sigma_z: float = 0.01  # standard deviation of the encoder
    ramp: float = 0.2  # width on which the latent density falls, in (0, 1]
    edge: float = 0.05  # that density at |z| = 1 over its value at 0, in (0, 1]
    decay: float = 100.0  # its rate beyond
    objective: Literal["likelihood", "weighted"] = "likelihood"  # with the entropy of beta, or without
    learn_weights: bool = False  # alpha by gradient too, or equal until the overlap stage sets them

    def __post_init__(self) -> None:
        if self.objective not in ("likelihood", "weighted"):
            raise ValueError(f"objective is {self.objective!r}; expected likelihood or weighted")
        if max(self.ramp, self.edge) > 1:
            raise ValueError(f"ramp, edge are {self.ramp}, {self.edge}; expected at most 1")
        positive = "n_charts latent_dim layers hidden_dim clamp sigma_x sigma_z ramp edge decay"
        check_ranges(self, positive, "latent_layers")


@dataclass(frozen=True, kw_only=True)
class Training:
    """The stages of `fit`: charts on patches, all together, with overlap; `ValueError` for a value out of range."""

    seed_steps: int = 2000  # of the first stage
    seed_points: int = 100  # nearest points that a chart starts from
    candidates: int = 100  # points among which the patches' centres are chosen
    seed_lr: float = 1e-3
    steps: int = 16000  # of the second stage
    smooth_steps: int = 4000  # of these, with the Lipschitz term
    lipschitz: float = 1.0  # lambda, that term's weight
    overlap_steps: int = 4000  # of the third stage
    overlap_scale: float = 1.5  # of z in the shrunken chart
    batch_size: int = 128
    lr: float = 1e-4
    clip: float = 2.0  # largest norm of a batch's summed gradient

    def __post_init__(self) -> None:
        check_ranges(self, "seed_points candidates seed_lr overlap_scale batch_size lr clip",
                "seed_steps steps smooth_steps lipschitz overlap_steps")


class Bound(NamedTuple):
    """What the mixture says of points."""

    log_density_B: Tensor  # nats; a lower bound, or without the entropy of beta
    elbo_BK: Tensor
    resp_BK: Tensor  # beta


@method(
    title="Mixture of VAEs as charts",
    paper="Manifold Learning by Mixture Models of VAEs for Inverse Problems",
    year=2024,
    tags={"module"},
)
class ChartMixture(nn.Module):
    """K charts of a manifold in R^dim; see the module's card.

    `ValueError` where `dim` is below 2 or below the latent dimension.
    """

    def __init__(self, dim: int, config: Config | None = None, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.dim = dim
        self.config = c = config or Config()
        if dim < max(2, c.latent_dim):
            raise ValueError(f"dim is {dim} with latent_dim {c.latent_dim}; expected 2 or more, and no less than "
                             "latent_dim")
        latent_layers = c.latent_layers
        if c.latent_dim == 1:  # a single coordinate has no other half that could move it
            latent_layers = 0
        self.flow = Flow(dim, c.layers, c, generator)
        self.latent = Flow(c.latent_dim, latent_layers, c, generator)
        equal_K = torch.zeros(c.n_charts)
        self.logit_K = nn.Parameter(equal_K, requires_grad=c.learn_weights)

    def points(self, z_KBL: Tensor) -> Tensor:
        """C_k(z), (K, B, D): every chart's points of the manifold."""
        y_KBL, _ = self.latent(z_KBL)
        return self._decode(y_KBL)

    def coordinates(self, x_KBD: Tensor) -> Tensor:
        """C_k^-1(x), (K, B, L): the left inverse of `points`."""
        y_KBL = self._encode(x_KBD)
        z_KBL, _ = self.latent(y_KBL, inverse=True)
        return z_KBL

    def jacobian(self, z_KBL: Tensor) -> Tensor:
        """J_k of `points`, (K, B, D, L)."""
        columns = []
        with torch.enable_grad():
            z_KBL = z_KBL.detach().requires_grad_()
            x_KBD = self.points(z_KBL)
            # J^T u is linear in u, so that its gradient by u is a column of J
            u_KBD = torch.zeros_like(x_KBD, requires_grad=True)
            (pulled_KBL,) = torch.autograd.grad(x_KBD, z_KBL, u_KBD, create_graph=True)
            for pulled_KB in pulled_KBL.unbind(-1):
                (column_KBD,) = torch.autograd.grad(pulled_KB.sum(), u_KBD, retain_graph=True)
                columns.append(column_KBD)
        return torch.stack(columns, -1)

    def elbo(self, x_KBD: Tensor, noise_KBL: Tensor) -> tuple[Tensor, Tensor]:
        """Every chart's evidence bound (K, B), nats, for given standard normal noise, and the z (K, B, L) behind it."""
        c = self.config
        y_KBL = self._encode(x_KBD) + c.sigma_z * noise_KBL
        z_KBL, log_det_KB = self.latent(y_KBL, inverse=True)
        gap_KBD = self._decode(y_KBL) - x_KBD
        square_KB = gap_KBD.square().sum(-1)
        log_scale = self.dim * math.log(c.sigma_x)
        fit_KB = log_normal(square_KB / c.sigma_x**2, log_scale, self.dim)
        coordinate_entropy = 0.5 * (LOG_2PI + 1) + math.log(c.sigma_z)
        entropy = c.latent_dim * coordinate_entropy
        prior_KB = latent_log_density(z_KBL, c) + log_det_KB
        return prior_KB + fit_KB + entropy, z_KBL

    def forward(self, x_BD: Tensor, generator: torch.Generator | None = None) -> Bound:
        """Bounds and responsibilities; without a generator the latent noise is zero.

        `ValueError` where x has other columns than `dim`.
        """
        joint_KB, elbo_KB, _ = self._joint(x_BD, generator)
        resp_KB = joint_KB.softmax(0)
        if self.config.objective == "likelihood":
            bound_B = joint_KB.logsumexp(0)
        else:
            bound_B = (resp_KB * joint_KB).sum(0)
        return Bound(bound_B, elbo_KB.T, resp_KB.T)

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Points (count, D) of the manifold, without the decoder's noise."""
        weight_K = self.logit_K.softmax(0)
        chart_B = torch.multinomial(weight_K, count, replacement=True, generator=generator)
        z_KBL = draw_latent(count, self.config, generator, self.logit_K.dtype)
        x_KBD = self.points(z_KBL)
        return x_KBD[chart_B, torch.arange(count)]

    def roughness(self, count: int, generator: torch.Generator) -> Tensor:
        """Lipschitz term: squared moves of points as z moves by sigma_z eps, over sigma_x^2, summed over draws."""
        c = self.config
        z_KBL = draw_latent(count, c, generator, self.logit_K.dtype)
        noise_KBL = self._noise(count, generator)
        moved_KBL = z_KBL + c.sigma_z * noise_KBL
        move_KBD = self.points(z_KBL) - self.points(moved_KBL)
        return move_KBD.square().sum() / c.sigma_x**2

    def fit(self, x_ND: Tensor, generator: torch.Generator, training: Training | None = None) -> Tensor:
        """Train on points of the manifold; the second stage's loss at each step, nats a point.

        `ValueError` where x has other columns than `dim`, or fewer rows than there are charts.
        """
        how = training or Training()
        self._checked(x_ND)
        if len(x_ND) < self.config.n_charts:
            raise ValueError(f"x has {len(x_ND)} rows; expected one or more for each of {self.config.n_charts} charts")
        self._seed(x_ND, how, generator)
        optimizer = torch.optim.Adam(self.parameters(), lr=how.lr)
        losses = x_ND.new_zeros(how.steps)
        for step in range(how.steps):
            rows_B = torch.randint(len(x_ND), (how.batch_size,), generator=generator)
            bound = self(x_ND[rows_B], generator)
            loss = -bound.log_density_B.sum()
            losses[step] = loss.detach() / how.batch_size
            if step < how.smooth_steps:
                loss = loss + how.lipschitz * self.roughness(how.batch_size, generator)
            update(optimizer, loss, how.clip)
        if how.overlap_steps:
            self._overlap(x_ND, how, optimizer, generator)
        return losses

    def descend(self, objective: Callable[[Tensor], Tensor], start_BD: Tensor, *, steps: int = 500,
                step_size: float = 0.01, retraction: Literal["project", "chart"] = "project",
                hop: Literal["mean", "best"] = "mean") -> tuple[Tensor, Tensor]:
        """Lower F, an `objective` from (B, D) to (B,), from starts that are first brought onto the manifold.

        At most `steps`, the first of `step_size`, then of each row's own; through the tangent (`project`) or within the
        `chart`'s coordinates; by all charts' `mean` or by the `best` alone. Gives the points (S, B, D) of the start and
        every step, and F (S, B), which never rises. `ValueError` for other options, or starts of other columns.
        """
        known = retraction in ("project", "chart") and hop in ("mean", "best")
        if not known or steps <= 0 or step_size <= 0:
            raise ValueError(f"retraction, hop, steps, step_size are {retraction!r}, {hop!r}, {steps}, {step_size}; "
                             "expected project or chart, mean or best, and above 0")
        with torch.no_grad():
            z_KBL, share_KB = self._located(start_BD, hop)
            x_BD = mixed(share_KB, self.points(z_KBL))
            value_B = objective(x_BD)
            size_B = x_BD.new_full((len(x_BD),), step_size)
            points, values = [x_BD], [value_B]
            for _ in range(steps):
                way = self._direction(objective, x_BD, hop)
                x_BD, value_B, size_B, moved_B = self._move(objective, way, x_BD, value_B, size_B, retraction)
                if not moved_B.any():
                    break
                points.append(x_BD)
                values.append(value_B)
        return torch.stack(points), torch.stack(values)

    def project(self, y_BD: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        """Descent of |x - y|^2 / 2 from where the charts put y, with `descend`'s options and errors."""
        distance = misfit(lambda x_BD: x_BD, y_BD)
        return self.descend(distance, y_BD, **options)

    def _direction(self, objective: Callable[[Tensor], Tensor], x_BD: Tensor, hop: str) -> Direction:
        z_KBL, share_KB = self._located(x_BD, hop)
        jacobian_KBDL = self.jacobian(z_KBL)
        point_KBD = self.points(z_KBL)
        with torch.enable_grad():
            values = [objective(point_BD) for point_BD in point_KBD.requires_grad_()]
            (grad_KBD,) = torch.autograd.grad(torch.stack(values).sum(), point_KBD)
        way_KBL = riemannian_gradient(jacobian_KBDL, grad_KBD)
        tangent_KBD = (jacobian_KBDL @ way_KBL[..., None])[..., 0]
        steepness_B = mixed(share_KB, tangent_KBD.square()).sum(-1)
        return Direction(z_KBL, share_KB, way_KBL, tangent_KBD, DECREASE * steepness_B)

    def _move(self, objective: Callable[[Tensor], Tensor], way: Direction, x_BD: Tensor, value_B: Tensor,
              size_B: Tensor, retraction: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One step of every row by backtracking: points, F, next step sizes, and which rows moved."""
        moved_B = torch.zeros_like(size_B, dtype=torch.bool)
        for _ in range(HALVINGS):
            inside_KB, trial_BD = self._trial(way, x_BD, size_B, retraction)
            new_B = objective(trial_BD)
            enough_B = new_B <= value_B - size_B * way.slope_B
            falls_B = enough_B & (new_B < value_B)
            good_B = falls_B & inside_KB.any(0) & ~moved_B
            x_BD = torch.where(good_B[:, None], trial_BD, x_BD)
            value_B = torch.where(good_B, new_B, value_B)
            moved_B |= good_B
            if moved_B.all():
                break
            size_B = torch.where(moved_B, size_B, size_B / 2)
        next_B = torch.where(moved_B, GROW * size_B, size_B)
        return x_BD, value_B, next_B, moved_B

    def _trial(self, way: Direction, x_BD: Tensor, size_B: Tensor, retraction: str) -> tuple[Tensor, Tensor]:
        """Shares (K, B) of the charts that such a step does not leave, and their points' mean (B, D)."""
        size_B1 = size_B[:, None]
        if retraction == "chart":
            to_KBL = way.z_KBL - size_B1 * way.way_KBL
        else:
            beside_KBD = x_BD - size_B1 * way.tangent_KBD
            to_KBL = self.coordinates(beside_KBD)
        limit_KBL = way.z_KBL.abs().clamp(min=1)  # a point that lies beyond the end may come back
        stays_KB = (to_KBL.abs() <= limit_KBL).all(-1)
        inside_KB = way.share_KB * stays_KB
        return inside_KB, mixed(inside_KB, self.points(to_KBL))

    def _located(self, x_BD: Tensor, hop: str) -> tuple[Tensor, Tensor]:
        """Coordinates (K, B, L) in every chart, and the share (K, B) that each has in a step."""
        share_KB = self(x_BD).resp_BK.T
        if hop == "best":
            best_1B = share_KB.argmax(0, keepdim=True)
            share_KB = torch.zeros_like(share_KB).scatter(0, best_1B, 1.0)
        x_KBD = x_BD.expand(len(share_KB), -1, -1)
        large_KB = share_KB >= IGNORE
        return self.coordinates(x_KBD), share_KB * large_KB

    def _seed(self, x_ND: Tensor, how: Training, generator: torch.Generator) -> None:
        """The first stage: every chart learns the points around a centre of its own."""
        n_charts = self.config.n_charts
        tried = max(how.candidates, n_charts)
        candidates = x_ND[torch.randperm(len(x_ND), generator=generator)[:tried]]
        centre_KD = candidates[spread_out(candidates, n_charts)]
        patch = min(how.seed_points, len(x_ND))
        near_KS = torch.cdist(centre_KD, x_ND).topk(patch, largest=False).indices
        optimizer = torch.optim.Adam(self.parameters(), lr=how.seed_lr)
        for _ in range(how.seed_steps):
            noise_KSL = self._noise(patch, generator)
            elbo_KS, _ = self.elbo(x_ND[near_KS], noise_KSL)
            update(optimizer, -elbo_KS.mean(1).sum())

    def _overlap(self, x_ND: Tensor, how: Training, optimizer: torch.optim.Adam, generator: torch.Generator) -> None:
        """The third stage: the charts' bounds under fixed responsibilities that overlap."""
        gamma_KN = self._overlapping(x_ND, how.overlap_scale, generator)
        smallest = torch.finfo(gamma_KN.dtype).tiny
        weight_K = gamma_KN.mean(1).clamp(min=smallest)
        self.logit_K.data.copy_(weight_K.log())
        for _ in range(how.overlap_steps):
            rows_B = torch.randint(len(x_ND), (how.batch_size,), generator=generator)
            _, elbo_KB, _ = self._joint(x_ND[rows_B], generator)
            weighted_KB = gamma_KN[:, rows_B] * elbo_KB
            update(optimizer, -weighted_KB.sum(), how.clip)

    @torch.no_grad()
    def _overlapping(self, x_ND: Tensor, scale: float, generator: torch.Generator) -> Tensor:
        joint_KN, _, z_KNL = self._joint(x_ND, generator)
        shrunk_KN = latent_log_density(scale * z_KNL, self.config)
        own_KN = latent_log_density(z_KNL, self.config)
        return overlap_responsibilities(joint_KN, shrunk_KN - own_KN)

    def _joint(self, x_BD: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        """log alpha_k + ELBO_k and ELBO_k, (K, B), and z (K, B, L)."""
        self._checked(x_BD)
        noise_KBL = self._noise(len(x_BD), generator)
        x_KBD = x_BD.expand(len(noise_KBL), -1, -1)
        elbo_KB, z_KBL = self.elbo(x_KBD, noise_KBL)
        log_weight_K = self.logit_K.log_softmax(0)
        return elbo_KB + log_weight_K[:, None], elbo_KB, z_KBL

    def _checked(self, x_BD: Tensor) -> None:
        if x_BD.ndim != 2 or x_BD.shape[1] != self.dim:
            found = tuple(x_BD.shape)
            raise ValueError(f"x has shape {found}; expected (points, {self.dim})")

    def _encode(self, x_KBD: Tensor) -> Tensor:
        straight_KBD, _ = self.flow(x_KBD, inverse=True)
        return straight_KBD[..., :self.config.latent_dim]

    def _decode(self, y_KBL: Tensor) -> Tensor:
        missing = self.dim - self.config.latent_dim
        straight_KBD = nn.functional.pad(y_KBL, (0, missing))
        x_KBD, _ = self.flow(straight_KBD)
        return x_KBD

    def _noise(self, count: int, generator: torch.Generator | None) -> Tensor:
        dtype = self.logit_K.dtype
        shape = (self.config.n_charts, count, self.config.latent_dim)
        if generator is None:
            return torch.zeros(shape, dtype=dtype)
        return torch.randn(shape, generator=generator, dtype=dtype)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two charts of a curve in the plane, and ten points of the unit circle."""
    config = Config(layers=2, hidden_dim=8, sigma_x=0.1, sigma_z=0.1)
    angle_B = 2 * math.pi * torch.rand(10, generator=generator)
    x_BD = torch.stack([angle_B.cos(), angle_B.sin()], 1)
    return {
        "module": ChartMixture(2, config, generator),
        "x_BD": x_BD,
        "generator": generator,
    }
