"""Causal softmax attention with grouped heads, in blocks of queries.

Legend: B rows, T queries, S keys, H query heads, G key/value heads (each serves R = H / G query heads), P head width,
N = B G.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mixwell.kernels.embed import softcapped
from mixwell.kernels.norm import wide, wide_dtype

# queries per block: their scores stay in a core's cache, and half of a causal square is skipped; 64 in float32, 128 in
# bfloat16 (at 16 x 4 x 256 x 64 on an AVX2 core 64 take 45 ms forward and backward, 128 take 49, 256 take 60)
BLOCK_BYTES = 256
LONGEST = 2048  # above this many queries the saved probabilities of blocks outgrow what they gain


class _Block(NamedTuple):
    """The queries `first` up to `last`, and the keys `low` up to `high` that any of them sees."""

    first: int
    last: int
    low: int
    high: int

    def queries(self, t_NRTP: Tensor) -> Tensor:
        """This block's part, as a view."""
        return t_NRTP[:, :, self.first : self.last]

    def rows(self, t_NRTP: Tensor) -> Tensor:
        """This block's part with the heads of a group side by side, [N, R T, P]."""
        return self.queries(t_NRTP).flatten(1, 2)

    def write(self, rows: Tensor, t_NRTP: Tensor) -> None:
        """Write rows [N, R T, P] into this block's part."""
        part = self.queries(t_NRTP)
        part.copy_(rows.view_as(part))

    def keys(self, t_NSP: Tensor) -> Tensor:
        """This block's keys or values, as a view."""
        return t_NSP[:, self.low : self.high]


def _blocks(queries: int, offset: int, window: int | None, size: int) -> list[_Block]:
    """Blocks of `size` queries, the first of which stands at key `offset`."""
    found = []
    for first in range(0, queries, size):
        last = min(first + size, queries)
        low = 0
        if window is not None:
            low = max(0, first + offset - window + 1)
        found.append(_Block(first, last, low, last + offset))
    return found


def _blocks_of(q_NRTP: Tensor, k_NSP: Tensor, window: int | None) -> list[_Block]:
    """Blocks for these queries, which are the last of the positions."""
    queries, keys = q_NRTP.shape[2], k_NSP.shape[1]
    size = BLOCK_BYTES // q_NRTP.element_size()
    return _blocks(queries, keys - queries, window, size)


def _bias(block: _Block, window: int | None, keep_BS: Tensor | None, like: Tensor) -> Tensor:
    """0 where a query of the block sees a key of it, -inf elsewhere: [B or 1, 1, T, S]."""
    key = torch.arange(block.low, block.high, device=like.device)
    earlier = key.shape[0] - (block.last - block.first)
    query = key[earlier:].unsqueeze(1)  # the queries are the last of the keys
    seen = key <= query
    if window is not None:
        seen &= query - key < window
    seen = seen.unsqueeze(0)
    if keep_BS is not None:
        kept = keep_BS[:, None, block.low : block.high]
        itself = key == query  # each token sees itself: no empty row
        seen = seen & kept | itself
    unseen = seen.logical_not_()
    bias = torch.zeros(seen.shape, dtype=like.dtype, device=like.device)
    return bias.masked_fill_(unseen, -torch.inf).unsqueeze(1)


def _add(total_NSP: Tensor, part_NSP: Tensor, low: int, covered: int) -> None:
    """Add `part`, which begins at key `low`, to `total`, of which only the keys from `covered` on are written yet."""
    high = low + part_NSP.shape[1]
    edge = min(covered, high)
    fresh, more = part_NSP.tensor_split((edge - low,), 1)
    total_NSP[:, low:edge] = fresh
    total_NSP[:, edge:high] += more


