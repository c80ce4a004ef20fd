"""What sequence mixers share: rotary positions, grouped attention in blocks, and the key/value cache.

Legend: B rows, T queries, S keys, H query heads, G key/value heads (each serves R = H / G query heads), P head width.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mixwell.kernels.norm import row_blocks, wide
from mixwell.kernels.rope import Key, frequencies, reach, scaling_key

_CPU = torch.device("cpu")
# queries per block: their scores stay in a core's cache, and half of a causal square is skipped; 64 in float32, 128 in
# bfloat16 (at 16 x 4 x 256 x 64 on an AVX2 core 64 take 45 ms forward and backward, 128 take 49, 256 take 60)
BLOCK_BYTES = 256
LONGEST = 2048  # above this many queries the saved probabilities of blocks outgrow what they gain


def rotary_angles(positions_BT: Tensor, width: int, theta: float, scaling: Mapping[str, Any] | None) -> Tensor:
    """Angles in radians, float32 [B, T, P / 2], of `positions_BT` [B or 1, T]."""
    length = reach(positions_BT, scaling)
    turns = frequencies(width, float(theta), scaling_key(scaling), length, positions_BT.device)
    return positions_BT.unsqueeze(-1).float() * turns


class _Rotate(torch.autograd.Function):
    """Rotation and change of layout in one: [B, T, H, P] -> [B, H, T, P]; the backward turns the other way."""

    @staticmethod
    def forward(ctx, x_BTHP: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        B, T, H, P = x_BTHP.shape
        return _turn(x_BTHP, cos, sin, x_BTHP.new_empty(B, H, T, P), (1, 2))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_BHTP: Tensor):
        cos, sin = ctx.saved_tensors
        B, H, T, P = grad_BHTP.shape
        return _turn(grad_BHTP.transpose(1, 2), cos, -sin, grad_BHTP.new_empty(B, T, H, P), None), None, None


def _turn(x_BTHP: Tensor, cos: Tensor, sin: Tensor, out: Tensor, swapped: tuple[int, int] | None) -> Tensor:
    """Write the rotation of `x` into `out`, dimensions `swapped`, a few rows at a time so that they stay in cache."""
    half, twice = x_BTHP.shape[-1] // 2, torch.cat((cos, cos), -1)
    for rows in row_blocks(x_BTHP.shape[0], x_BTHP[0].numel() if x_BTHP.shape[0] else 1):
        own = rows if cos.shape[0] > 1 else slice(None)
        x, into = wide(x_BTHP[rows]), out[rows] if swapped is None else out[rows].transpose(*swapped)
        y = torch.mul(x, twice[own], out=into if into.dtype == x.dtype else None)
        y[..., :half].addcmul_(x[..., half:], sin[own], value=-1)
        y[..., half:].addcmul_(x[..., :half], sin[own])
        if y is not into:
            into.copy_(y)
    return out


class _SplitRotate(torch.autograd.Function):
    """Queries, keys and values out of one tensor, the first two turned; the backward writes one gradient in place."""

    @staticmethod
    def forward(ctx, qkv_BTHP: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int) -> tuple[Tensor, ...]:
        ctx.save_for_backward(cos, sin)
        ctx.sizes = heads, kv_heads, kv_heads
        B, T, _, P = qkv_BTHP.shape
        q, k, v = qkv_BTHP.split(ctx.sizes, 2)
        outs = [qkv_BTHP.new_empty(B, n, T, P) for n in ctx.sizes]
        _turn(q, cos, sin, outs[0], (1, 2))
        _turn(k, cos, sin, outs[1], (1, 2))
        outs[2].copy_(v.transpose(1, 2))
        return tuple(outs)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads_BHTP: Tensor):
        cos, sin = ctx.saved_tensors
        B, _, T, P = grads_BHTP[0].shape
        grad = grads_BHTP[0].new_empty(B, T, sum(ctx.sizes), P)
        q, k, v = grad.split(ctx.sizes, 2)
        for into, part in ((q, grads_BHTP[0]), (k, grads_BHTP[1])):
            _turn(part.transpose(1, 2), cos, -sin, into, None)
        v.copy_(grads_BHTP[2].transpose(1, 2))
        return grad, None, None, None, None


def split_rotate(qkv_BTHP: Tensor, angles_BTP: Tensor, heads: int, kv_heads: int) -> tuple[Tensor, ...]:
    """q [B, H, T, P], k and v [B, G, T, P] from [B, T, H + 2 G, P]; q and k turned by the angles [B or 1, T, P/2]."""
    angles = angles_BTP.unsqueeze(2).to(wide(qkv_BTHP[:0]).dtype)
    return _SplitRotate.apply(qkv_BTHP, angles.cos(), angles.sin(), heads, kv_heads)


def rotate(x_BTHP: Tensor, angles_BTP: Tensor) -> Tensor:
    """Rotate the pairs (i, i + P/2) of each head by `angles_BTP` [B or 1, T, P/2]; returns [B, H, T, P]."""
    angles = angles_BTP.unsqueeze(2).to(wide(x_BTHP[:0]).dtype)
    return _Rotate.apply(x_BTHP, angles.cos(), angles.sin())


@functools.lru_cache(maxsize=64)
def _turns(positions: tuple[int, ...], width: int, theta: float, scaling: Key,
           length: int) -> tuple[Tensor, Tensor]:
    """Cosines, and sines with the sign of each half, [B, 1, 1, P] of one position a row."""
    angles = torch.tensor(positions).view(-1, 1, 1, 1).float() * frequencies(width, theta, scaling, length, _CPU)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)


def turns_one(x_BTHP: Tensor) -> bool:
    """Whether `rotate_one` serves: one token a row on a CPU, and no gradient asked for."""
    return x_BTHP.shape[1] == 1 and x_BTHP.device.type == "cpu" and not torch.is_grad_enabled()


def rotate_one(x_B1HP: Tensor, positions_B1: Tensor, theta: float, scaling: Mapping[str, Any] | None) -> Tensor:
    """`rotate` for one token a row on a CPU, without gradient or change of layout.

    All layers of a step turn by the same angles, which are kept.
    """
    key, length = (scaling_key(scaling), reach(positions_B1, scaling)) if scaling else (None, 0)
    P = x_B1HP.shape[-1]
    cos, sin = _turns(tuple(positions_B1.flatten().tolist()), P, float(theta), key, length)
    x = wide(x_B1HP)
    return (x * cos).addcmul_(x.roll(P // 2, -1), sin).to(x_B1HP.dtype)


def _bias(first: int, last: int, low: int, offset: int, window: int | None, keep_BS: Tensor | None,
          like: Tensor) -> Tensor:
    """0 where the queries `first:last` see the keys `low:last + offset`, -inf elsewhere: [B or 1, 1, T, S]."""
    query = torch.arange(first + offset, last + offset, device=like.device).unsqueeze(1)
    key = torch.arange(low, last + offset, device=like.device)
    seen = key <= query
    if window is not None:
        seen &= query - key < window
    seen = seen.unsqueeze(0)
    if keep_BS is not None:
        seen = seen & keep_BS[:, None, low : last + offset] | (key == query)  # each token sees itself: no empty row
    return torch.zeros(seen.shape, dtype=like.dtype, device=like.device).masked_fill_(~seen, -torch.inf).unsqueeze(1)


def _blocks(q_NRTP: Tensor, offset: int, window: int | None) -> list[tuple[int, int, int]]:
    """(first query, last query, first key) of each block of queries."""
    queries, size = q_NRTP.shape[2], BLOCK_BYTES // q_NRTP.element_size()
    starts = range(0, queries, size)
    lows = (0 if window is None else max(0, a + offset - window + 1) for a in starts)
    return [(a, min(a + size, queries), low) for a, low in zip(starts, lows)]


def _add(total_NSP: Tensor, part_NSP: Tensor, low: int, covered: int) -> None:
    """Add `part`, which begins at key `low`, to `total`, of which only the keys from `covered` on are written yet."""
    fresh = min(covered - low, part_NSP.shape[1])
    total_NSP[:, low : low + fresh] = part_NSP[:, :fresh]
    if fresh < part_NSP.shape[1]:
        total_NSP[:, low + fresh : low + part_NSP.shape[1]] += part_NSP[:, fresh:]


class _Attend(torch.autograd.Function):
    """Softmax attention as batched products over blocks of queries; probabilities are kept for the backward pass."""

    @staticmethod
    def forward(ctx, q_BHTP: Tensor, k_BGSP: Tensor, v_BGSP: Tensor, window: int | None,
                keep_BS: Tensor | None) -> Tensor:
        (B, H, T, P), (_, G, S, _) = q_BHTP.shape, k_BGSP.shape
        q, k, v = q_BHTP.reshape(B * G, H // G, T, P), k_BGSP.reshape(B * G, S, P), v_BGSP.reshape(B * G, S, P)
        out = torch.empty_like(q)
        saved = []
        for first, last, low in _blocks(q, S - T, window):
            high = last + S - T
            rows = q[:, :, first:last].reshape(B * G, -1, P)
            scores = torch.bmm(rows * P**-0.5, k[:, low:high].transpose(1, 2)).view(B, H, last - first, high - low)
            if last - first > 1 or window is not None or keep_BS is not None:
                scores += _bias(first, last, low, S - T, window, keep_BS, scores)
            weights = torch.softmax(scores, -1).view(B * G, -1, high - low)
            out[:, :, first:last] = torch.bmm(weights, v[:, low:high]).view(B * G, H // G, last - first, P)
            if any(ctx.needs_input_grad):
                saved.append(weights)
        ctx.window = window
        ctx.save_for_backward(q, k, v, *saved)
        return out.view(q_BHTP.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_BHTP: Tensor):
        q, k, v, *saved = ctx.saved_tensors
        (N, R, T, P), S = q.shape, k.shape[1]
        grad_out = grad_BHTP.reshape(q.shape)
        blocks = _blocks(q, S - T, ctx.window)
        # two rounded sums add up alike in any type; more of them are gathered in float32
        sums = k.dtype if len(blocks) <= 2 else wide(k[:0]).dtype
        grad_q = torch.empty_like(q)
        grad_k, grad_v = (torch.empty_like(t, dtype=sums) for t in (k, v))
        covered = S  # keys from here on have a first term; the last block of queries sees the last of them
        for weights, (first, last, low) in reversed(list(zip(saved, blocks))):
            keys = slice(low, last + S - T)
            rows, into = (t[:, :, first:last].reshape(N, -1, P) for t in (q, grad_out))
            _add(grad_v, torch.bmm(weights.transpose(1, 2), into), low, covered)
            products = torch.bmm(into, v[:, keys].transpose(1, 2))
            # torch's own fused softmax backward: (g - sum(g w)) w in one pass
            slopes = torch._softmax_backward_data(products, weights, -1, weights.dtype).mul_(P**-0.5)
            grad_q[:, :, first:last] = torch.bmm(slopes, k[:, keys]).view(N, R, last - first, P)
            _add(grad_k, torch.bmm(slopes.transpose(1, 2), rows), low, covered)
            covered = min(covered, low)
        for grad in (grad_k, grad_v):
            grad[:, :covered] = 0
        shape = (grad_BHTP.shape[0], -1, S, P)
        return grad_q.view(grad_BHTP.shape), grad_k.to(k.dtype).view(shape), grad_v.to(v.dtype).view(shape), None, None


def attend(q_BHTP: Tensor, k_BGSP: Tensor, v_BGSP: Tensor, *, window: int | None = None,
           keep_BS: Tensor | None = None) -> Tensor:
    """Causal softmax attention with grouped heads: [B, H, T, P] -> [B, H, T, P].

    The T queries are the last of the S positions; each sees the keys up to itself, of those the last `window` only,
    and no key where `keep_BS` is False (itself excepted). On a CPU blocks of batched products are some three times
    faster than torch's flash kernel at 256 positions; elsewhere, and for long inputs, torch's kernel serves.
    """
    T, S = q_BHTP.shape[2], k_BGSP.shape[2]
    if T == 1 and q_BHTP.dtype == torch.float32 and not torch.is_grad_enabled():
        return _attend_one(q_BHTP, k_BGSP, v_BGSP, window or S, keep_BS)
    if q_BHTP.device.type == "cpu" and T <= LONGEST:
        return _Attend.apply(q_BHTP, k_BGSP, v_BGSP, window, keep_BS)
    plain = window is None and keep_BS is None
    if plain and (T == S or T == 1):
        return F.scaled_dot_product_attention(q_BHTP, k_BGSP, v_BGSP, is_causal=T > 1, enable_gqa=True)
    bias = _bias(0, T, 0, S - T, window, keep_BS, q_BHTP)
    return F.scaled_dot_product_attention(q_BHTP, k_BGSP, v_BGSP, attn_mask=bias, enable_gqa=True)


def _attend_one(q_BH1P: Tensor, k_BGSP: Tensor, v_BGSP: Tensor, window: int, keep_BS: Tensor | None) -> Tensor:
    """Attention of the last position alone, in one call of torch's kernel."""
    seen = slice(max(0, k_BGSP.shape[2] - window), None)
    mask = None
    if keep_BS is not None:
        mask = keep_BS[:, None, None, seen].clone()
        mask[..., -1] = True  # each token sees itself
    grouped = q_BH1P.shape[1] != k_BGSP.shape[1]
    return F.scaled_dot_product_attention(q_BH1P, k_BGSP[:, :, seen], v_BGSP[:, :, seen], mask, enable_gqa=grouped)


