"""Experts and feed-forward blocks as one product after another; the same call takes CPU and CUDA tensors.

Legend: N rows, D width, F hidden width, E experts.

Each expert is taken through all its steps while its rows are in cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mixwell.kernels.linear import Weight, compiles, differentiates, linear, plain, product_nn, product_tn, times
from mixwell.kernels.packing import PackedWeight

_FEW_BYTES = 1 << 19  # of hidden activations, below which calls cost more than memory


class _SwiGLU(torch.autograd.Function):
    """silu(gate) * up on the halves of one tensor, with a backward that keeps only the input."""

    @staticmethod
    def forward(ctx, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        return _swiglu(gate_up)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        return _swiglu_backward(gate_up, F.silu(gate_up.chunk(2, dim=-1)[0]), grad.clone())


def _swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


def _swiglu_backward(gate_up: Tensor, silu: Tensor, grad: Tensor) -> Tensor:
    """Gradient of gate and up from that of the result, which is used as scratch; `silu` is silu(gate)."""
    gate, up = gate_up.chunk(2, dim=-1)
    result = torch.empty_like(gate_up)
    grad_gate, grad_up = result.chunk(2, dim=-1)
    torch.mul(grad, silu, out=grad_up)
    torch.ops.aten.silu_backward.grad_input(grad.mul_(up), gate, grad_input=grad_gate)
    return result


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, for `gate_up` [..., 2F] that holds gate and up side by side; returns [..., F]."""
    return _SwiGLU.apply(gate_up)


def _spans(counts: list[int]) -> Iterator[tuple[int, slice]]:
    """(expert, its rows) for each expert that has rows, in order."""
    start = 0
    for expert, count in enumerate(counts):
        if count:
            yield expert, slice(start, start + count)
        start += count


def _window(rows: slice, total: int, compiled: bool) -> slice:
    """`rows` with up to a sixteenth more behind them, so that few distinct numbers of rows occur.

    oneDNN compiles a product for its shape (0.4 ms each, and memory), and experts get other numbers of rows at every
    step. Where no product goes there, the rows stay as they are. The surplus rows belong to later experts, which write
    their own results over them; the last rows are not widened.
    """
    count = rows.stop - rows.start
    if not compiled:
        return rows
    step = max(8, 1 << max(count.bit_length() - 5, 0))
    stop = rows.start - (-count // step) * step
    return slice(rows.start, stop) if count >= 2 * step and stop <= total else rows


def _experts(x_ND: Tensor, counts: list[int], gate_up_proj: Weight, down_proj: Weight) -> Tensor:
    """Rows sorted by expert through their experts, without gradient."""
    y_ND = x_ND.new_empty(x_ND.shape[0], down_proj.shape[1])
    compiled = compiles(x_ND, gate_up_proj)
    for e, rows in _spans(counts):
        wider = _window(rows, x_ND.shape[0], compiled)
        times(_swiglu(times(x_ND[wider], gate_up_proj[e])), down_proj[e], y_ND[wider])
    return y_ND


def _few_experts(x_ND: Tensor, counts: list[int], gate_up_proj: Weight, down_proj: Weight) -> Tensor:
    """As `_experts`, for so few rows that calls cost more than memory: one activation for all experts together."""
    spans = list(_spans(counts))
    hidden = _swiglu(torch.cat([times(x_ND[rows], gate_up_proj[e]) for e, rows in spans]))
    return torch.cat([times(hidden[rows], down_proj[e]) for e, rows in spans])


def is_one_token(x_TD: Tensor) -> bool:
    """Whether `one_token_mlp` serves: a single token on a CPU, and no gradient asked for."""
    return x_TD.shape[0] == 1 and x_TD.device.type == "cpu" and not torch.is_grad_enabled()


def one_token_mlp(x_1D: Tensor, weights_1K: Tensor, experts: Sequence[int], gate_up_proj: Weight,
                  down_proj: Weight) -> Tensor:
    """One token through the SwiGLU experts named, and their weighted sum [1, D], without gradient; -1 is no expert."""
    chosen = [(k, e) for k, e in enumerate(experts) if e >= 0]
    if not chosen:
        return torch.zeros_like(x_1D)
    hidden = _swiglu(torch.cat([times(x_1D, gate_up_proj[e]) for _, e in chosen]))
    rows = torch.cat([times(hidden[i : i + 1], down_proj[e]) for i, (_, e) in enumerate(chosen)])
    weights = weights_1K.to(rows.dtype)
    return (weights if len(chosen) == len(experts) else weights[:, [k for k, _ in chosen]]) @ rows


class _Experts(torch.autograd.Function):
    """All experts of a layer as one node: rows sorted by expert, weights stacked, each weight gradient written once.

    Keeps what plain autograd would keep of the products and activations: 4 F numbers a row beside the input.
    """

    @staticmethod
    def forward(ctx, x_ND: Tensor, gate_up_proj: Weight, down_proj: Weight, counts: list[int]) -> Tensor:
        y_ND = x_ND.new_empty(x_ND.shape[0], down_proj.shape[1])
        kept: list[Tensor] = []
        compiled = compiles(x_ND, gate_up_proj)
        for e, rows in _spans(counts):
            wider = _window(rows, x_ND.shape[0], compiled)
            gate_up = times(x_ND[wider], gate_up_proj[e])
            gate, up = gate_up.chunk(2, dim=-1)
            silu = F.silu(gate)
            activations = silu * up
            activations[rows.stop - rows.start :] = 0  # surplus rows count in no weight gradient
            times(activations, down_proj[e], y_ND[wider])
            kept += gate_up, silu, activations
        weights = gate_up_proj, down_proj
        ctx.save_for_backward(x_ND, *(w if isinstance(w, Tensor) else None for w in weights), *kept)
        ctx.constants = [None if isinstance(w, Tensor) else w for w in weights]
        ctx.counts, ctx.compiled = counts, compiled
        return y_ND

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_ND: Tensor):
        x_ND, *saved = ctx.saved_tensors
        gate_up_proj, down_proj = (c if s is None else s for s, c in zip(saved, ctx.constants))
        kept, counts = saved[2:], ctx.counts
        grad_x, grad_gate_up, grad_down = grads = [
            torch.empty_like(t) if needed else None
            for t, needed in zip((x_ND, gate_up_proj, down_proj), ctx.needs_input_grad)]
        for i, (e, rows) in enumerate(_spans(counts)):
            gate_up, silu, activations = kept[3 * i : 3 * i + 3]
            wider = _window(rows, x_ND.shape[0], ctx.compiled)
            if grad_down is not None:
                product_tn(grad_ND[wider], activations, grad_down[e])
            if grad_x is None and grad_gate_up is None:
                continue
            grad_hidden = _swiglu_backward(gate_up, silu, product_nn(grad_ND[wider], plain(down_proj[e], x_ND)))
            if grad_x is not None:
                product_nn(grad_hidden, plain(gate_up_proj[e], x_ND), grad_x[wider])
            if grad_gate_up is not None:
                grad_hidden[rows.stop - rows.start :] = 0
                product_tn(grad_hidden, x_ND[wider], grad_gate_up[e])
        idle = [e for e, count in enumerate(counts) if not count]
        for grad in (grad_gate_up, grad_down):
            if grad is not None and idle:
                grad[idle] = 0
        return *grads, None


