"""Arithmetic of charts: latent density, invertible networks, steps on a manifold, points far apart, overlap.

K charts, B points, N rows, D columns, L latent coordinates, H hidden units, M measurements.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Config = Any  # of `charts`, which builds on this module


def check_ranges(owner: object, positive: str, least_zero: str) -> None:
    """`ValueError` for a field that is not above zero, or not zero or more, of those that either string names."""
    for name in positive.split():
        value = getattr(owner, name)
        if not value > 0:
            raise ValueError(f"{name} is {value}; expected above 0")
    for name in least_zero.split():
        value = getattr(owner, name)
        if not value >= 0:
            raise ValueError(f"{name} is {value}; expected 0 or more")


def half_masses(config: Config) -> tuple[float, float, float]:
    """Masses of q's flat part, ramp and tail on one side of zero, before q is scaled to integrate to one."""
    flat = 1 - config.ramp
    ramp = config.ramp * (1 + config.edge) / 2
    tail = config.edge / config.decay
    return flat, ramp, tail


def latent_log_density(z: Tensor, config: Config) -> Tensor:
    """Log density q of latent points (..., L), in nats."""
    flat, ramp, tail = half_masses(config)
    total = 2 * (flat + ramp + tail)
    radius = z.abs()
    inwards = (1 - radius) / config.ramp
    left = inwards.clamp(0, 1)  # share of the ramp between the point and the edge
    height = config.edge + (1 - config.edge) * left
    beyond = (radius - 1).relu()
    log_height = height.log() - config.decay * beyond
    log_q = log_height - math.log(total)
    return log_q.sum(-1)


