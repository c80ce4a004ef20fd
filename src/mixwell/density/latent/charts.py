"""Mixture of variational auto-encoders whose decoders are the charts of a manifold, and descent on that manifold.

**Equation:** D_k = T_k o A_k with T_k invertible on R^D and A_k: R^d -> R^D padding with zeros; E_k = A_k^+ o T_k^-1,
so E_k o D_k = id. With y = E_k(x) + sigma_z eps and a flow on the latent space, z = L_k^-1(y), ELBO_k(x) =
log q(z) + log|det dL_k^-1(y)| + log N(x; D_k(y), sigma_x^2 I) + (d/2) log(2 pi e sigma_z^2); q is a product of
densities that are flat, fall over the last `ramp` before |z| = 1 and decay as exp(-decay (|z| - 1)) beyond.
loss = -sum_i log sum_k alpha_k exp ELBO_k(x_i) = -sum_ik beta_ik (log alpha_k + ELBO_k(x_i) - log beta_ik), with
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

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from mixwell.core.method import method
from mixwell.density._gaussian import LOG_2PI, log_normal
from mixwell.density._training import update

IGNORE = 1e-6  # charts less responsible than this take no part in a step of descent
GROW, HALVINGS, DECREASE = 1.5, 20, 1e-4  # of step sizes, after a step or before it; of F, per s |grad F|^2


def _ranges(owner: object, positive: str, least_zero: str) -> None:
    for name in f"{positive} {least_zero}".split():
        wanted, value = "0 or more" if name in least_zero.split() else "above 0", getattr(owner, name)
        if not value >= 0 or (value == 0 and wanted == "above 0"):
            raise ValueError(f"{name} is {value}; expected {wanted}")


@dataclass(frozen=True, kw_only=True)
class Config:
    """The mixture: its charts and its loss."""

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
        if self.objective not in ("likelihood", "weighted") or max(self.ramp, self.edge) > 1:
            raise ValueError(f"objective, ramp, edge are {self.objective!r}, {self.ramp}, {self.edge}; "
                             "expected likelihood or weighted, and at most 1")
        _ranges(self, "n_charts latent_dim layers hidden_dim clamp sigma_x sigma_z ramp edge decay", "latent_layers")


@dataclass(frozen=True, kw_only=True)
class Training:
    """The stages of `fit`: every chart on a patch of its own, all together, and with overlap."""

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
        _ranges(self, "seed_points candidates seed_lr overlap_scale batch_size lr clip",
                "seed_steps steps smooth_steps lipschitz overlap_steps")


class Bound(NamedTuple):
    """What the mixture says of points."""

    log_density_B: Tensor  # nats; a lower bound, or without the entropy of beta
    elbo_BK: Tensor
    resp_BK: Tensor  # beta


def latent_log_density(z: Tensor, config: Config) -> Tensor:
    """Log density q of latent points (..., L), in nats."""
    a, edge = z.abs(), config.edge
    half = 1 - config.ramp + config.ramp * (1 + edge) / 2 + edge / config.decay
    fall = edge + (1 - edge) * ((1 - a) / config.ramp).clamp(0, 1)
    return (fall.log() - config.decay * (a - 1).relu() - math.log(2 * half)).sum(-1)


def draw_latent(count: int, config: Config, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Draws (K, count, L) from q by its inverse distribution function."""
    edge, ramp, flat = config.edge, config.ramp, 1 - config.ramp
    ramp_mass, tail_mass = ramp * (1 + edge) / 2, edge / config.decay
    signed = 2 * torch.rand(config.n_charts, count, config.latent_dim, generator=generator, dtype=dtype) - 1
    mass = signed.abs() * (flat + ramp_mass + tail_mass)
    over = (mass - flat).clamp(0, ramp_mass)
    inner = mass.clamp(max=flat) + 2 * over / (1 + (1 - 2 * (1 - edge) * over / ramp).clamp(min=0).sqrt())
    left = 1 - (mass - flat - ramp_mass).clamp(min=0) / tail_mass
    return signed.sign() * (inner - left.clamp(min=torch.finfo(dtype).eps).log() / config.decay)


