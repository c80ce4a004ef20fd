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
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mixwell.core.method import method
from mixwell.density._gaussian import divergence, log_normal, outer

VIRTUAL_POINTS, NEAR = 4, 0.5  # of the EM step: samples that a node stands for, KL below which components share
FACTOR_NOISE, COVARIANCE_FLOOR, WEIGHT_MEAN = 0.05, 0.05, 0.1  # of kernels, in units of their radius where spatial
MORTON_BITS, DISTANCE_STEPS = 16, 1024  # of a coordinate in a mixture's box; up to the largest squared one in a node


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the network."""

    channels: tuple[int, ...] = (8, 16)  # of the layers before the last, which has one for each class
    components: tuple[int, ...] = (32, 16)  # left in each channel after each of these layers, multiples of node_size
    kernel_components: int = 5  # in each kernel, one in the middle and the others around it
    radius: float = 2.5  # of kernels at the start, in the components' mean standard deviation; theirs 1 to 3.75
    node_size: int = 2  # T, Gaussians a node of the tree holds; theirs 2 or 4
    slack: float = 0.01  # epsilon, in the largest |a| of the channel

    def __post_init__(self) -> None:
        if len(self.channels) != len(self.components):
            raise ValueError(f"channels and components are {self.channels} and {self.components}; expected one length")
        if min(self.kernel_components, self.node_size, *self.channels, *self.components) < 1:
            raise ValueError(f"channels, components, kernel_components, node_size are {self.channels}, "
                             f"{self.components}, {self.kernel_components}, {self.node_size}; expected 1 or more")
        if any(n % self.node_size for n in self.components):
            raise ValueError(f"components are {self.components}; expected multiples of node_size {self.node_size}")
        if self.radius <= 0 or self.slack < 0:
            raise ValueError(f"radius, slack are {self.radius}, {self.slack}; expected above 0, and 0 or more")


class Mixture(NamedTuple):
    """Gaussian mixtures, one for each item and channel; weights are integrals and may be negative."""

    weights_BCN: Tensor
    positions_BCND: Tensor
    covariances_BCNDD: Tensor


def convolve(data: Mixture, kernel: Mixture) -> Mixture:
    """Data (B, I, N) with kernels (O, I, K): (B, O, I N K), summed over input channels."""
    weights = data.weights_BCN[:, None, :, :, None] * kernel.weights_BCN[None, :, :, None]
    positions = data.positions_BCND[:, None, :, :, None] + kernel.positions_BCND[None, :, :, None]
    covariances = data.covariances_BCNDD[:, None, :, :, None] + kernel.covariances_BCNDD[None, :, :, None]
    return Mixture(weights.flatten(2), positions.flatten(2, 4), covariances.flatten(2, 4))


def invert(covariances: Tensor) -> tuple[Tensor, Tensor]:
    """Inverses and log determinants of symmetric 2 x 2 or 3 x 3 matrices, in closed form."""
    if covariances.shape[-1] == 2:
        adjugate = covariances.flip(-1, -2) * covariances.new_tensor([[1.0, -1.0], [-1.0, 1.0]])
    else:
        adjugate = torch.linalg.cross(covariances.roll(-1, -2), covariances.roll(-2, -2))
    det = (covariances[..., 0, :] * adjugate[..., 0, :]).sum(-1)
    return adjugate / det[..., None, None], det.log()


def densities(positions_BCND: Tensor, covariances_BCNDD: Tensor, x_BCMD: Tensor) -> Tensor:
    """N(x_m; b_n, C_n) for all points and components (B, C, M, N): one product with quadratic features."""
    centre = positions_BCND.mean(-2, keepdim=True)
    b, x = positions_BCND - centre, x_BCMD - centre
    precision, log_det = invert(covariances_BCNDD)
    pull = (precision * b[..., None, :]).sum(-1)
    height = log_normal((pull * b).sum(-1), 0.5 * log_det, b.shape[-1])
    quadratic = torch.cat([-0.5 * precision.flatten(-2), pull, height[..., None]], -1)
    features = torch.cat([outer(x, x).flatten(-2), x, torch.ones_like(x[..., :1])], -1)
    return (features @ quadratic.mT).exp_()


def evaluate(mixture: Mixture, x_BCMD: Tensor) -> Tensor:
    """Values of the mixtures at points (B, C, M)."""
    return (densities(*mixture[1:], x_BCMD) @ mixture.weights_BCN[..., None])[..., 0]


def fit_relu(mixture: Mixture, slack: float = 0.0) -> Mixture:
    """A mixture near max(f, 0): new weights, none negative, on the same Gaussians."""
    a = mixture.weights_BCN
    coarse = torch.where(a > 0, a, slack * a.abs().amax(-1, keepdim=True) * (a < 0))
    value, above = (densities(*mixture[1:], mixture.positions_BCND) @ torch.stack([a, coarse], -1)).unbind(-1)
    return mixture._replace(weights_BCN=coarse * value.relu() / torch.where(above > 0, above, 1.0))


def reduce_mixture(mixture: Mixture, n_components: int, node_size: int = 2) -> Mixture:
    """At most `n_components` Gaussians for each mixture, of the same integral, mean and covariance.

    Weights must not be negative, and `n_components` must be a multiple of `node_size`.
    """
    if n_components < 1 or node_size < 1 or n_components % node_size:
        raise ValueError(f"n_components is {n_components}; expected a multiple of node_size {node_size}, 1 or more")
    if bool((mixture.weights_BCN < 0).any()):
        raise ValueError(f"a weight is {float(mixture.weights_BCN.min()):.3g}; expected none below 0: see fit_relu")
    B, C, N = mixture.weights_BCN.shape
    if n_components >= N:
        return mixture
    level = _leaves(Mixture(*(part.flatten(0, 1) for part in mixture)), node_size)
    levels = [level]
    while level.weights_BCN.shape[1] > 1:
        level = fit_nodes(Mixture(*(part.unflatten(1, (-1, 2)).flatten(2, 3) for part in level)), node_size)
        levels.insert(0, level)
    nodes = Mixture(*(torch.cat(parts, 1) for parts in zip(*levels)))
    chosen = choose_nodes(nodes.weights_BCN.detach(), n_components // node_size)
    return Mixture(*(_take(part, chosen).flatten(1, 2).unflatten(0, (B, C)) for part in nodes))


def _take(part: Tensor, index: Tensor) -> Tensor:
    """Entries of dimension `index.ndim - 1`, along it."""
    spare = part.ndim - index.ndim
    return part.gather(index.ndim - 1, index[(...,) + (None,) * spare].expand(*index.shape, *part.shape[index.ndim:]))


def _leaves(mixture: Mixture, node_size: int) -> Mixture:
    """Mixtures (M, N) in Morton order, spread evenly over a power of two of leaves (M, H, T) with weight 0 between."""
    N = mixture.weights_BCN.shape[1]
    leaves = 1 << (math.ceil(N / node_size) - 1).bit_length()
    empty_MN = mixture.weights_BCN == 0
    order_MN = morton_order(mixture.positions_BCND.detach(), empty_MN)
    here = torch.arange(max(leaves + 1, node_size), device=order_MN.device)
    count_M1 = N - empty_MN.sum(-1, keepdim=True)
    start_ML = (here[:leaves + 1] * count_M1 + leaves - 1) // leaves
    rank_MHT = start_ML[:, :-1, None] + here[:node_size]
    there_MHT = rank_MHT < start_ML[:, 1:, None]
    rank_MHT = torch.minimum(rank_MHT, (count_M1 - 1).clamp(min=0)[..., None])
    index_MHT = order_MN.gather(1, rank_MHT.flatten(1))
    a, b, c = (_take(part, index_MHT).unflatten(1, (leaves, node_size)) for part in mixture)
    return Mixture(a * there_MHT, b, c)


def morton_order(positions_MND: Tensor, empty_MN: Tensor) -> Tensor:
    """Order (M, N) of components along a Z curve through each mixture's box; empty ones last."""
    low = positions_MND.amin(1, keepdim=True)
    size = (positions_MND.amax(1, keepdim=True) - low).clamp(min=torch.finfo(low.dtype).tiny)
    cell = ((positions_MND - low) / size * (2**MORTON_BITS - 1)).round().long()
    bit = torch.arange(MORTON_BITS, device=cell.device)
    D = cell.shape[-1]
    place = bit * D + torch.arange(D, device=cell.device)[:, None]
    code_MN = (((cell[..., None] >> bit) & 1) << place).sum((-1, -2))
    return (code_MN + empty_MN.long() * 2 ** (MORTON_BITS * D)).argsort(stable=True, dim=-1)