def draw_latent(count: int, config: Config, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Draws (K, count, L) from q by its inverse distribution function."""
    flat, ramp, tail = half_masses(config)
    shape = (config.n_charts, count, config.latent_dim)
    uniform = torch.rand(shape, generator=generator, dtype=dtype)
    signed = 2 * uniform - 1
    mass = signed.abs() * (flat + ramp + tail)
    on_flat = mass.clamp(max=flat)
    on_ramp = (mass - flat).clamp(0, ramp)
    on_tail = (mass - flat - ramp).clamp(min=0)
    # the mass is quadratic in the way up the ramp; this form of the root cancels nothing
    lost = 2 * (1 - config.edge) * on_ramp / config.ramp
    root = (1 - lost).clamp(min=0).sqrt()
    inner = on_flat + 2 * on_ramp / (1 + root)
    left = 1 - on_tail / tail
    smallest = torch.finfo(dtype).eps  # at the tail's very end the logarithm would be infinite
    log_left = left.clamp(min=smallest).log()
    radius = inner - log_left / config.decay
    return signed.sign() * radius


class Direction(NamedTuple):
    """Where the charts would move their points."""

    z_KBL: Tensor
    share_KB: Tensor  # of each chart in the step
    way_KBL: Tensor  # steepest ascent of F in the chart's coordinates
    tangent_KBD: Tensor  # the same in R^D
    slope_B: Tensor  # least fall of F for a step of size one


class Flow(nn.Module):
    """K invertible networks of coupling blocks, in which either half of the coordinates moves the other.

    Each block holds the three layers (K, inputs, outputs) and biases (K, 1, outputs) of its perceptron.
    """

    __call__: Callable[..., tuple[Tensor, Tensor]]

    def __init__(self, dim: int, layers: int, config: Config, generator: torch.Generator | None) -> None:
        super().__init__()
        first = dim // 2
        second = dim - first
        self.halves = (first, second)
        self.clamp = config.clamp
        self.nets = nn.ModuleList()
        for inputs, outputs in layers * ((second, first), (first, second)):
            widths = (inputs, config.hidden_dim, config.hidden_dim, 2 * outputs)
            self.nets.append(_perceptrons(config.n_charts, widths, generator))

    def forward(self, z_KBD: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        """Points (K, B, D) and log determinants (K, B)."""
        parts = list(z_KBD.split(self.halves, -1))
        log_det_KB = z_KBD.new_zeros(z_KBD.shape[:-1])
        order = range(len(self.nets))
        if inverse:
            order = order[::-1]
        for n in order:
            moved = n % 2
            raw_KBO = _through(self.nets[n], parts[1 - moved])
            parts[moved], change_KB = couple(parts[moved], raw_KBO, self.clamp, inverse)
            log_det_KB = log_det_KB + change_KB
        return torch.cat(parts, -1), log_det_KB


def _perceptrons(charts: int, widths: tuple[int, ...], generator: torch.Generator | None) -> nn.ParameterList:
    """Weights and biases of K perceptrons, layer by layer."""
    net = nn.ParameterList()
    for inputs, outputs in itertools.pairwise(widths):
        weight = torch.randn(charts, inputs, outputs, generator=generator)
        scale = (3 * inputs) ** 0.5
        bias = torch.zeros(charts, 1, outputs)
        net.extend((weight / scale, bias))
    return net


def _through(net: nn.Module, x_KBD: Tensor) -> Tensor:
    """Outputs of K perceptrons with two hidden layers, each for its own points."""
    w1, b1, w2, b2, w3, b3 = net.parameters()
    hidden_KBH = torch.baddbmm(b1, x_KBD, w1).relu()
    hidden_KBH = torch.baddbmm(b2, hidden_KBH, w2).relu()
    return torch.baddbmm(b3, hidden_KBH, w3)


def couple(x: Tensor, raw: Tensor, clamp: float, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """x exp(s) + t, or its inverse, and the log determinant; `raw` holds s before its clamp, then t."""
    unclamped, shift = raw.chunk(2, -1)
    largest = clamp * (2 / math.pi)
    scale = largest * (unclamped / clamp).atan()
    log_det = scale.sum(-1)
    if inverse:
        centred = x - shift
        return centred * (-scale).exp(), -log_det
    return x * scale.exp() + shift, log_det


def overlap_responsibilities(joint_KB: Tensor, change_KB: Tensor) -> Tensor:
    """gamma (K, B) from log alpha_k + ELBO_k and from what shrinking chart k adds to its own."""
    own_KKB = torch.diag_embed(change_KB.T).permute(1, 2, 0)
    shrunk_KKB = joint_KB + own_KKB
    resp_KKB = shrunk_KKB.softmax(1)
    best_KB = resp_KKB.amax(0)
    return best_KB / best_KB.sum(0)


def riemannian_gradient(jacobian: Tensor, gradient: Tensor) -> Tensor:
    """(J^T J)^-1 J^T g (..., L) for J (..., D, L) and a gradient g (..., D); where J is singular it is not finite."""
    metric = jacobian.mT @ jacobian
    pulled = jacobian.mT @ gradient[..., None]
    solution, _ = torch.linalg.solve_ex(metric, pulled)
    return solution[..., 0]


def spread_out(x_ND: Tensor, count: int) -> Tensor:
    """Indices of `count` points far apart: of the closest pair the one with the nearer next goes, until they fit."""
    gap_NN = torch.cdist(x_ND, x_ND)
    gap_NN.fill_diagonal_(math.inf)
    kept = torch.arange(len(x_ND))
    while len(kept) > count:
        near, neighbour = gap_NN[kept][:, kept].topk(2, largest=False)
        first = near[:, 0].argmin()
        pair = torch.stack([first, neighbour[first, 0]])
        next_gap = near[pair, 1]
        gone = int(pair[next_gap.argmin()])
        kept = torch.cat([kept[:gone], kept[gone + 1:]])
    return kept


def mixed(share_KB: Tensor, value_KBD: Tensor) -> Tensor:
    """Mean (B, D) over the charts that take part, whatever the others hold."""
    total_B = share_KB.sum(0)
    share_KBD = (share_KB / total_B)[..., None]
    # a product with a share of zero would hand a NaN on
    part_KBD = torch.where(share_KBD > 0, share_KBD * value_KBD, 0.0)
    return part_KBD.sum(0)


def misfit(operator: Callable[[Tensor], Tensor], y_BM: Tensor) -> Callable[[Tensor], Tensor]:
    """F(x) = |G(x) - y|^2 / 2 of every row, for an operator G on (B, D)."""

    def half_square(x_BD: Tensor) -> Tensor:
        gap_BM = operator(x_BD) - y_BM
        return gap_BM.square().sum(-1) / 2

    return half_square
