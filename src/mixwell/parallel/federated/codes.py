"""Matrices in few bits, as they travel: codes packed into bytes, and a scale a matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from mixwell.parallel.federated.clients import Tensors

WIDTHS = (2, 4, 8)  # bits of a code
SCALES = 40  # that are tried for a matrix
CODE, SCALE = ".code", ".scale"


def largest(bits: int) -> int:
    """The largest code; the smallest is its negative."""
    return 2 ** (bits - 1) - 1


def best_scale(matrix: Tensor, bits: int) -> Tensor:
    """The step s between codes, of those that share out the largest weight or less, with the least squared error."""
    top = matrix.abs().max().clamp_min(1e-12)
    shares_S = torch.linspace(1 / SCALES, 1, SCALES, dtype=matrix.dtype)
    tried_S = top * shares_S / largest(bits)
    flat_1P = matrix.flatten().unsqueeze(0)
    rounded_SP = _rounded(flat_1P, tried_S.unsqueeze(1), bits)
    error_S = (rounded_SP - flat_1P).square().sum(1)
    best = error_S.argmin()
    return tried_S[best]


def _rounded(matrix: Tensor, scale: Tensor, bits: int) -> Tensor:
    most = largest(bits)
    codes = (matrix / scale).round().clamp(-most, most)
    return codes * scale


def nearest(matrix: Tensor, bits: int) -> Tensor:
    """A matrix as its codes say it."""
    return _rounded(matrix, best_scale(matrix, bits), bits)


def packed(tensors: Tensors, bits: int) -> dict[str, Tensor]:
    """Tensors as they travel: matrices as codes, 8 / bits to a byte, and a scale; others, and all at 32 bits, whole."""
    found = {}
    for name, tensor in tensors.items():
        if tensor.ndim < 2 or bits not in WIDTHS:
            found[name] = tensor
            continue
        scale = best_scale(tensor, bits)
        codes = _rounded(tensor, scale, bits) / scale
        whole_P = codes.flatten().round().long()
        found[name + CODE] = _to_bytes(whole_P + largest(bits), bits)
        found[name + SCALE] = scale
    return found


def expanded(tensors: Tensors, bits: int, like: Tensors) -> dict[str, Tensor]:
    """What `packed` made at a width, in the shapes and types of `like`."""
    found = {}
    for name, shape in like.items():
        if name in tensors:
            found[name] = tensors[name]
            continue
        codes_P = _from_bytes(tensors[name + CODE], bits)
        signed_P = codes_P[: shape.numel()] - largest(bits)
        matrix = signed_P.to(shape.dtype).view_as(shape)
        found[name] = tensors[name + SCALE] * matrix
    return found


def _to_bytes(codes_P: Tensor, bits: int) -> Tensor:
    each = 8 // bits
    missing = -len(codes_P) % each
    filled_P = torch.nn.functional.pad(codes_P, (0, missing))
    shift_E = bits * torch.arange(each)
    bytes_N = (filled_P.view(-1, each) << shift_E).sum(1)
    return bytes_N.to(torch.uint8)


def _from_bytes(bytes_N: Tensor, bits: int) -> Tensor:
    shift_E = bits * torch.arange(8 // bits)
    codes_NE = (bytes_N.long().unsqueeze(1) >> shift_E) & (2**bits - 1)
    return codes_NE.flatten()
