"""Rotary positions: pairs of a head's numbers turned by an angle that grows with the position (Su et al. 2021).

Legend: B rows, T tokens, H query heads, G key/value heads, P head width.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mixwell.kernels.norm import row_blocks, wide, wide_dtype
from mixwell.kernels.rope import Key, frequencies, reach, scaling_key

_CPU = torch.device("cpu")


def rotary_angles(positions_BT: Tensor, width: int, theta: float, scaling: Mapping[str, Any] | None) -> Tensor:
    """Angles in radians, float32 [B, T, P / 2], of `positions_BT` [B or 1, T]."""
    length = reach(positions_BT, scaling)
    turns = frequencies(width, float(theta), scaling_key(scaling), length, positions_BT.device)
    return positions_BT.unsqueeze(-1).float() * turns


def _cos_sin(angles_BTP: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Of the angles, [B or 1, T, 1, P / 2], in the type that `like` is turned in."""
    angles = angles_BTP.unsqueeze(2).to(wide_dtype(like.dtype))
    return angles.cos(), angles.sin()


class _Rotate(torch.autograd.Function):
    """Rotation and change of layout in one: [B, T, H, P] -> [B, H, T, P]; the backward turns the other way."""

    @staticmethod
    def forward(ctx, x_BTHP: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        B, T, H, P = x_BTHP.shape
        y_BHTP = x_BTHP.new_empty(B, H, T, P)
        _turn(x_BTHP, cos, sin, y_BHTP.transpose(1, 2))
        return y_BHTP

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_BHTP: Tensor):
        cos, sin = ctx.saved_tensors
        turned = grad_BHTP.transpose(1, 2)
        grad_BTHP = turned.new_empty(turned.shape)
        _turn(turned, cos, -sin, grad_BTHP)
        return grad_BTHP, None, None


def _turn(x_BTHP: Tensor, cos: Tensor, sin: Tensor, out_BTHP: Tensor) -> None:
    """Write the rotation of `x` into `out`, a few rows at a time so that they stay in cache."""
    twice = torch.cat((cos, cos), -1)
    B, *row = x_BTHP.shape
    shared = cos.shape[0] == 1
    for rows in row_blocks(B, math.prod(row)):
        own = slice(None) if shared else rows
        angles = twice[own], sin[own]
        _turn_block(x_BTHP[rows], *angles, out_BTHP[rows])


def _turn_block(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    """The pairs (i, i + P/2) of `x` turned, into `out`; `cos` is given for each half, `sin` once."""
    x = wide(x)
    computed_there = out.dtype == x.dtype
    y = torch.mul(x, cos, out=out if computed_there else None)
    x_low, x_high = x.chunk(2, -1)
    y_low, y_high = y.chunk(2, -1)
    y_low.addcmul_(x_high, sin, value=-1)
    y_high.addcmul_(x_low, sin)
    if not computed_there:
        out.copy_(y)


class _SplitRotate(torch.autograd.Function):
    """Queries, keys and values out of one tensor, the first two turned; the backward writes one gradient in place."""

    @staticmethod
    def forward(ctx, qkv_BTHP: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int) -> tuple[Tensor, ...]:
        ctx.save_for_backward(cos, sin)
        ctx.sizes = heads, kv_heads, kv_heads
        B, T, _, P = qkv_BTHP.shape
        q_BTHP, k_BTGP, v_BTGP = qkv_BTHP.split(ctx.sizes, 2)
        q, k, v = (qkv_BTHP.new_empty(B, size, T, P) for size in ctx.sizes)
        _turn(q_BTHP, cos, sin, q.transpose(1, 2))
        _turn(k_BTGP, cos, sin, k.transpose(1, 2))
        v.copy_(v_BTGP.transpose(1, 2))
        return q, k, v

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads_BHTP: Tensor):
        cos, sin = ctx.saved_tensors
        back = -sin
        q, k, v = (grad.transpose(1, 2) for grad in grads_BHTP)
        B, T, _, P = q.shape
        grad_BTHP = q.new_empty(B, T, sum(ctx.sizes), P)
        into_q, into_k, into_v = grad_BTHP.split(ctx.sizes, 2)
        _turn(q, cos, back, into_q)
        _turn(k, cos, back, into_k)
        into_v.copy_(v)
        return grad_BTHP, None, None, None, None


def split_rotate(qkv_BTHP: Tensor, angles_BTP: Tensor, heads: int, kv_heads: int) -> tuple[Tensor, ...]:
    """q [B, H, T, P], k and v [B, G, T, P] from [B, T, H + 2 G, P]; q and k turned by the angles [B or 1, T, P/2]."""
    cos, sin = _cos_sin(angles_BTP, qkv_BTHP)
    return _SplitRotate.apply(qkv_BTHP, cos, sin, heads, kv_heads)


def rotate(x_BTHP: Tensor, angles_BTP: Tensor) -> Tensor:
    """Rotate the pairs (i, i + P/2) of each head by `angles_BTP` [B or 1, T, P/2]; returns [B, H, T, P]."""
    cos, sin = _cos_sin(angles_BTP, x_BTHP)
    return _Rotate.apply(x_BTHP, cos, sin)


@functools.lru_cache(maxsize=64)
def _turns(positions: tuple[int, ...], width: int, theta: float, scaling: Key,
           length: int) -> tuple[Tensor, Tensor]:
    """Cosines, and sines with the sign of each half, [B, 1, 1, P] of one position a row."""
    turns = frequencies(width, theta, scaling, length, _CPU)
    column = torch.tensor(positions).view(-1, 1, 1, 1)
    angles = column.float() * turns
    cos, sin = angles.cos(), angles.sin()
    signed = torch.cat((-sin, sin), -1)
    return torch.cat((cos, cos), -1), signed


def turns_one(x_BTHP: Tensor) -> bool:
    """Whether `rotate_one` serves: one token a row on a CPU, and no gradient asked for."""
    one = x_BTHP.shape[1] == 1
    return one and x_BTHP.is_cpu and not torch.is_grad_enabled()


def rotate_one(x_B1HP: Tensor, positions_B1: Tensor, theta: float, scaling: Mapping[str, Any] | None) -> Tensor:
    """`rotate` for one token a row on a CPU, without gradient or change of layout.

    All layers of a step turn by the same angles, which are kept.
    """
    width = x_B1HP.shape[-1]
    positions = tuple(positions_B1.flatten().tolist())
    key, length = scaling_key(scaling), reach(positions_B1, scaling)
    cos, sin = _turns(positions, width, float(theta), key, length)
    x = wide(x_B1HP)
    swapped = x.roll(width // 2, -1)
    y = (x * cos).addcmul_(swapped, sin)
    return y.to(x_B1HP.dtype)
