"""Fast linear kernels behind one function each; the same call takes CPU and CUDA tensors.

Legend: N rows, D width, F hidden width, E experts.

What is fast on a CPU: float32 products go to oneDNN, since the BLAS behind `torch.mm` reaches half its rate or less
on AMD; each expert is taken through all its steps while its rows are in cache; freed memory is used again.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mixwell.core.packing import Int8Weight, PackedWeight, onednn_linear, prefers_onednn

Weight = Tensor | PackedWeight | Int8Weight

_FEW_BYTES = 1 << 19  # of hidden activations, below which calls cost more than memory


@cache
def hold_memory() -> bool:
    """Let this process keep freed memory for its next tensors; returns whether the C library could be told so.

    glibc gives blocks above 32 MB back to the system each time they are freed, and a training step then spends its
    time in page faults. For programs that train; a library should not decide it for its caller.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    trim_threshold, mmap_threshold, most = -1, -3, 2**31 - 1
    return bool(mallopt(mmap_threshold, most)) and bool(mallopt(trim_threshold, most))


def _nt(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a [N, D] times the transpose of b [M, D]."""
    if not prefers_onednn(a, b.shape[0]):
        return torch.mm(a, b.t(), out=out)
    result = onednn_linear(a, b)
    return result if out is None else out.copy_(result)


def _times(a: Tensor, weight: Weight, out: Tensor | None = None) -> Tensor:
    """a [N, D] times the transpose of a weight [M, D] in any form, without gradient."""
    if isinstance(weight, Tensor):
        return _nt(a, weight, out)
    result = weight.linear(a)
    return result if out is None else out.copy_(result)


def _nn(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a [N, M] times b [M, D]."""
    return _nt(a, b.t(), out)


def _tn(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """The transpose of a [N, M] times b [N, D]."""
    return _nt(a.t(), b.contiguous().t(), out)  # the transpose of a strided matrix would be read element by element


def _plain(weight: Weight, like: Tensor) -> Tensor:
    """A weight as a tensor that a gradient can pass through."""
    assert not isinstance(weight, PackedWeight)
    return weight if isinstance(weight, Tensor) else weight.dequantised(like.dtype)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_ND: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x_ND, weight)
        return _nt(x_ND, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x_ND, weight = ctx.saved_tensors
        return (_nn(grad, weight) if ctx.needs_input_grad[0] else None,
                _tn(grad, x_ND) if ctx.needs_input_grad[1] else None)


def linear(x: Tensor, weight: Weight) -> Tensor:
    """x [..., D] times the transpose of weight [M, D]: [..., M]. int8 weights are constants, packed ones for inference.

    On the CPU measured (AVX512-BF16) a row's result does not depend on the rows beside it, except in float32 with a
    plain weight, where few rows go through another library than many and round otherwise.
    """
    if not isinstance(weight, Tensor):
        if not _differentiate(x, weight):
            return weight.linear(x)
        weight = _plain(weight, x)
    if not prefers_onednn(x, weight.shape[0]):
        return F.linear(x, weight)
    return _Linear.apply(x.reshape(-1, x.shape[-1]), weight).unflatten(0, x.shape[:-1])


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


def _window(rows: slice, total: int) -> slice:
    """`rows` with up to a sixteenth more behind them, so that few distinct numbers of rows occur.

    A GEMM is compiled for its shape (0.4 ms each, and memory), and experts get other numbers of rows at every step.
    The surplus rows belong to later experts, which write their own results over them; the last rows are not widened.
    """
    count = rows.stop - rows.start
    step = max(8, 1 << max(count.bit_length() - 5, 0))
    stop = rows.start - (-count // step) * step
    return slice(rows.start, stop) if count >= 2 * step and stop <= total else rows


def _experts(x_ND: Tensor, counts: list[int], gate_up_proj: Weight, down_proj: Weight) -> Tensor:
    """Rows sorted by expert through their experts, without gradient."""
    y_ND = x_ND.new_empty(x_ND.shape[0], down_proj.shape[1])
    for e, rows in _spans(counts):
        wider = _window(rows, x_ND.shape[0])
        _times(_swiglu(_times(x_ND[wider], gate_up_proj[e])), down_proj[e], y_ND[wider])
    return y_ND


def _few_experts(x_ND: Tensor, counts: list[int], gate_up_proj: Weight, down_proj: Weight) -> Tensor:
    """As `_experts`, for so few rows that calls cost more than memory: one activation for all experts together."""
    spans = list(_spans(counts))
    hidden = _swiglu(torch.cat([_times(x_ND[rows], gate_up_proj[e]) for e, rows in spans]))
    return torch.cat([_times(hidden[rows], down_proj[e]) for e, rows in spans])


class _Experts(torch.autograd.Function):
    """All experts of a layer as one node: rows sorted by expert, weights stacked, each weight gradient written once.

    Keeps what plain autograd would keep of the products and activations: 4 F numbers a row beside the input.
    """

    @staticmethod
    def forward(ctx, x_ND: Tensor, gate_up_proj: Weight, down_proj: Weight, counts: list[int]) -> Tensor:
        y_ND = x_ND.new_empty(x_ND.shape[0], down_proj.shape[1])
        kept: list[Tensor] = []
        for e, rows in _spans(counts):
            wider = _window(rows, x_ND.shape[0])
            gate_up = _times(x_ND[wider], gate_up_proj[e])
            gate, up = gate_up.chunk(2, dim=-1)
            silu = F.silu(gate)
            activations = silu * up
            activations[rows.stop - rows.start :] = 0  # surplus rows count in no weight gradient
            _times(activations, down_proj[e], y_ND[wider])
            kept += gate_up, silu, activations
        weights = gate_up_proj, down_proj
        ctx.save_for_backward(x_ND, *(w if isinstance(w, Tensor) else None for w in weights), *kept)
        ctx.constants = [None if isinstance(w, Tensor) else w for w in weights]
        ctx.counts = counts
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
            wider = _window(rows, x_ND.shape[0])
            if grad_down is not None:
                _tn(grad_ND[wider], activations, grad_down[e])
            if grad_x is None and grad_gate_up is None:
                continue
            grad_hidden = _swiglu_backward(gate_up, silu, _nn(grad_ND[wider], _plain(down_proj[e], x_ND)))
            if grad_x is not None:
                _nn(grad_hidden, _plain(gate_up_proj[e], x_ND), grad_x[wider])
            if grad_gate_up is not None:
                grad_hidden[rows.stop - rows.start :] = 0
                _tn(grad_hidden, x_ND[wider], grad_gate_up[e])
        idle = [e for e, count in enumerate(counts) if not count]
        for grad in (grad_gate_up, grad_down):
            if grad is not None and idle:
                grad[idle] = 0
        return *grads, None


def mlp(x_ND: Tensor, gate_up_proj: Weight, down_proj: Weight) -> Tensor:
    """A SwiGLU feed-forward block: [N, D] -> [N, D] with weights [2F, D] and [D, F], plain, packed or int8."""
    if _differentiate(x_ND, gate_up_proj, down_proj):
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
    if _differentiate(x_ND, gate_up_proj, down_proj):
        return _Experts.apply(x_ND, gate_up_proj, down_proj, counts)
    few = 0 < x_ND.shape[0] * gate_up_proj.shape[1] * x_ND.element_size() <= _FEW_BYTES
    return (_few_experts if few else _experts)(x_ND, counts, gate_up_proj, down_proj)


def _differentiate(x_ND: Tensor, *weights: Weight) -> bool:
    """Whether a gradient is asked for; raises where one is that packed weights could not carry."""
    wanted = torch.is_grad_enabled() and (
        x_ND.requires_grad or any(isinstance(w, Tensor) and w.requires_grad for w in weights))
    if wanted and any(isinstance(w, PackedWeight) for w in weights):
        raise ValueError("packed weights carry no gradient; compute under torch.no_grad(), or with the plain weight")
    return wanted


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