def attend_scored(q_BHTP: Tensor, k_BGSP: Tensor, v_BGSV: Tensor, scale: float, *, softcap: float | None = None,
                  sinks_H: Tensor | None = None, window: int | None = None, keep_BS: Tensor | None = None) -> Tensor:
    """`attend` with scores of its own making, by plain operations: [B, H, T, P] -> [B, H, T, V].

    Scores are products times `scale`, brought below `softcap` by c tanh(s / c) before the mask; a sink is a score of
    each head that takes its share of the softmax and gives nothing (Xiao et al. 2023, 2309.17453).
    """
    (B, H, T, P), (_, G, S, _) = q_BHTP.shape, k_BGSP.shape
    q_BGRTP = q_BHTP.reshape(B, G, H // G, T, P)
    keys_BGPS = k_BGSP.unsqueeze(2).transpose(-1, -2)
    scores = wide(q_BGRTP @ keys_BGPS) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores + _bias(0, T, 0, S - T, window, keep_BS, scores).unsqueeze(2)
    if sinks_H is not None:
        sinks = sinks_H.to(scores.dtype).view(G, H // G, 1, 1)
        scores = torch.cat((scores, sinks.expand(B, -1, -1, T, -1)), -1)
    weights = scores.softmax(-1)[..., :S].to(v_BGSV.dtype)
    y_BGRTV = weights @ v_BGSV.unsqueeze(2)
    return y_BGRTV.reshape(B, H, T, -1)


class KVCache:
    """Keys and values of the positions so far; its buffers double when full, so that appending stays cheap."""

    def __init__(self) -> None:
        self.length = 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None
        self._keep: Tensor | None = None

    def append(self, k_BGTP: Tensor, v_BGTP: Tensor, mask_BT: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Add T positions; returns all keys and values [B, G, S, P], and the mask [B, S] where one was ever given."""
        B, T = k_BGTP.shape[0], k_BGTP.shape[2]
        start, self.length = self.length, self.length + T
        self._keys = keys = _room(self._keys, k_BGTP, self.length)
        self._values = values = _room(self._values, v_BGTP, self.length)
        keys[:, :, start : self.length] = k_BGTP
        values[:, :, start : self.length] = v_BGTP
        if mask_BT is not None or self._keep is not None:
            new = torch.ones(B, T, dtype=torch.bool, device=k_BGTP.device) if mask_BT is None else mask_BT
            old = new.new_ones(B, start) if self._keep is None else self._keep
            self._keep = torch.cat((old, new), 1)
        return keys[:, :, : self.length], values[:, :, : self.length], self._keep


def _room(buffer: Tensor | None, like_BGTP: Tensor, length: int) -> Tensor:
    """`buffer` if it holds `length` positions, else a larger one with the same content."""
    if buffer is not None and buffer.shape[2] >= length:
        return buffer
    B, G, _, P = like_BGTP.shape
    larger = like_BGTP.new_empty(B, G, max(64, 1 << (length - 1).bit_length()), P)
    if buffer is not None:
        larger[:, :, : buffer.shape[2]] = buffer
    return larger