class _Attend(torch.autograd.Function):
    """Softmax attention as batched products over blocks of queries; probabilities are kept for the backward pass."""

    @staticmethod
    def forward(ctx, q_BHTP: Tensor, k_BGSP: Tensor, v_BGSP: Tensor, window: int | None,
                keep_BS: Tensor | None) -> Tensor:
        B, _, T, P = q_BHTP.shape
        k_NSP, v_NSP = (t.flatten(0, 1) for t in (k_BGSP, v_BGSP))
        q_NRTP = q_BHTP.reshape(k_NSP.shape[0], -1, T, P)
        out_NRTP = torch.empty_like(q_NRTP)
        masked = window is not None or keep_BS is not None
        differentiated = any(ctx.needs_input_grad)
        saved = []
        for block in _blocks_of(q_NRTP, k_NSP, window):
            scores = _scores(block, q_NRTP, k_NSP)
            if masked or block.last - block.first > 1:
                _mask(block, scores.unflatten(0, (B, -1)), window, keep_BS)
            weights = torch.softmax(scores, -1)
            values = block.keys(v_NSP)
            block.write(torch.bmm(weights, values), out_NRTP)
            if differentiated:
                saved.append(weights)
        ctx.window = window
        ctx.save_for_backward(q_NRTP, k_NSP, v_NSP, *saved)
        return out_NRTP.view(q_BHTP.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_BHTP: Tensor):
        q, k, v, *saved = ctx.saved_tensors
        grad_out = grad_BHTP.reshape(q.shape)
        blocks = _blocks_of(q, k, ctx.window)
        # two rounded sums add up alike in any type; more of them are gathered in float32
        sums = k.dtype if len(blocks) <= 2 else wide_dtype(k.dtype)
        grad_q = torch.empty_like(q)
        grad_k, grad_v = (torch.empty_like(t, dtype=sums) for t in (k, v))
        covered = k.shape[1]  # keys from here on have a first term; the last block of queries sees the last of them
        for block, weights in zip(reversed(blocks), reversed(saved)):
            keys, values = block.keys(k), block.keys(v)
            grad = block.rows(grad_out)
            slopes = _score_slopes(weights, torch.bmm(grad, values.mT), q.shape[-1])
            block.write(torch.bmm(slopes, keys), grad_q)
            part_k = torch.bmm(slopes.mT, block.rows(q))
            part_v = torch.bmm(weights.mT, grad)
            _add(grad_k, part_k, block.low, covered)
            _add(grad_v, part_v, block.low, covered)
            covered = min(covered, block.low)
        grad_k[:, :covered] = 0
        grad_v[:, :covered] = 0
        rows = grad_BHTP.shape[0]
        grad_k, grad_v = (t.to(k.dtype).unflatten(0, (rows, -1)) for t in (grad_k, grad_v))
        return grad_q.view(grad_BHTP.shape), grad_k, grad_v, None, None


def _mask(block: _Block, scores: Tensor, window: int | None, keep_BS: Tensor | None) -> None:
    """Take the keys that a query does not see out of its scores [B, G, R T, S], in place."""
    B, _, _, S = scores.shape
    heads = scores.view(B, -1, block.last - block.first, S)
    heads += _bias(block, window, keep_BS, heads)


def _scores(block: _Block, q_NRTP: Tensor, k_NSP: Tensor) -> Tensor:
    """Scaled scores of the block's queries and keys, [N, R T, S]."""
    scale = q_NRTP.shape[-1] ** -0.5
    rows = block.rows(q_NRTP)
    return torch.bmm(rows * scale, block.keys(k_NSP).mT)


def _score_slopes(weights: Tensor, grad: Tensor, width: int) -> Tensor:
    """Gradient of the unscaled scores from that of the weights: (g - sum(g w)) w, torch's own in one pass."""
    slopes = torch._softmax_backward_data(grad, weights, -1, weights.dtype)
    return slopes.mul_(width**-0.5)


