"""Mixture convolution network: layers that convolve Gaussian mixtures, take a ReLU of their value and thin them out.

**Equation:** f(x) = sum_i a_i N(x; b_i, C_i). Convolution with a kernel mixture: for all pairs, weights a_i a_j,
positions b_i + b_j, covariances C_i + C_j; summed over input channels. ReLU: coarse weights a'_i = a_i, or epsilon
where negative; then a''_i = a'_i relu(f(b_i)) / f'(b_i) with f' the coarse mixture. Reduction: a binary tree over the
components in Morton order; a node takes the 2 T Gaussians of its children, clusters them by single linkage, keeps the
heaviest of each of T clusters and does one EM step, r_is prop. to a_s exp(-4 w_i KL(i || s)) over s with KL < 1/2 or
the smallest (w_i: share of the node's weight), then moments. From the root down, the heaviest node gives way to its
children until the number wanted is there. Last: the integral sum_i a_i of every channel.

**Shapes:** weights (B, C, N), positions (B, C, N, D), covariances (B, C, N, D, D), D = 2 or 3; kernels the same with
(O, I, K), O channels out and I in; values at points x (B, C, M, D) are (B, C, M). In the tree: M mixtures, H nodes,
J = 2 T Gaussians in, T out.

**Reference:** Celarek, Hermosilla, Kerbl, Ropinski, Wimmer (2022), Gaussian Mixture Convolution Networks, ICLR,
arXiv:2202.09153; equations and constants from the authors' code.

**Differs:** the paper's text was not at hand. The code adds 0.1 to coarse weights and 0.05 to both values of the ReLU;
here only negative weights are lifted, to `slack` times the channel's largest |a|, so that a positive mixture stays as
it is and the fit scales with the mixture. The tree is balanced, not split at Morton bits; squared distances that differ
by less than a thousandth of the node's largest are ties; likelihoods of the EM step are not clipped. Values are
normalised at the components, not at random points. One scale serves all channels of a layer (theirs: one each), so that
a shift of the input stays a shift. The last layer is not reduced, as reduction keeps integrals; the floor of kernels'
covariances does not grow with them. No dropout, no bias (theirs is off), no weight decay, no reduction before the ReLU.

**Fails when:** components coincide (their order then decides); the mixture is positive where no component has its
centre (the ReLU drops that part). Weights below zero cannot be reduced, only after the ReLU.

**Cost:** O(B O P^2) time and memory for the ReLU of a layer with P = I N K pairs in each of O channels; O(B O P T) for
the tree.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mixwell.core.method import method
from mixwell.density.networks._mixtures import (
    Mixture,
    convolve,
    fit_relu,
    mean_variance,
    normalise,
    reduce_mixture,
    rescale,
)

FACTOR_NOISE, COVARIANCE_FLOOR, WEIGHT_MEAN = 0.05, 0.05, 0.1  # of kernels, in units of their radius where spatial


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the network; `ValueError` for one out of range."""

    channels: tuple[int, ...] = (8, 16)  # of the layers before the last, which has one for each class
    components: tuple[int, ...] = (32, 16)  # left in each channel after each of these layers, multiples of node_size
    kernel_components: int = 5  # in each kernel, one in the middle and the others around it
    radius: float = 2.5  # of kernels at the start, in the components' mean standard deviation; theirs 1 to 3.75
    node_size: int = 2  # T, Gaussians a node of the tree holds; theirs 2 or 4
    slack: float = 0.01  # epsilon, in the largest |a| of the channel

    def __post_init__(self) -> None:
        if len(self.channels) != len(self.components):
            raise ValueError(f"channels and components are {self.channels} and {self.components}; expected one length")
        counts = (self.kernel_components, self.node_size, *self.channels, *self.components)
        if min(counts) < 1:
            raise ValueError(f"channels, components, kernel_components, node_size are {self.channels}, "
                             f"{self.components}, {self.kernel_components}, {self.node_size}; expected 1 or more")
        if any(n % self.node_size for n in self.components):
            raise ValueError(f"components are {self.components}; expected multiples of node_size {self.node_size}")
        if self.radius <= 0 or self.slack < 0:
            raise ValueError(f"radius, slack are {self.radius}, {self.slack}; expected above 0, and 0 or more")


class ScaleNorm(nn.Module):
    """Space in units of the components' mean variance, a running average that training updates."""

    variance: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("variance", torch.ones(()))

    def forward(self, mixture: Mixture) -> Mixture:
        """The mixture, rescaled."""
        if self.training:
            items = len(mixture.weights_BCN)
            weight = min(items / 1000, 0.2)
            now = mean_variance(mixture, (0, 1, 2)).detach()
            self.variance = self.variance.lerp(now, weight)
        return rescale(mixture, self.variance)