def representatives(weights_MHJ: Tensor, positions_MHJD: Tensor, count: int) -> Tensor:
    """Index (M, H, T) of the heaviest of each of `count` clusters that single linkage finds; empty ones join first."""
    J = weights_MHJ.shape[-1]
    here = torch.arange(J, device=weights_MHJ.device)
    distance = (positions_MHJD[..., None, :] - positions_MHJD[..., None, :, :]).square().sum(-1)
    widest = distance.amax((-1, -2), keepdim=True).clamp(min=torch.finfo(distance.dtype).tiny)
    distance = (distance / widest * DISTANCE_STEPS).round()  # kernels on a ring make ties: rounding must not decide
    empty = weights_MHJ == 0
    hub = here == weights_MHJ.argmax(-1, keepdim=True)  # the one that empty components may join
    distance = distance.masked_fill(empty[..., None] | empty[..., None, :], torch.inf)
    distance = distance.masked_fill(empty[..., None] & hub[..., None, :], -1.0)
    label = here.expand_as(weights_MHJ)
    for _ in range(J - count):
        apart = label[..., None] != label[..., None, :]
        pair = torch.where(apart, distance, torch.inf).flatten(-2).argmin(-1, keepdim=True)
        one, two = label.gather(-1, pair // J), label.gather(-1, pair % J)
        label = torch.where(label == two, one, label)
    a, b = weights_MHJ[..., None], weights_MHJ[..., None, :]
    beaten = (label[..., None] == label[..., None, :]) & ((b > a) | ((b == a) & (here < here[:, None])))
    return beaten.any(-1).int().argsort(stable=True, dim=-1)[..., :count]


def fit_nodes(children: Mixture, count: int) -> Mixture:
    """One EM step from 2 T Gaussians of each node (M, H, J) to T; those of at most T that are not empty stay."""
    a, b, c = children
    pick = representatives(a.detach(), b.detach(), count)
    chosen = Mixture(*(_take(part, pick) for part in children))
    few = ((a > 0).sum(-1) <= count)[..., None, None]
    itself = pick[..., None, :] == torch.arange(a.shape[-1], device=a.device)[:, None]
    joint = torch.where(few, itself.to(a.dtype), responsibilities(children, chosen)) * a[..., None]
    mass = joint.sum(-2)
    there = mass > 0
    joint = joint / torch.where(there, mass, 1.0)[..., None, :]
    mean = (joint[..., None] * b[..., :, None, :]).sum(-3)
    covariance = (joint[..., None, None] * _around(b, c, mean)).sum(-4)
    return Mixture(mass, torch.where(there[..., None], mean, chosen.positions_BCND),
                   torch.where(there[..., None, None], covariance, chosen.covariances_BCNDD))


def responsibilities(children: Mixture, chosen: Mixture) -> Tensor:
    """Shares (M, H, J, T) of each Gaussian for the chosen ones; KL near, or the nearest, and not empty."""
    (a, b, c), (a0, b0, c0) = children, chosen
    precision, log_det0 = invert(c0)
    far = (precision[..., None, :, :, :] * _around(b, c, b0)).sum((-1, -2))
    apart_by = divergence(far, log_det0[..., None, :] - invert(c)[1][..., None], b.shape[-1])
    barred = torch.where(a0[..., None, :] > 0, apart_by.detach(), torch.inf)
    apart = (barred >= NEAR) & (barred > barred.amin(-1, keepdim=True))
    total = a.sum(-1, keepdim=True)
    share = a / torch.where(total > 0, total, 1.0)
    log_a0 = torch.where(a0 > 0, a0, 1.0).log()[..., None, :]
    return (log_a0 - VIRTUAL_POINTS * share[..., None] * apart_by).masked_fill(apart, -torch.inf).softmax(-1)


def _around(b: Tensor, c: Tensor, centre: Tensor) -> Tensor:
    """Second moments (M, H, J, T, D, D) of Gaussians (b, c) around centres (M, H, T, D)."""
    gap = b[..., :, None, :] - centre[..., None, :, :]
    return c[..., :, None, :, :] + outer(gap, gap)


def choose_nodes(weights_MHT: Tensor, count: int) -> Tensor:
    """`count` nodes (M, count) that cover a heap: full ones of largest weight give way to their children first."""
    mass_MH, full_MH = weights_MHT.sum(-1), (weights_MHT > 0).all(-1)
    rating_MH = torch.where(full_MH, mass_MH, -1.0)
    M, H = mass_MH.shape
    rows, inner_H = torch.arange(M, device=mass_MH.device), torch.arange(H, device=mass_MH.device) < H // 2
    taken_MH = torch.zeros_like(full_MH)
    taken_MH[:, 0] = True
    for _ in range(count - 1):
        node_M = torch.where(taken_MH & inner_H, rating_MH, -2.0).argmax(1)
        taken_MH[rows, node_M] = False
        taken_MH[rows, 2 * node_M + 1] = taken_MH[rows, 2 * node_M + 2] = True
    return taken_MH.nonzero()[:, 1].view(M, count)


def normalise(mixture: Mixture) -> Mixture:
    """Every item scaled to a mean variance of 1 over components and axes, every channel to root mean square value 1."""
    trace_B = mixture.covariances_BCNDD.diagonal(dim1=-2, dim2=-1).mean((1, 2, 3))
    scaled = rescale(mixture, trace_B)
    power = evaluate(scaled, scaled.positions_BCND).square().mean(-1, keepdim=True)
    return scaled._replace(weights_BCN=scaled.weights_BCN / torch.where(power > 0, power, 1.0).sqrt())


def rescale(mixture: Mixture, variance: Tensor) -> Mixture:
    """Space measured in standard deviations of `variance` (() or (B,)); integrals stay."""
    variance = variance.reshape(-1, 1, 1, 1)
    return Mixture(mixture.weights_BCN, mixture.positions_BCND / variance.sqrt(),
                   mixture.covariances_BCNDD / variance[..., None])


class ScaleNorm(nn.Module):
    """Space in units of the components' mean variance, a running average that training updates."""

    variance: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("variance", torch.ones(()))

    def forward(self, mixture: Mixture) -> Mixture:
        """The mixture, rescaled."""
        if self.training:
            now = mixture.covariances_BCNDD.detach().diagonal(dim1=-2, dim2=-1).mean()
            self.variance = self.variance.lerp(now, min(len(mixture.weights_BCN) / 1000, 0.2))
        return rescale(mixture, self.variance)


class Convolution(nn.Module):
    """Learned kernels (O, I, K), C = radius^2 / 9 (A A^T + floor I), applied to mixtures (B, I, N)."""

    def __init__(self, channels_in: int, channels_out: int, dim: int, config: Config,
                 generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.radius, shape = config.radius, (channels_out, channels_in, config.kernel_components)
        self.weights = nn.Parameter(torch.randn(shape, generator=generator) + WEIGHT_MEAN)
        around = config.kernel_components - 1
        if dim == 2:
            angle = torch.arange(around) * (2 * math.pi / max(around, 1))
            ring = torch.stack([angle.sin(), angle.cos()], -1).expand(*shape[:2], -1, -1)
        else:
            ring = nn.functional.normalize(torch.randn(*shape[:2], around, dim, generator=generator), dim=-1)
        self.positions = nn.Parameter(torch.cat([ring.new_zeros(*shape[:2], 1, dim), ring], 2))
        noise = 2 * torch.rand(*shape, dim, dim, generator=generator) - 1
        self.factors = nn.Parameter(torch.eye(dim) + FACTOR_NOISE * noise)

    def kernels(self) -> Mixture:
        """The kernel mixtures."""
        floor = COVARIANCE_FLOOR * torch.eye(self.factors.shape[-1], dtype=self.factors.dtype,
                                             device=self.factors.device)
        covariances = (self.factors @ self.factors.mT + floor) * (self.radius / 3) ** 2
        return Mixture(self.weights, self.positions * self.radius, covariances)

    def forward(self, mixture: Mixture) -> Mixture:
        """Mixtures (B, O, I N K), averaged over input channels."""
        kernels = self.kernels()
        return convolve(mixture, kernels._replace(weights_BCN=kernels.weights_BCN / kernels.weights_BCN.shape[1]))


@method(
    title="Gaussian mixture convolution network",
    paper="Gaussian Mixture Convolution Networks",
    year=2022,
    tags={"module", "float32"},
)
class MixtureConvolutionNet(nn.Module):
    """Mixtures (B, C, N) to class logits (B, classes); see the module's card."""

    def __init__(self, channels_in: int, n_classes: int, dim: int, config: Config | None = None,
                 generator: torch.Generator | None = None) -> None:
        super().__init__()
        if dim not in (2, 3) or min(channels_in, n_classes) < 1:
            raise ValueError(f"dim, channels_in, n_classes are {dim}, {channels_in}, {n_classes}; "
                             "expected 2 or 3, and 1 or more")
        self.config = config or Config()
        self.shape = (channels_in, dim)
        sizes = (channels_in, *self.config.channels, n_classes)
        self.convolutions = nn.ModuleList(Convolution(i, o, dim, self.config, generator)
                                          for i, o in itertools.pairwise(sizes))
        self.norms = nn.ModuleList(ScaleNorm() for _ in self.config.channels)
        self.norm_out = nn.BatchNorm1d(n_classes)

    def forward(self, mixture: Mixture) -> Tensor:
        """Class logits: normalised integrals of the last layer's channels."""
        self._check(mixture)
        mixture = normalise(mixture)
        for convolution, norm, left in zip(self.convolutions, self.norms, self.config.components):
            mixture = fit_relu(convolution(mixture), self.config.slack)
            mixture = norm(reduce_mixture(mixture, left, self.config.node_size))
        mixture = fit_relu(self.convolutions[-1](mixture), self.config.slack)
        logits: Tensor = self.norm_out(mixture.weights_BCN.sum(-1))
        return logits

    def _check(self, mixture: Mixture) -> None:
        C, D = self.shape
        lead = mixture.weights_BCN.shape
        if (len(lead) != 3 or lead[1] != C or mixture.positions_BCND.shape != (*lead, D)
                or mixture.covariances_BCNDD.shape != (*lead, D, D)):
            raise ValueError(f"weights, positions, covariances have shapes {[tuple(p.shape) for p in mixture]}; "
                             f"expected (B, {C}, N), (B, {C}, N, {D}), (B, {C}, N, {D}, {D})")
        if bool(torch.linalg.cholesky_ex(mixture.covariances_BCNDD.detach()).info.any()):
            raise ValueError("a covariance is not positive definite; expected all to be")


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two mixtures of six components in the plane, for three classes."""
    config = Config(channels=(2,), components=(4,), kernel_components=2, node_size=2)
    factors = torch.randn(2, 1, 6, 2, 2, generator=generator)
    mixture = Mixture(torch.rand(2, 1, 6, generator=generator), torch.randn(2, 1, 6, 2, generator=generator),
                      factors @ factors.mT + 0.3 * torch.eye(2))
    return {"module": MixtureConvolutionNet(1, 3, 2, config, generator), "mixture": mixture}