def couple(x: Tensor, raw: Tensor, clamp: float, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """x exp(s) + t, or its inverse, and the log determinant; `raw` holds s before its clamp, then t."""
    scale, shift = raw.chunk(2, -1)
    scale = clamp * (2 / math.pi) * (scale / clamp).atan()
    if inverse:
        return (x - shift) * (-scale).exp(), -scale.sum(-1)
    return x * scale.exp() + shift, scale.sum(-1)


def overlap_responsibilities(joint_KB: Tensor, change_KB: Tensor) -> Tensor:
    """gamma (K, B) from log alpha_k + ELBO_k and from what shrinking chart k adds to its own."""
    shrunk_KKB = joint_KB + torch.diag_embed(change_KB.T).permute(1, 2, 0)
    best_KB = shrunk_KKB.softmax(1).amax(0)
    return best_KB / best_KB.sum(0)


def riemannian_gradient(jacobian: Tensor, gradient: Tensor) -> Tensor:
    """(J^T J)^-1 J^T g (..., L) for J (..., D, L) and a gradient g (..., D); where J is singular it is not finite."""
    return torch.linalg.solve_ex(jacobian.mT @ jacobian, jacobian.mT @ gradient[..., None])[0][..., 0]


def spread_out(x_ND: Tensor, count: int) -> Tensor:
    """Indices of `count` points far apart: of the closest pair the one with the nearer next goes, until they fit."""
    gap_NN, kept = torch.cdist(x_ND, x_ND).fill_diagonal_(math.inf), torch.arange(len(x_ND))
    while len(kept) > count:
        near, who = gap_NN[kept][:, kept].topk(2, largest=False)
        pair = torch.stack([first := near[:, 0].argmin(), who[first, 0]])
        gone = int(pair[near[pair, 1].argmin()])
        kept = torch.cat([kept[:gone], kept[gone + 1:]])
    return kept


def misfit(operator: Callable[[Tensor], Tensor], y_BM: Tensor) -> Callable[[Tensor], Tensor]:
    """F(x) = |G(x) - y|^2 / 2 of every row, for an operator G on (B, D)."""
    return lambda x_BD: (operator(x_BD) - y_BM).square().sum(-1) / 2


class Flow(nn.Module):
    """K invertible networks of coupling blocks, in which either half of the coordinates moves the other."""

    __call__: Callable[..., tuple[Tensor, Tensor]]

    def __init__(self, dim: int, layers: int, config: Config, generator: torch.Generator | None) -> None:
        super().__init__()
        self.halves, self.clamp = (dim // 2, dim - dim // 2), config.clamp
        a, b, K, H = *self.halves, config.n_charts, config.hidden_dim
        self.nets = nn.ModuleList()
        for i, o in layers * ((b, a), (a, b)):
            net = nn.ParameterList()
            for m, n in itertools.pairwise((i, H, H, 2 * o)):
                net.extend((torch.randn(K, m, n, generator=generator) / (3 * m) ** 0.5, torch.zeros(K, 1, n)))
            self.nets.append(net)

    def forward(self, z_KBD: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        """Points (K, B, D) and log determinants (K, B)."""
        parts, log_det_KB = list(z_KBD.split(self.halves, -1)), z_KBD.new_zeros(z_KBD.shape[:-1])
        for n in reversed(range(len(self.nets))) if inverse else range(len(self.nets)):
            w1, b1, w2, b2, w3, b3 = self.nets[n].parameters()
            raw_KBH = torch.baddbmm(b2, torch.baddbmm(b1, parts[1 - n % 2], w1).relu(), w2).relu()
            parts[n % 2], change_KB = couple(parts[n % 2], torch.baddbmm(b3, raw_KBH, w3), self.clamp, inverse)
            log_det_KB = log_det_KB + change_KB
        return torch.cat(parts, -1), log_det_KB


@method(
    title="Mixture of VAEs as charts",
    paper="Manifold Learning by Mixture Models of VAEs for Inverse Problems",
    year=2024,
    tags={"module"},
)
class ChartMixture(nn.Module):
    """K charts of a manifold in R^dim; see the module's card."""

    def __init__(self, dim: int, config: Config | None = None, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.dim, self.config = dim, config or Config()
        L = self.config.latent_dim
        if dim < max(2, L):
            raise ValueError(f"dim is {dim} with latent_dim {L}; expected 2 or more, and no less than latent_dim")
        self.flow = Flow(dim, self.config.layers, self.config, generator)
        self.latent = Flow(L, self.config.latent_layers if L > 1 else 0, self.config, generator)
        self.logit_K = nn.Parameter(torch.zeros(self.config.n_charts), requires_grad=self.config.learn_weights)

    def points(self, z_KBL: Tensor) -> Tensor:
        """C_k(z), (K, B, D): every chart's points of the manifold."""
        return self._decode(self.latent(z_KBL)[0])

    def coordinates(self, x_KBD: Tensor) -> Tensor:
        """C_k^-1(x), (K, B, L): the left inverse of `points`."""
        return self.latent(self._encode(x_KBD), inverse=True)[0]

    def jacobian(self, z_KBL: Tensor) -> Tensor:
        """J_k of `points`, (K, B, D, L)."""
        with torch.enable_grad():
            z_KBL = z_KBL.detach().requires_grad_()
            x_KBD = self.points(z_KBL)
            u_KBD = torch.zeros_like(x_KBD, requires_grad=True)
            pulled_KBL = torch.autograd.grad(x_KBD, z_KBL, u_KBD, create_graph=True)[0]  # J^T u, linear in u
            columns = [torch.autograd.grad(v.sum(), u_KBD, retain_graph=True)[0] for v in pulled_KBL.unbind(-1)]
        return torch.stack(columns, -1)

    def elbo(self, x_KBD: Tensor, noise_KBL: Tensor) -> tuple[Tensor, Tensor]:
        """Every chart's evidence bound (K, B), nats, for given standard normal noise, and the z (K, B, L) behind it."""
        c = self.config
        y_KBL = self._encode(x_KBD) + c.sigma_z * noise_KBL
        z_KBL, log_det_KB = self.latent(y_KBL, inverse=True)
        square_KB = (self._decode(y_KBL) - x_KBD).square().sum(-1)
        fit_KB = log_normal(square_KB / c.sigma_x**2, self.dim * math.log(c.sigma_x), self.dim)
        entropy = c.latent_dim * (0.5 * (LOG_2PI + 1) + math.log(c.sigma_z))
        return latent_log_density(z_KBL, c) + log_det_KB + fit_KB + entropy, z_KBL

    def forward(self, x_BD: Tensor, generator: torch.Generator | None = None) -> Bound:
        """Bounds and responsibilities; without a generator the latent noise is zero."""
        joint_KB, elbo_KB, _ = self._joint(x_BD, generator)
        resp_KB = joint_KB.softmax(0)
        bound_B = joint_KB.logsumexp(0) if self.config.objective == "likelihood" else (resp_KB * joint_KB).sum(0)
        return Bound(bound_B, elbo_KB.T, resp_KB.T)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Points (count, D) of the manifold, without the decoder's noise."""
        with torch.no_grad():
            k_B = torch.multinomial(self.logit_K.softmax(0), count, replacement=True, generator=generator)
            return self.points(draw_latent(count, self.config, generator, self.logit_K.dtype))[k_B, torch.arange(count)]

    def roughness(self, count: int, generator: torch.Generator) -> Tensor:
        """Lipschitz term: squared moves of points as z moves by sigma_z eps, over sigma_x^2, summed over draws."""
        z_KBL = draw_latent(count, self.config, generator, self.logit_K.dtype)
        move_KBD = self.points(z_KBL) - self.points(z_KBL + self.config.sigma_z * self._noise(count, generator))
        return move_KBD.square().sum() / self.config.sigma_x**2

    def fit(self, x_ND: Tensor, generator: torch.Generator, training: Training | None = None) -> Tensor:
        """Train on points of the manifold; the second stage's loss at each step, nats a point."""
        how = training or Training()
        if len(self._checked(x_ND)) < self.config.n_charts:
            raise ValueError(f"x has {len(x_ND)} rows; expected one or more for each of {self.config.n_charts} charts")
        self._seed(x_ND, how, generator)
        optimizer = torch.optim.Adam(self.parameters(), lr=how.lr)
        losses = x_ND.new_zeros(how.steps)
        for i in range(how.steps):
            rows = torch.randint(len(x_ND), (how.batch_size,), generator=generator)
            loss = -self(x_ND[rows], generator).log_density_B.sum()
            losses[i] = loss.detach() / len(rows)
            if i < how.smooth_steps:
                loss = loss + how.lipschitz * self.roughness(len(rows), generator)
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
        every step, and F (S, B), which never rises.
        """
        if retraction not in ("project", "chart") or hop not in ("mean", "best") or min(steps, step_size) <= 0:
            raise ValueError(f"retraction, hop, steps, step_size are {retraction!r}, {hop!r}, {steps}, {step_size}; "
                             "expected project or chart, mean or best, and above 0")
        with torch.no_grad():
            z_KBL, share_KB = self._located(start_BD, hop)
            x_BD = _mixed(share_KB, self.points(z_KBL))
            value_B, step_B = objective(x_BD), x_BD.new_full((len(x_BD),), step_size)
            path = [(x_BD, value_B)]
            for _ in range(steps):
                x_BD, value_B, step_B, moved_B = self._move(objective, x_BD, value_B, step_B, retraction, hop)
                if not bool(moved_B.any()):
                    break
                path.append((x_BD, value_B))
        points, values = zip(*path)
        return torch.stack(points), torch.stack(values)

    def project(self, y_BD: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        """Descent of |x - y|^2 / 2 from where the charts put y, with `descend`'s options."""
        return self.descend(misfit(lambda x_BD: x_BD, y_BD), y_BD, **options)

    def _move(self, objective: Callable[[Tensor], Tensor], x_BD: Tensor, value_B: Tensor, step_B: Tensor,
              retraction: str, hop: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One step of every row by backtracking: points, F, next step sizes, and which rows moved."""
        z_KBL, share_KB = self._located(x_BD, hop)
        jacobian, point_KBD = self.jacobian(z_KBL), self.points(z_KBL)
        with torch.enable_grad():
            total = torch.stack([objective(point_BD) for point_BD in point_KBD.requires_grad_()]).sum()
            grad_KBD = torch.autograd.grad(total, point_KBD)[0]
        way_KBL = riemannian_gradient(jacobian, grad_KBD)
        tangent_KBD = (jacobian @ way_KBL[..., None])[..., 0]
        fall_B = DECREASE * _mixed(share_KB, tangent_KBD.square()).sum(-1)
        moved_B = torch.zeros_like(step_B, dtype=torch.bool)
        for _ in range(HALVINGS):
            to_KBL = z_KBL - step_B[:, None] * way_KBL if retraction == "chart" else \
                self.coordinates(x_BD - step_B[:, None] * tangent_KBD)
            inside_KB = share_KB * (to_KBL.abs() <= z_KBL.abs().clamp(min=1)).all(-1)
            trial_BD = _mixed(inside_KB, self.points(to_KBL))
            new_B = objective(trial_BD)
            good_B = inside_KB.any(0) & ~moved_B & (new_B < value_B) & (new_B <= value_B - step_B * fall_B)
            x_BD, value_B = torch.where(good_B[:, None], trial_BD, x_BD), torch.where(good_B, new_B, value_B)
            moved_B |= good_B
            if bool(moved_B.all()):
                break
            step_B = torch.where(moved_B, step_B, step_B / 2)
        return x_BD, value_B, torch.where(moved_B, GROW * step_B, step_B), moved_B

    def _located(self, x_BD: Tensor, hop: str) -> tuple[Tensor, Tensor]:
        """Coordinates (K, B, L) in every chart, and the share (K, B) that each has in a step."""
        share_KB = self(x_BD).resp_BK.T
        if hop == "best":
            share_KB = torch.zeros_like(share_KB).scatter(0, share_KB.argmax(0, keepdim=True), 1.0)
        return self.coordinates(x_BD.expand(len(share_KB), -1, -1)), share_KB * (share_KB >= IGNORE)

    def _seed(self, x_ND: Tensor, how: Training, generator: torch.Generator) -> None:
        some = torch.randperm(len(x_ND), generator=generator)[:max(how.candidates, self.config.n_charts)]
        centre_KD = x_ND[some][spread_out(x_ND[some], self.config.n_charts)]
        near_KS = torch.cdist(centre_KD, x_ND).topk(min(how.seed_points, len(x_ND)), largest=False).indices
        optimizer = torch.optim.Adam(self.parameters(), lr=how.seed_lr)
        for _ in range(how.seed_steps):
            elbo_KS, _ = self.elbo(x_ND[near_KS], self._noise(near_KS.shape[1], generator))
            update(optimizer, -elbo_KS.mean(1).sum())

    def _overlap(self, x_ND: Tensor, how: Training, optimizer: torch.optim.Adam, generator: torch.Generator) -> None:
        with torch.no_grad():
            joint_KN, _, z_KNL = self._joint(x_ND, generator)
            shrunk_KN, own_KN = (latent_log_density(s * z_KNL, self.config) for s in (how.overlap_scale, 1.0))
            gamma_KN = overlap_responsibilities(joint_KN, shrunk_KN - own_KN)
            self.logit_K.copy_(gamma_KN.mean(1).clamp(min=torch.finfo(gamma_KN.dtype).tiny).log())
        for _ in range(how.overlap_steps):
            rows = torch.randint(len(x_ND), (how.batch_size,), generator=generator)
            _, elbo_KB, _ = self._joint(x_ND[rows], generator)
            update(optimizer, -(gamma_KN[:, rows] * elbo_KB).sum(), how.clip)

    def _joint(self, x_BD: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        """log alpha_k + ELBO_k and ELBO_k, (K, B), and z (K, B, L)."""
        noise_KBL = self._noise(len(self._checked(x_BD)), generator)
        elbo_KB, z_KBL = self.elbo(x_BD.expand(len(noise_KBL), -1, -1), noise_KBL)
        return elbo_KB + self.logit_K.log_softmax(0)[:, None], elbo_KB, z_KBL

    def _checked(self, x_BD: Tensor) -> Tensor:
        if x_BD.ndim != 2 or x_BD.shape[1] != self.dim:
            raise ValueError(f"x has shape {tuple(x_BD.shape)}; expected (points, {self.dim})")
        return x_BD

    def _encode(self, x_KBD: Tensor) -> Tensor:
        return self.flow(x_KBD, inverse=True)[0][..., :self.config.latent_dim]

    def _decode(self, y_KBL: Tensor) -> Tensor:
        return self.flow(nn.functional.pad(y_KBL, (0, self.dim - self.config.latent_dim)))[0]

    def _noise(self, count: int, generator: torch.Generator | None) -> Tensor:
        shape, dtype = (self.config.n_charts, count, self.config.latent_dim), self.logit_K.dtype
        return torch.zeros(shape, dtype=dtype) if generator is None else \
            torch.randn(shape, generator=generator, dtype=dtype)


def _mixed(share_KB: Tensor, value_KBD: Tensor) -> Tensor:
    """Mean over the charts that take part, whatever the others hold."""
    share_KBD = (share_KB / share_KB.sum(0))[..., None]
    return torch.where(share_KBD > 0, share_KBD * value_KBD, 0.0).sum(0)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two charts of a curve in the plane, and ten points of the unit circle."""
    angle_B = 2 * math.pi * torch.rand(10, generator=generator)
    module = ChartMixture(2, Config(layers=2, hidden_dim=8, sigma_x=0.1, sigma_z=0.1), generator)
    return {"module": module, "x_BD": torch.stack([angle_B.cos(), angle_B.sin()], 1), "generator": generator}
