"""Batches of Gaussian mixtures: values, convolutions, the fit of a ReLU, and fewer components by a tree.

B items, C channels (I in, O out), N or K components, D axes, M points; in the tree M mixtures, H nodes, J Gaussians in
a node and T out of it, S of them chosen.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mixwell.density._gaussian import divergence, log_normal, outer

VIRTUAL_POINTS, NEAR = 4, 0.5  # of the EM step: samples that a node stands for, KL below which components share
MORTON_BITS, DISTANCE_STEPS = 16, 1024  # of a coordinate in a mixture's box; up to the largest squared one in a node


class Mixture(NamedTuple):
    """Gaussian mixtures, one for each item and channel; weights are integrals and may be negative."""

    weights_BCN: Tensor
    positions_BCND: Tensor
    covariances_BCNDD: Tensor


def convolve(data: Mixture, kernel: Mixture) -> Mixture:
    """Data (B, I, N) with kernels (O, I, K): (B, O, I N K), summed over input channels."""
    a, b, c = (part[:, None, :, :, None] for part in data)
    kernel_a, kernel_b, kernel_c = (part[None, :, :, None] for part in kernel)
    weights_BOINK = a * kernel_a
    positions_BOINKD = b + kernel_b
    covariances_BOINKDD = c + kernel_c
    return Mixture(
        weights_BOINK.flatten(2),
        positions_BOINKD.flatten(2, 4),
        covariances_BOINKDD.flatten(2, 4),
    )


def invert(covariances: Tensor) -> tuple[Tensor, Tensor]:
    """Inverses and log determinants of symmetric 2 x 2 or 3 x 3 matrices, in closed form."""
    if covariances.shape[-1] == 2:
        signs = covariances.new_tensor([[1.0, -1.0], [-1.0, 1.0]])
        adjugate = covariances.flip(-1, -2) * signs
    else:
        second = covariances.roll(-1, -2)
        third = covariances.roll(-2, -2)
        adjugate = torch.linalg.cross(second, third)
    det = (covariances[..., 0, :] * adjugate[..., 0, :]).sum(-1)
    return adjugate / det[..., None, None], det.log()


def densities(positions_BCND: Tensor, covariances_BCNDD: Tensor, x_BCMD: Tensor) -> Tensor:
    """N(x_m; b_n, C_n) for all points and components (B, C, M, N): one product with quadratic features."""
    centre = positions_BCND.mean(-2, keepdim=True)
    b = positions_BCND - centre
    x = x_BCMD - centre
    precision, log_det = invert(covariances_BCNDD)
    pull = (precision * b[..., None, :]).sum(-1)
    square = (pull * b).sum(-1)
    log_at_centre = log_normal(square, 0.5 * log_det, b.shape[-1])
    curvature = -0.5 * precision.flatten(-2)
    coefficients = torch.cat([curvature, pull, log_at_centre[..., None]], -1)
    squares = outer(x, x).flatten(-2)
    one = torch.ones_like(x[..., :1])
    features = torch.cat([squares, x, one], -1)
    return (features @ coefficients.mT).exp_()


def evaluate(mixture: Mixture, x_BCMD: Tensor) -> Tensor:
    """Values of the mixtures at points (B, C, M)."""
    weights_BCN, positions, covariances = mixture
    density_BCMN = densities(positions, covariances, x_BCMD)
    value_BCM1 = density_BCMN @ weights_BCN[..., None]
    return value_BCM1[..., 0]


def fit_relu(mixture: Mixture, slack: float = 0.0) -> Mixture:
    """A mixture near max(f, 0): new weights, none negative, on the same Gaussians."""
    a, b, c = mixture
    largest = a.abs().amax(-1, keepdim=True)
    lifted = slack * largest * (a < 0)
    coarse = torch.where(a > 0, a, lifted)
    both = torch.stack([a, coarse], -1)
    value, above = (densities(b, c, b) @ both).unbind(-1)
    wanted = coarse * value.relu()
    return Mixture(wanted / torch.where(above > 0, above, 1.0), b, c)


def reduce_mixture(mixture: Mixture, n_components: int, node_size: int = 2) -> Mixture:
    """At most `n_components` Gaussians for each mixture, of the same integral, mean and covariance.

    `ValueError` where a weight is negative, or `n_components` is no multiple of `node_size`.
    """
    if n_components < 1 or node_size < 1 or n_components % node_size:
        raise ValueError(f"n_components is {n_components}; expected a multiple of node_size {node_size}, 1 or more")
    least = float(mixture.weights_BCN.detach().min())
    if least < 0:
        raise ValueError(f"a weight is {least:.3g}; expected none below 0: see fit_relu")
    B, C, N = mixture.weights_BCN.shape
    if n_components >= N:
        return mixture
    flat = Mixture(*(part.flatten(0, 1) for part in mixture))
    nodes = _heap(flat, node_size)
    chosen_MS = choose_nodes(nodes.weights_BCN.detach(), n_components // node_size)
    parts = [_take(part, chosen_MS).flatten(1, 2) for part in nodes]
    return Mixture(*(part.unflatten(0, (B, C)) for part in parts))


def _heap(mixture: Mixture, node_size: int) -> Mixture:
    """Nodes (M, H, T) of the binary tree over mixtures (M, N), the root first and every level in order."""
    level = _leaves(mixture, node_size)
    levels = [level]
    while level.weights_BCN.shape[1] > 1:
        siblings = [part.unflatten(1, (-1, 2)) for part in level]
        pairs = [part.flatten(2, 3) for part in siblings]
        level = fit_nodes(Mixture(*pairs), node_size)
        levels.insert(0, level)
    joined = [torch.cat(parts, 1) for parts in zip(*levels)]
    return Mixture(*joined)


def _take(part: Tensor, index: Tensor) -> Tensor:
    """Entries of dimension `index.ndim - 1`, along it."""
    axis = index.ndim - 1
    further = part.shape[index.ndim:]
    shape = (*index.shape, *further)
    spare = (None,) * len(further)
    wide = index[(..., *spare)]
    return part.gather(axis, wide.expand(shape))


def _leaves(mixture: Mixture, node_size: int) -> Mixture:
    """Mixtures (M, N) in Morton order, spread evenly over a power of two of leaves (M, H, T) with weight 0 between."""
    weights_MN, positions_MND, _ = mixture
    N = weights_MN.shape[1]
    leaves = 1 << (math.ceil(N / node_size) - 1).bit_length()
    empty_MN = weights_MN == 0
    order_MN = morton_order(positions_MND.detach(), empty_MN)
    here = torch.arange(max(leaves + 1, node_size), device=order_MN.device)
    count_M1 = N - empty_MN.sum(-1, keepdim=True)
    start_ML = (here[:leaves + 1] * count_M1 + leaves - 1) // leaves
    rank_MHT = start_ML[:, :-1, None] + here[:node_size]
    there_MHT = rank_MHT < start_ML[:, 1:, None]
    last_M1 = (count_M1 - 1).clamp(min=0)
    rank_MHT = torch.minimum(rank_MHT, last_M1[..., None])
    index_MP = order_MN.gather(1, rank_MHT.flatten(1))
    taken = [_take(part, index_MP) for part in mixture]
    a, b, c = (part.unflatten(1, (leaves, node_size)) for part in taken)
    return Mixture(a * there_MHT, b, c)


def morton_order(positions_MND: Tensor, empty_MN: Tensor) -> Tensor:
    """Order (M, N) of components along a Z curve through each mixture's box; empty ones last."""
    D = positions_MND.shape[-1]
    low = positions_MND.amin(1, keepdim=True)
    extent = positions_MND.amax(1, keepdim=True) - low
    size = extent.clamp(min=torch.finfo(low.dtype).tiny)
    share = (positions_MND - low) / size
    cell = (share * (2**MORTON_BITS - 1)).round().long()
    bit = torch.arange(MORTON_BITS, device=cell.device)
    axis = torch.arange(D, device=cell.device)
    place = bit * D + axis[:, None]
    bits = (cell[..., None] >> bit) & 1
    code_MN = (bits << place).sum((-1, -2))
    beyond = 2 ** (MORTON_BITS * D)
    code_MN = code_MN + empty_MN.long() * beyond
    return code_MN.argsort(stable=True, dim=-1)


