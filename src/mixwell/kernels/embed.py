"""The embedding and the head: cross-entropy in chunks, so that float32 logits of few rows exist at a time.

Legend: N rows (tokens), D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mixwell.kernels.norm import wide, wide_dtype

ROWS = 256  # rows of logits held in float32 at a time; measured best from 2,000 to 32,000 words


class _Embed(torch.autograd.Function):
    """Rows of a table. The backward sums in float32: in bfloat16 a frequent word would lose most of its gradient."""

    @staticmethod
    def forward(ctx, weight_VD: Tensor, ids: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.shape, ctx.dtype = weight_VD.shape, weight_VD.dtype
        return F.embedding(ids, weight_VD)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        (ids,) = ctx.saved_tensors
        summed = wide_dtype(ctx.dtype)
        total_VD = torch.zeros(ctx.shape, dtype=summed, device=grad.device)
        grad_ND = grad.reshape(-1, ctx.shape[1])
        total_VD.index_add_(0, ids.reshape(-1), grad_ND.to(summed))
        return total_VD.to(ctx.dtype), None


def embed(weight_VD: Tensor, ids: Tensor) -> Tensor:
    """Rows `ids` of the table: [...] -> [..., D]."""
    return _Embed.apply(weight_VD, ids)


class _MeanNats(torch.autograd.Function):
    """Mean cross-entropy; gradients are made in the forward pass, chunk by chunk, and scaled in the backward pass."""

    @staticmethod
    def forward(ctx, h_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
        count = max(targets_N.shape[0], 1)
        summed = wide_dtype(h_ND.dtype)
        total = torch.zeros((), dtype=summed, device=h_ND.device)
        needs_h, needs_weight, _ = ctx.needs_input_grad
        grad_h = torch.empty_like(h_ND) if needs_h else None
        grad_weight = torch.zeros_like(weight_VD, dtype=summed) if needs_weight else None
        for h, targets, rows in _chunks(h_ND, targets_N):
            logits, nats = _exp_and_nats(h, weight_VD, targets)
            total += nats.sum()
            if grad_h is None and grad_weight is None:
                continue
            slopes = _slopes(logits, targets, count).to(h.dtype)
            if grad_h is not None:
                torch.mm(slopes, weight_VD, out=grad_h[rows])
            if grad_weight is not None:
                grad_weight += slopes.T @ h
        ctx.grads = grad_h, None if grad_weight is None else grad_weight.to(weight_VD.dtype)
        return total / count

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        grad_h, grad_weight = ctx.grads
        scaled = (None if g is None else g * grad.to(g.dtype) for g in (grad_h, grad_weight))
        return *scaled, None


def _chunks(h_ND: Tensor, targets_N: Tensor) -> Iterator[tuple[Tensor, Tensor, slice]]:
    """Few rows at a time, with their targets and where they stand."""
    for start in range(0, h_ND.shape[0], ROWS):
        rows = slice(start, start + ROWS)
        yield h_ND[rows], targets_N[rows], rows


def _exp_and_nats(h_ND: Tensor, weight_VD: Tensor, targets_N: Tensor,
                  softcap: float | None = None) -> tuple[Tensor, Tensor]:
    """(exp(logits - their largest) [N, V], cross-entropy [N]), in float32 or better."""
    logits = softcapped(wide(F.linear(h_ND, weight_VD)), softcap)
    picked = logits.gather(1, targets_N.unsqueeze(1))
    top = logits.amax(-1, keepdim=True)
    exps = logits.sub_(top).exp_()
    total = exps.sum(-1, keepdim=True)
    log_total = total.log_() + top
    nats = log_total - picked
    return exps, nats.squeeze(1)


def _slopes(exps_NV: Tensor, targets_N: Tensor, count: int) -> Tensor:
    """d(mean nats) / d(logits), in place of `exps_NV`."""
    total_N1 = exps_NV.sum(-1, keepdim=True)
    slopes = exps_NV.mul_((total_N1 * count).reciprocal_())
    targets_N1 = targets_N.unsqueeze(1)
    minus = torch.full_like(slopes[:, :1], -1.0 / count)
    return slopes.scatter_add_(1, targets_N1, minus)


def softcapped(logits: Tensor, cap: float | None) -> Tensor:
    """c tanh(logits / c), or the logits where there is no cap c."""
    if cap is None:
        return logits
    share = torch.tanh(logits / cap)
    return cap * share


def _capped_nats(h_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, cap: float) -> Tensor:
    """Sum of the cross-entropies in nats under softcapped logits; plain operations."""
    logits = wide(F.linear(h_ND, weight_VD))
    capped = softcapped(logits, cap)
    return F.cross_entropy(capped, targets_N, reduction="sum")


def _mean_capped_nats(h_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, cap: float) -> Tensor:
    total = wide(h_ND.new_zeros(()))
    for h, targets, _ in _chunks(h_ND, targets_N):
        total = total + checkpoint(_capped_nats, h, weight_VD, targets, cap, use_reentrant=False)
    count = max(targets_N.shape[0], 1)
    return total / count


def mean_nats(h_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, softcap: float | None = None) -> Tensor:
    """Mean cross-entropy in nats of the logits h W^T against `targets_N`: a scalar in float32 or better.

    Differentiable once in `h_ND` and `weight_VD`. No rows give 0. With `softcap` c the logits l are c tanh(l / c).
    """
    if softcap is not None:
        return _mean_capped_nats(h_ND, weight_VD, targets_N, softcap)
    return _MeanNats.apply(h_ND, weight_VD, targets_N)


@torch.no_grad()
def row_nats(h_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, softcap: float | None = None) -> Tensor:
    """Cross-entropy in nats of each row [N], without gradient."""
    nats_N = h_ND.new_empty(h_ND.shape[0], dtype=wide_dtype(h_ND.dtype))
    for h, targets, rows in _chunks(h_ND, targets_N):
        _, nats_N[rows] = _exp_and_nats(h, weight_VD, targets, softcap)
    return nats_N