class Convolution(nn.Module):
    """Learned kernels (O, I, K), C = radius^2 / 9 (A A^T + floor I), applied to mixtures (B, I, N)."""

    def __init__(self, channels_in: int, channels_out: int, dim: int, config: Config,
                 generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.radius = config.radius
        parts = config.kernel_components
        shape = (channels_out, channels_in, parts)
        weights = torch.randn(shape, generator=generator)
        self.weights = nn.Parameter(weights + WEIGHT_MEAN)
        ring = _directions(channels_out, channels_in, parts - 1, dim, generator)
        middle = ring.new_zeros(channels_out, channels_in, 1, dim)
        positions = torch.cat([middle, ring], 2)
        self.positions = nn.Parameter(positions)
        uniform = torch.rand(*shape, dim, dim, generator=generator)
        noise = FACTOR_NOISE * (2 * uniform - 1)
        self.factors = nn.Parameter(torch.eye(dim) + noise)

    def kernels(self) -> Mixture:
        """The kernel mixtures."""
        factors = self.factors
        dim = factors.shape[-1]
        eye = torch.eye(dim, dtype=factors.dtype, device=factors.device)
        square = factors @ factors.mT
        shape = square + COVARIANCE_FLOOR * eye
        variance = (self.radius / 3) ** 2
        positions = self.positions * self.radius
        return Mixture(self.weights, positions, shape * variance)

    def forward(self, mixture: Mixture) -> Mixture:
        """Mixtures (B, O, I N K), averaged over input channels."""
        weights_OIK, *normals = self.kernels()
        mean_OIK = weights_OIK / weights_OIK.shape[1]
        return convolve(mixture, Mixture(mean_OIK, *normals))


def _directions(channels_out: int, channels_in: int, count: int, dim: int,
                generator: torch.Generator | None) -> Tensor:
    """Points (O, I, count, D) of the unit circle, evenly, or of the unit sphere, by chance."""
    if dim != 2:
        drawn = torch.randn(channels_out, channels_in, count, dim, generator=generator)
        return nn.functional.normalize(drawn, dim=-1)
    step = 2 * math.pi / max(count, 1)
    angle = torch.arange(count) * step
    circle = torch.stack([angle.sin(), angle.cos()], -1)
    return circle.expand(channels_out, channels_in, -1, -1)


@method(
    title="Gaussian mixture convolution network",
    paper="Gaussian Mixture Convolution Networks",
    year=2022,
    tags={"module", "float32"},
)
class MixtureConvolutionNet(nn.Module):
    """Mixtures (B, C, N) to class logits (B, classes); see the module's card.

    `ValueError` for other than two or three axes, or fewer than one channel or class.
    """

    def __init__(self, channels_in: int, n_classes: int, dim: int, config: Config | None = None,
                 generator: torch.Generator | None = None) -> None:
        super().__init__()
        if dim not in (2, 3) or min(channels_in, n_classes) < 1:
            raise ValueError(f"dim, channels_in, n_classes are {dim}, {channels_in}, {n_classes}; "
                             "expected 2 or 3, and 1 or more")
        self.config = config = config or Config()
        self.shape = (channels_in, dim)
        widths = itertools.pairwise((channels_in, *config.channels, n_classes))
        layers = [Convolution(i, o, dim, config, generator) for i, o in widths]
        self.convolutions = nn.ModuleList(layers)
        self.norms = nn.ModuleList(ScaleNorm() for _ in config.channels)
        self.norm_out = nn.BatchNorm1d(n_classes)

    def forward(self, mixture: Mixture) -> Tensor:
        """Class logits: normalised integrals of the last layer's channels.

        `ValueError` for shapes that do not fit, or a covariance that is not positive definite.
        """
        self._check(mixture)
        config = self.config
        *hidden, last = self.convolutions
        mixture = normalise(mixture)
        for convolution, norm, left in zip(hidden, self.norms, config.components):
            positive = fit_relu(convolution(mixture), config.slack)
            fewer = reduce_mixture(positive, left, config.node_size)
            mixture = norm(fewer)
        positive = fit_relu(last(mixture), config.slack)
        integral_BC = positive.weights_BCN.sum(-1)
        logits: Tensor = self.norm_out(integral_BC)
        return logits

    def _check(self, mixture: Mixture) -> None:
        C, D = self.shape
        shapes = [tuple(part.shape) for part in mixture]
        lead = shapes[0]
        if len(lead) != 3 or lead[1] != C or shapes[1:] != [(*lead, D), (*lead, D, D)]:
            raise ValueError(f"weights, positions, covariances have shapes {shapes}; expected (B, {C}, N), "
                             f"(B, {C}, N, {D}), (B, {C}, N, {D}, {D})")
        _, info = torch.linalg.cholesky_ex(mixture.covariances_BCNDD.detach())
        if info.any():
            raise ValueError("a covariance is not positive definite; expected all to be")


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two mixtures of six components in the plane, for three classes."""
    config = Config(channels=(2,), components=(4,), kernel_components=2, node_size=2)
    factors = torch.randn(2, 1, 6, 2, 2, generator=generator)
    weights = torch.rand(2, 1, 6, generator=generator)
    positions = torch.randn(2, 1, 6, 2, generator=generator)
    squares = factors @ factors.mT
    covariances = squares + 0.3 * torch.eye(2)
    return {
        "module": MixtureConvolutionNet(1, 3, 2, config, generator),
        "mixture": Mixture(weights, positions, covariances),
    }