def mlp(x_ND: Tensor, gate_up_proj: Weight, down_proj: Weight) -> Tensor:
    """A SwiGLU feed-forward block: [N, D] -> [N, D] with weights [2F, D] and [D, F], plain, packed or int8."""
    if differentiates(x_ND, gate_up_proj, down_proj):
        assert not isinstance(gate_up_proj, PackedWeight) and not isinstance(down_proj, PackedWeight)
        return _Experts.apply(x_ND, gate_up_proj[None], down_proj[None], [x_ND.shape[0]])
    return linear(_swiglu(linear(x_ND, gate_up_proj)), down_proj)


def expert_mlp(x_ND: Tensor, counts_E: Tensor, gate_up_proj: Weight, down_proj: Weight) -> Tensor:
    """SwiGLU experts on rows sorted by expert: the first counts[0] rows go through expert 0, and so on.

    gate_up_proj [E, 2F, D], down_proj [E, D, F], plain, packed or int8; returns [N, D]. An expert without rows costs
    nothing and gets a gradient of zeros.
    """
    if isinstance(gate_up_proj, Tensor) and isinstance(down_proj, Tensor) and _has_grouped(x_ND, gate_up_proj):
        return grouped_mlp(x_ND, counts_E, gate_up_proj, down_proj)
    counts = counts_E.tolist()
    if differentiates(x_ND, gate_up_proj, down_proj):
        return _Experts.apply(x_ND, gate_up_proj, down_proj, counts)
    few = 0 < x_ND.shape[0] * gate_up_proj.shape[1] * x_ND.element_size() <= _FEW_BYTES
    return (_few_experts if few else _experts)(x_ND, counts, gate_up_proj, down_proj)


def _has_grouped(x_ND: Tensor, gate_up_proj: Tensor) -> bool:
    """Whether the device has a grouped GEMM for these (bfloat16, rows of 16 bytes); then no count goes to the host."""
    return (x_ND.is_cuda and x_ND.dtype == torch.bfloat16 and hasattr(F, "grouped_mm")
            and torch.cuda.get_device_capability(x_ND.device) >= (8, 0)
            and gate_up_proj.shape[1] % 16 == 0 and gate_up_proj.shape[2] % 8 == 0)


def grouped_mlp(x_ND: Tensor, counts_E: Tensor, gate_up_proj: Tensor, down_proj: Tensor) -> Tensor:
    """`expert_mlp` by two grouped GEMMs, for devices that have them."""
    ends_E = counts_E.cumsum(0, dtype=torch.int32)
    hidden = swiglu(F.grouped_mm(x_ND, gate_up_proj.transpose(1, 2), offs=ends_E))
    return F.grouped_mm(hidden, down_proj.transpose(1, 2), offs=ends_E)
