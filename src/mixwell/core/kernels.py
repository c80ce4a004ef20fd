"""Fast linear kernels behind one function each; the same call takes CPU and CUDA tensors.

Legend: N rows, D width, F hidden width, E experts.

What is fast on a CPU: float32 products go to oneDNN, since the BLAS behind `torch.mm` reaches half its rate or less
on AMD; activations are handled in blocks of rows that stay in cache; buffers are kept small enough for the C library
to hand them out again instead of asking the system for fresh pages.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mixwell.core.packing import Int8Weight, PackedWeight, onednn_linear

Weight = Tensor | PackedWeight | Int8Weight

_BLOCK_BYTES = 4 << 20  # of hidden activations handled at a time, so that they stay in cache
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


def _onednn(a: Tensor) -> bool:
    return a.device.type == "cpu" and a.dtype == torch.float32 and torch.backends.mkldnn.is_available()


def _nt(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a [N, D] times the transpose of b [M, D]."""
    if not _onednn(a):
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
    return _nt(a.t().contiguous() if _onednn(a) else a.t(), b.t(), out)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_ND: Tensor, weight: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x_ND, weight)
        return _nt(x_ND, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        x_ND, weight = ctx.saved_tensors
        return (_nn(grad, weight) if ctx.needs_input_grad[0] else None,
                _tn(grad, x_ND) if ctx.needs_input_grad[1] else None)


def linear(x: Tensor, weight: Weight) -> Tensor:
    """x [..., D] times the transpose of weight [M, D]: [..., M]. Packed and int8 weights take no gradient."""
    if not isinstance(weight, Tensor):
        return weight.linear(x)
    if not _onednn(x) or x.numel() == 0:
        return F.linear(x, weight)
    return _Linear.apply(x.reshape(-1, x.shape[-1]), weight).unflatten(0, x.shape[:-1])


class _SwiGLU(torch.autograd.Function):
    """silu(gate) * up on the halves of one tensor, with a backward that keeps only the input."""

    @staticmethod
    def forward(ctx, gate_up: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(gate_up)
        return _swiglu(gate_up)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[override]
        (gate_up,) = ctx.saved_tensors
        result = torch.empty_like(gate_up)
        _swiglu_backward(gate_up, grad.clone(), result)
        return result


def _swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


def _swiglu_backward(gate_up: Tensor, grad: Tensor, grad_gate_up: Tensor, activations: Tensor | None = None) -> None:
    """Fill `grad_gate_up` (and `activations`, where asked) from `grad`, the gradient of the result, used as scratch."""
    gate, up = gate_up.chunk(2, dim=-1)
    grad_gate, grad_up = grad_gate_up.chunk(2, dim=-1)
    silu = F.silu(gate)
    torch.mul(grad, silu, out=grad_up)
    torch.ops.aten.silu_backward.grad_input(grad.mul_(up), gate, grad_input=grad_gate)
    if activations is not None:
        torch.mul(silu, up, out=activations)


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, for `gate_up` [..., 2F] that holds gate and up side by side; returns [..., F]."""
    return _SwiGLU.apply(gate_up)


@dataclass(frozen=True)
class _Span:
    """One expert's rows, and the blocks in which its products are taken.

    A product over an odd number of rows can cost a tenth more than over the next multiple of eight. So a block may
    run over into the next expert's rows, whose own block, which comes later, writes them again.
    """

    expert: int
    start: int
    stop: int
    blocks: tuple[slice, ...]

    @property
    def rows(self) -> slice:
        """The expert's own rows."""
        return slice(self.start, self.stop)


def _spans(counts: list[int], row_bytes: int) -> Iterator[_Span]:
    """The spans of the experts that have rows, in order."""
    most, total, start = max(128, _BLOCK_BYTES // row_bytes // 8 * 8), sum(counts), 0
    for expert, count in enumerate(counts):
        if count:
            size = -(-count // -(-count // most))
            size += -size % 8
            edges = range(start, start + count, size)
            yield _Span(expert, start, start + count, tuple(slice(a, min(a + size, total)) for a in edges))
        start += count


def _experts(x_ND: Tensor, counts: list[int], gate_up_proj: Weight, down_proj: Weight,
             keep: list[Tensor] | None = None) -> Tensor:
    """Rows sorted by expert through their experts, without gradient; `keep` receives each block's gate and up."""
    y_ND = x_ND.new_empty(x_ND.shape[0], down_proj.shape[1])
    for span in _spans(counts, gate_up_proj.shape[1] * x_ND.element_size()):
        gate_up_e, down_e = gate_up_proj[span.expert], down_proj[span.expert]
        for rows in span.blocks:
            hidden = _times(x_ND[rows], gate_up_e)
            if keep is not None:
                keep.append(hidden)
            _times(_swiglu(hidden), down_e, y_ND[rows])
    return y_ND


def _few_experts(x_ND: Tensor, counts: list[int], gate_up_proj: Weight, down_proj: Weight) -> Tensor:
    """As `_experts`, for so few rows that calls cost more than memory: one activation for all experts together."""
    own = [count for count in counts if count]
    hit = [expert for expert, count in enumerate(counts) if count]
    hidden = torch.cat([_times(rows, gate_up_proj[e]) for e, rows in zip(hit, x_ND.split(own))])
    return torch.cat([_times(rows, down_proj[e]) for e, rows in zip(hit, _swiglu(hidden).split(own))])


class _Experts(torch.autograd.Function):
    """All experts of a layer as one node: rows sorted by expert, weights stacked, each weight gradient written once."""

    @staticmethod
    def forward(ctx, x_ND: Tensor, gate_up_proj: Tensor, down_proj: Tensor, counts: list[int]) -> Tensor:  # type: ignore[override]
        hidden: list[Tensor] = []
        y_ND = _experts(x_ND, counts, gate_up_proj, down_proj, keep=hidden)
        ctx.save_for_backward(x_ND, gate_up_proj, down_proj, *hidden)
        ctx.counts = counts
        return y_ND

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_ND: Tensor):  # type: ignore[override]
        x_ND, gate_up_proj, down_proj, *hidden = ctx.saved_tensors
        grads = [torch.empty_like(t) if needed else None
                 for t, needed in zip((x_ND, gate_up_proj, down_proj), ctx.needs_input_grad)]
        grad_x, grad_gate_up, grad_down = grads
        saved = iter(hidden)
        for span in _spans(ctx.counts, gate_up_proj.shape[1] * x_ND.element_size()):
            e, room = span.expert, span.blocks[-1].stop - span.start
            grad_hidden = x_ND.new_empty(room, gate_up_proj.shape[1])
            activations = x_ND.new_empty(room, down_proj.shape[2])
            for rows in span.blocks:
                inner = slice(rows.start - span.start, rows.stop - span.start)
                _swiglu_backward(next(saved), _nn(grad_ND[rows], down_proj[e]), grad_hidden[inner], activations[inner])
                if grad_x is not None:
                    _nn(grad_hidden[inner], gate_up_proj[e], grad_x[rows])
            own = span.stop - span.start
            if grad_gate_up is not None:
                _tn(grad_hidden[:own], x_ND[span.rows], grad_gate_up[e])
            if grad_down is not None:
                _tn(grad_ND[span.rows], activations[:own], grad_down[e])
        for e, count in enumerate(ctx.counts):
            for grad in (grad_gate_up, grad_down):
                if not count and grad is not None:
                    grad[e].zero_()
        return *grads, None


def mlp(x_ND: Tensor, gate_up_proj: Weight, down_proj: Weight) -> Tensor:
    """A SwiGLU feed-forward block: [N, D] -> [N, D] with weights [2F, D] and [D, F]."""
    if torch.is_grad_enabled() and isinstance(gate_up_proj, Tensor) and isinstance(down_proj, Tensor):
        return _Experts.apply(x_ND, gate_up_proj.unsqueeze(0), down_proj.unsqueeze(0), [x_ND.shape[0]])
    return linear(swiglu(linear(x_ND, gate_up_proj)), down_proj)


def expert_mlp(x_ND: Tensor, counts_E: Tensor, gate_up_proj: Weight, down_proj: Weight) -> Tensor:
    """SwiGLU experts on rows sorted by expert: the first counts[0] rows go through expert 0, and so on.

    gate_up_proj [E, 2F, D], down_proj [E, D, F]; returns [N, D]. Packed and int8 weights take no gradient.
    """
    if isinstance(gate_up_proj, Tensor) and isinstance(down_proj, Tensor):
        if _has_grouped(x_ND, gate_up_proj):
            return grouped_mlp(x_ND, counts_E, gate_up_proj, down_proj)
        if torch.is_grad_enabled():
            return _Experts.apply(x_ND, gate_up_proj, down_proj, counts_E.tolist())
    few = 0 < x_ND.shape[0] * gate_up_proj.shape[1] * x_ND.element_size() <= _FEW_BYTES
    return (_few_experts if few else _experts)(x_ND, counts_E.tolist(), gate_up_proj, down_proj)


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