def attend(q_BHTP: Tensor, k_BGSP: Tensor, v_BGSP: Tensor, *, window: int | None = None,
           keep_BS: Tensor | None = None) -> Tensor:
    """Causal softmax attention with grouped heads: [B, H, T, P] -> [B, H, T, P].

    The T queries are the last of the S positions; each sees the keys up to itself, of those the last `window` only,
    and no key where `keep_BS` is False (itself excepted). On a CPU blocks of batched products are some three times
    faster than torch's flash kernel at 256 positions; elsewhere, and for long inputs, torch's kernel serves.
    """
    T, S = q_BHTP.shape[2], k_BGSP.shape[2]
    alone = T == 1 and q_BHTP.dtype == torch.float32
    if alone and not torch.is_grad_enabled():
        return _attend_one(q_BHTP, k_BGSP, v_BGSP, window or S, keep_BS)
    if q_BHTP.is_cpu and T <= LONGEST:
        return _Attend.apply(q_BHTP, k_BGSP, v_BGSP, window, keep_BS)
    everything = window is None and keep_BS is None
    if everything and T in (1, S):
        return F.scaled_dot_product_attention(q_BHTP, k_BGSP, v_BGSP, is_causal=T > 1, enable_gqa=True)
    whole = _Block(0, T, 0, S)
    bias = _bias(whole, window, keep_BS, q_BHTP)
    return F.scaled_dot_product_attention(q_BHTP, k_BGSP, v_BGSP, attn_mask=bias, enable_gqa=True)


def _attend_one(q_BH1P: Tensor, k_BGSP: Tensor, v_BGSP: Tensor, window: int, keep_BS: Tensor | None) -> Tensor:
    """Attention of the last position alone, in one call of torch's kernel."""
    first = max(0, k_BGSP.shape[2] - window)
    keys, values = (t[:, :, first:] for t in (k_BGSP, v_BGSP))
    mask = None
    if keep_BS is not None:
        mask = keep_BS[:, None, None, first:].clone()
        mask[..., -1] = True  # each token sees itself
    grouped = q_BH1P.shape[1] != k_BGSP.shape[1]
    return F.scaled_dot_product_attention(q_BH1P, keys, values, mask, enable_gqa=grouped)


def attend_scored(q_BHTP: Tensor, k_BGSP: Tensor, v_BGSV: Tensor, scale: float, *, softcap: float | None = None,
                  sinks_H: Tensor | None = None, window: int | None = None, keep_BS: Tensor | None = None) -> Tensor:
    """`attend` with scores of its own making, by plain operations: [B, H, T, P] -> [B, H, T, V].

    Scores are products times `scale`, brought below `softcap` by c tanh(s / c) before the mask; a sink is a score of
    each head that takes its share of the softmax and gives nothing (Xiao et al. 2023, 2309.17453).
    """
    T = q_BHTP.shape[2]
    G, S = k_BGSP.shape[1:3]
    q_BGRTP = q_BHTP.unflatten(1, (G, -1))
    keys_BGPS = k_BGSP.unsqueeze(2).transpose(-1, -2)
    products = wide(q_BGRTP @ keys_BGPS)
    scores = products * scale
    scores = softcapped(scores, softcap)
    whole = _Block(0, T, 0, S)
    bias = _bias(whole, window, keep_BS, scores)
    scores = scores + bias.unsqueeze(2)
    if sinks_H is not None:
        scores = _with_sinks(scores, sinks_H)
    weights = scores.softmax(-1)
    seen = weights[..., :S].to(v_BGSV.dtype)
    y_BGRTV = seen @ v_BGSV.unsqueeze(2)
    return y_BGRTV.flatten(1, 2)


def _with_sinks(scores_BGRTS: Tensor, sinks_H: Tensor) -> Tensor:
    """One score more behind every query's: that of its head's sink."""
    B, G, _, T, _ = scores_BGRTS.shape
    sinks = sinks_H.to(scores_BGRTS.dtype)
    by_head = sinks.view(1, G, -1, 1, 1)
    column = by_head.expand(B, -1, -1, T, -1)
    return torch.cat((scores_BGRTS, column), -1)