def representatives(weights_MHJ: Tensor, positions_MHJD: Tensor, count: int) -> Tensor:
    """Index (M, H, T) of the heaviest of each of `count` clusters that single linkage finds; empty ones join first."""
    J = weights_MHJ.shape[-1]
    here = torch.arange(J, device=weights_MHJ.device)
    distance = _linkage(weights_MHJ, positions_MHJD)
    label = here.expand_as(weights_MHJ)
    for _ in range(J - count):
        apart = label[..., None] != label[..., None, :]
        between = torch.where(apart, distance, torch.inf)
        pair = between.flatten(-2).argmin(-1, keepdim=True)
        one = label.gather(-1, pair // J)
        two = label.gather(-1, pair % J)
        label = torch.where(label == two, one, label)
    own, other = weights_MHJ[..., None], weights_MHJ[..., None, :]
    earlier = here < here[:, None]
    heavier = (other > own) | ((other == own) & earlier)
    together = label[..., None] == label[..., None, :]
    beaten = (together & heavier).any(-1)
    return beaten.int().argsort(stable=True, dim=-1)[..., :count]


def _linkage(weights_MHJ: Tensor, positions_MHJD: Tensor) -> Tensor:
    """Squared distances (M, H, J, J) in steps; empty components are near the heaviest alone."""
    gap = positions_MHJD[..., None, :] - positions_MHJD[..., None, :, :]
    square = gap.square().sum(-1)
    tiny = torch.finfo(square.dtype).tiny
    widest = square.amax((-1, -2), keepdim=True).clamp(min=tiny)
    distance = (square / widest * DISTANCE_STEPS).round()  # kernels on a ring make ties: rounding must not decide
    here = torch.arange(weights_MHJ.shape[-1], device=weights_MHJ.device)
    hub = here == weights_MHJ.argmax(-1, keepdim=True)  # the one that empty components may join
    empty = weights_MHJ == 0
    either_empty = empty[..., None] | empty[..., None, :]
    joins_hub = empty[..., None] & hub[..., None, :]
    distance = distance.masked_fill(either_empty, torch.inf)
    return distance.masked_fill(joins_hub, -1.0)


def fit_nodes(children: Mixture, count: int) -> Mixture:
    """One EM step from 2 T Gaussians of each node (M, H, J) to T; those of at most T that are not empty stay."""
    a, b, c = children
    pick = representatives(a.detach(), b.detach(), count)
    chosen = Mixture(*(_take(part, pick) for part in children))
    here = torch.arange(a.shape[-1], device=a.device)
    itself = pick[..., None, :] == here[:, None]
    few = (a > 0).sum(-1) <= count
    shared = responsibilities(children, chosen)
    resp = torch.where(few[..., None, None], itself.to(a.dtype), shared)
    joint = resp * a[..., None]
    mass = joint.sum(-2)
    there = mass > 0
    joint = joint / torch.where(there, mass, 1.0)[..., None, :]
    mean = (joint[..., None] * b[..., :, None, :]).sum(-3)
    second = joint[..., None, None] * _around(b, c, mean)
    mean_or_own = torch.where(there[..., None], mean, chosen.positions_BCND)
    covariance = torch.where(there[..., None, None], second.sum(-4), chosen.covariances_BCNDD)
    return Mixture(mass, mean_or_own, covariance)


def responsibilities(children: Mixture, chosen: Mixture) -> Tensor:
    """Shares (M, H, J, T) of each Gaussian for the chosen ones; KL near, or the nearest, and not empty."""
    apart_by = _divergences(children, chosen)
    there = chosen.weights_BCN > 0
    barred = torch.where(there[..., None, :], apart_by.detach(), torch.inf)
    nearest = barred.amin(-1, keepdim=True)
    apart = (barred >= NEAR) & (barred > nearest)
    a = children.weights_BCN
    total = a.sum(-1, keepdim=True)
    share = a / torch.where(total > 0, total, 1.0)
    log_chosen = torch.where(there, chosen.weights_BCN, 1.0).log()
    log_resp = log_chosen[..., None, :] - VIRTUAL_POINTS * share[..., None] * apart_by
    return log_resp.masked_fill(apart, -torch.inf).softmax(-1)


def _divergences(children: Mixture, chosen: Mixture) -> Tensor:
    """KL (M, H, J, T) of every Gaussian from every chosen one, in nats."""
    _, b, c = children
    precision, log_det_chosen = invert(chosen.covariances_BCNDD)
    moments = _around(b, c, chosen.positions_BCND)
    square = (precision[..., None, :, :, :] * moments).sum((-1, -2))
    _, log_det = invert(c)
    log_ratio = log_det_chosen[..., None, :] - log_det[..., None]
    return divergence(square, log_ratio, b.shape[-1])


def _around(b: Tensor, c: Tensor, centre: Tensor) -> Tensor:
    """Second moments (M, H, J, T, D, D) of Gaussians (b, c) around centres (M, H, T, D)."""
    gap = b[..., :, None, :] - centre[..., None, :, :]
    square = outer(gap, gap)
    return c[..., :, None, :, :] + square


def choose_nodes(weights_MHT: Tensor, count: int) -> Tensor:
    """`count` nodes (M, count) that cover a heap: full ones of largest weight give way to their children first."""
    mass_MH = weights_MHT.sum(-1)
    full_MH = (weights_MHT > 0).all(-1)
    rating_MH = torch.where(full_MH, mass_MH, -1.0)
    M, H = mass_MH.shape
    rows_M = torch.arange(M, device=mass_MH.device)
    index_H = torch.arange(H, device=mass_MH.device)
    inner_H = index_H < H // 2
    taken_MH = torch.zeros_like(full_MH)
    taken_MH[:, 0] = True
    for _ in range(count - 1):
        open_MH = torch.where(taken_MH & inner_H, rating_MH, -2.0)
        node_M = open_MH.argmax(1)
        first_child_M = 2 * node_M + 1
        taken_MH[rows_M, node_M] = False
        taken_MH[rows_M, first_child_M] = True
        taken_MH[rows_M, first_child_M + 1] = True
    _, chosen = taken_MH.nonzero(as_tuple=True)
    return chosen.view(M, count)


def mean_variance(mixture: Mixture, axes: tuple[int, ...]) -> Tensor:
    """Variance of the components, mean over the space's axes and some of the mixtures' (B, C, N)."""
    variances_BCND = mixture.covariances_BCNDD.diagonal(dim1=-2, dim2=-1)
    return variances_BCND.mean((*axes, 3))


def normalise(mixture: Mixture) -> Mixture:
    """Every item scaled to a mean variance of 1 over components and axes, every channel to root mean square value 1."""
    variance_B = mean_variance(mixture, (1, 2))
    scaled = rescale(mixture, variance_B)
    value_BCN = evaluate(scaled, scaled.positions_BCND)
    power_BCN = value_BCN.square()
    power_BC1 = power_BCN.mean(-1, keepdim=True)
    safe_BC1 = torch.where(power_BC1 > 0, power_BC1, 1.0)
    weights_BCN = scaled.weights_BCN / safe_BC1.sqrt()
    return scaled._replace(weights_BCN=weights_BCN)


def rescale(mixture: Mixture, variance: Tensor) -> Mixture:
    """Space measured in standard deviations of `variance` (() or (B,)); integrals stay."""
    a, b, c = mixture
    variance = variance.reshape(-1, 1, 1, 1)
    return Mixture(a, b / variance.sqrt(), c / variance[..., None])
