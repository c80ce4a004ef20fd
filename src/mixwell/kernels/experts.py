"""Experts and feed-forward blocks as one product after another; the same call takes CPU and CUDA tensors.

Legend: N rows, D width, F hidden width, E experts.

Each expert is taken through all its steps while its rows are in cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mixwell.kernels import straight
from mixwell.kernels.adapted import AdaptedWeight, bare
from mixwell.kernels.codes import CodedWeight
from mixwell.kernels.expert_rows import Through, grouped, spans_of, through_experts
from mixwell.kernels.linear import (
    Weight,
    compiles,
    differentiates,
    is_torchs,
    linear,
    plain,
    product_nn,
    product_tn,
    times,
)
from mixwell.kernels.packing import PACKABLE, PackedWeight

_FEW_BYTES = 1 << 19  # of hidden activations, below which calls cost more than memory
# an expert on average, up to which its calls cost more than torch's grouped product, whose rows fall out of cache and
# are compiled for their number; measured over widths of 128 to 512
_FEW_ROWS = 32
_GROUPED_BYTES = 16  # torch's grouped product takes rows that begin at multiples of it


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
        gate, _ = gate_up.chunk(2, dim=-1)
        silu = F.silu(gate)
        return _swiglu_backward(gate_up, silu, grad.clone())


def _swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


def _swiglu_backward(gate_up: Tensor, silu: Tensor, grad: Tensor) -> Tensor:
    """Gradient of gate and up from that of the result, which is used as scratch; `silu` is silu(gate)."""
    gate, up = gate_up.chunk(2, dim=-1)
    result = torch.empty_like(gate_up)
    grad_gate, grad_up = result.chunk(2, dim=-1)
    torch.mul(grad, silu, out=grad_up)
    grad.mul_(up)
    torch.ops.aten.silu_backward.grad_input(grad, gate, grad_input=grad_gate)
    return result


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, for `gate_up` [..., 2F] that holds gate and up side by side; returns [..., F]."""
    return _SwiGLU.apply(gate_up)


def _experts(x_ND: Tensor, counts: list[int], gate_up_proj: Weight, down_proj: Weight) -> Tensor:
    """Rows sorted by expert through their experts, without gradient."""
    y_ND = x_ND.new_empty(x_ND.shape[0], down_proj.shape[1])
    compiled = compiles(x_ND, gate_up_proj)
    for e, _, rows in spans_of(counts, compiled):
        gate_up = times(x_ND[rows], gate_up_proj[e])
        hidden = _swiglu(gate_up)
        times(hidden, down_proj[e], y_ND[rows])
    return y_ND


def _few_experts(x_ND: Tensor, counts: list[int], gate_up_proj: Weight, down_proj: Weight) -> Tensor:
    """As `_experts`, for so few rows that calls cost more than memory: one activation for all experts together."""
    spans = spans_of(counts, compiled=False)
    gate_up = [times(x_ND[rows], gate_up_proj[e]) for e, _, rows in spans]
    hidden = _swiglu(torch.cat(gate_up))
    y = [times(hidden[rows], down_proj[e]) for e, _, rows in spans]
    return torch.cat(y)


def is_one_token(x_TD: Tensor) -> bool:
    """Whether `one_token_mlp` serves: a single token on a CPU, and no gradient asked for."""
    one = x_TD.shape[0] == 1
    return one and x_TD.is_cpu and not torch.is_grad_enabled()


def one_token_mlp(x_1D: Tensor, weights_1K: Tensor, experts: Sequence[int], gate_up_proj: Weight,
                  down_proj: Weight) -> Tensor:
    """One token through the SwiGLU experts named, and their weighted sum [1, D], without gradient; -1 is no expert."""
    chosen = [e for e in experts if e >= 0]
    if not chosen:
        return torch.zeros_like(x_1D)
    if isinstance(gate_up_proj, CodedWeight) and isinstance(down_proj, CodedWeight):
        found = straight.expert_sum(x_1D, weights_1K, list(experts), gate_up_proj, down_proj)
        if found is not None:
            return found
    gate_up = [times(x_1D, gate_up_proj[e]) for e in chosen]
    hidden = _swiglu(torch.cat(gate_up))
    outputs = [times(h_1F, down_proj[e]) for h_1F, e in zip(hidden.split(1), chosen)]
    rows = torch.cat(outputs)
    weights = weights_1K.to(rows.dtype)
    if len(chosen) < len(experts):
        filled = [k for k, e in enumerate(experts) if e >= 0]
        weights = weights[:, filled]
    return weights @ rows


class _Experts(torch.autograd.Function):
    """All experts of a layer as one node: rows sorted by expert, weights stacked, each weight gradient written once.

    Keeps what plain autograd would keep of the products and activations: 4 F numbers a row beside the input.
    """

    @staticmethod
    def forward(ctx, x_ND: Tensor, gate_up_proj: Weight, down_proj: Weight, counts: list[int]) -> Tensor:
        y_ND = x_ND.new_empty(x_ND.shape[0], down_proj.shape[1])
        ctx.spans = spans_of(counts, compiles(x_ND, gate_up_proj))
        kept: list[Tensor] = []
        for e, own, rows in ctx.spans:
            gate_up = times(x_ND[rows], gate_up_proj[e])
            gate, up = gate_up.chunk(2, dim=-1)
            silu = F.silu(gate)
            activations = silu * up
            activations[own:] = 0  # surplus rows count in no weight gradient
            times(activations, down_proj[e], y_ND[rows])
            kept += gate_up, silu, activations
        weights = gate_up_proj, down_proj
        ctx.constants = [None if isinstance(w, Tensor) else w for w in weights]
        tensors = [w if isinstance(w, Tensor) else None for w in weights]
        ctx.save_for_backward(x_ND, *tensors, *kept)
        ctx.idle = [e for e, count in enumerate(counts) if not count]
        return y_ND

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_ND: Tensor):
        x_ND, gate_up_proj, down_proj, *kept = ctx.saved_tensors
        gate_up_proj, down_proj = (w if c is None else c for c, w in zip(ctx.constants, (gate_up_proj, down_proj)))
        wanted = zip((x_ND, gate_up_proj, down_proj), ctx.needs_input_grad)
        grads = [torch.empty_like(t) if needed else None for t, needed in wanted]
        grad_x, grad_gate_up, grad_down = grads
        for i, (e, own, rows) in enumerate(ctx.spans):
            gate_up, silu, activations = kept[3 * i : 3 * i + 3]
            grad_y = grad_ND[rows]
            if grad_down is not None:
                product_tn(grad_y, activations, grad_down[e])
            if grad_x is None and grad_gate_up is None:
                continue
            grad_activations = product_nn(grad_y, plain(down_proj[e], x_ND))
            slopes = _swiglu_backward(gate_up, silu, grad_activations)
            if grad_x is not None:
                product_nn(slopes, plain(gate_up_proj[e], x_ND), grad_x[rows])
            if grad_gate_up is not None:
                slopes[own:] = 0
                product_tn(slopes, x_ND[rows], grad_gate_up[e])
        for grad in (grad_gate_up, grad_down):
            if grad is not None and ctx.idle:
                grad[ctx.idle] = 0
        return *grads, None


def mlp(x_ND: Tensor, gate_up_proj: Weight, down_proj: Weight) -> Tensor:
    """A SwiGLU feed-forward block: [N, D] -> [N, D] with weights [2F, D] and [D, F], plain, packed or int8.

    Raises ValueError where a gradient is asked for through packed weights.
    """
    if not differentiates(x_ND, gate_up_proj, down_proj):
        gate_up = linear(x_ND, gate_up_proj)
        return linear(_swiglu(gate_up), down_proj)
    assert not isinstance(gate_up_proj, PackedWeight) and not isinstance(down_proj, PackedWeight)
    counts = [x_ND.shape[0]]
    if _is_adapted(gate_up_proj, down_proj):
        return _adapted_mlp(x_ND, counts, gate_up_proj[None], down_proj[None])
    return _Experts.apply(x_ND, gate_up_proj[None], down_proj[None], counts)


def expert_mlp(x_ND: Tensor, counts_E: Tensor, gate_up_proj: Weight, down_proj: Weight) -> Tensor:
    """SwiGLU experts on rows sorted by expert: the first counts[0] rows go through expert 0, and so on.

    gate_up_proj [E, 2F, D], down_proj [E, D, F], plain, packed or int8; returns [N, D]. An expert without rows costs
    nothing and gets a gradient of zeros. Raises ValueError where a gradient is asked for through packed weights.
    """
    if _is_adapted(gate_up_proj, down_proj):
        return _adapted_mlp(x_ND, counts_E.tolist(), gate_up_proj, down_proj)
    if _grouped_serves(x_ND, gate_up_proj, down_proj):
        assert isinstance(gate_up_proj, Tensor) and isinstance(down_proj, Tensor)
        return grouped_mlp(x_ND, counts_E, gate_up_proj, down_proj)
    counts = counts_E.tolist()
    if differentiates(x_ND, gate_up_proj, down_proj):
        return _Experts.apply(x_ND, gate_up_proj, down_proj, counts)
    through = _few_experts if _few(x_ND, gate_up_proj) else _experts
    return through(x_ND, counts, gate_up_proj, down_proj)


def _few(x_ND: Tensor, gate_up_proj: Weight) -> bool:
    """Whether calls cost more than memory."""
    hidden_bytes = x_ND.shape[0] * gate_up_proj.shape[1] * x_ND.element_size()
    return 0 < hidden_bytes <= _FEW_BYTES


def _is_adapted(*weights: Weight) -> bool:
    return any(isinstance(weight, AdaptedWeight) for weight in weights)


def _adapted_mlp(x_ND: Tensor, counts: list[int], gate_up_proj: Weight, down_proj: Weight) -> Tensor:
    """SwiGLU experts with changes beside them, on rows sorted by expert: the bare products, each as it would be alone.

    No stack is changed, nor is the change of one ever built: what a change does, it does to the rows of an expert.
    """
    way = _way(x_ND, counts, gate_up_proj, down_proj)
    gate_up = through_experts(x_ND, counts, gate_up_proj, way)
    hidden = swiglu(gate_up)
    return through_experts(hidden, counts, down_proj, way.last())


def _way(x_ND: Tensor, counts: list[int], gate_up_proj: Weight, down_proj: Weight) -> Through:
    """How the rows would go through the bare experts, so that a change of nothing leaves their bits."""
    differs = differentiates(x_ND, gate_up_proj, down_proj)
    into, out_of = bare(gate_up_proj), bare(down_proj)
    if _grouped_serves(x_ND, into, out_of):
        return Through(grouped=True)
    joined = not differs and _few(x_ND, into)
    return Through(widened=not joined and compiles(x_ND, into), last_in_place=not joined)


def _grouped_serves(x_ND: Tensor, gate_up_proj: Weight, down_proj: Weight) -> bool:
    """Whether experts go through torch's grouped product, all at once."""
    if not isinstance(gate_up_proj, Tensor) or not isinstance(down_proj, Tensor):
        return False
    return _has_grouped(x_ND, gate_up_proj) or _calls_cost(x_ND, gate_up_proj, down_proj)


def _has_grouped(x_ND: Tensor, gate_up_proj: Tensor) -> bool:
    """Whether the device has a grouped GEMM for these (bfloat16, rows of 16 bytes); then no count goes to the host."""
    if not x_ND.is_cuda or x_ND.dtype != torch.bfloat16:
        return False
    _, outputs, inputs = gate_up_proj.shape
    aligned = outputs % 16 == 0 and inputs % 8 == 0
    capable = torch.cuda.get_device_capability(x_ND.device) >= (8, 0)
    return aligned and capable and hasattr(F, "grouped_mm")


def _calls_cost(x_ND: Tensor, gate_up_proj: Tensor, down_proj: Tensor) -> bool:
    """Whether an expert's rows are so few on a CPU that one call for all experts is faster than several for each.

    Where another library than torch's BLAS serves the products of one expert, the loop over experts calls it.
    """
    if not x_ND.is_cpu or x_ND.dtype not in PACKABLE:
        return False
    experts, outputs, inputs = gate_up_proj.shape
    rows, hidden = x_ND.shape[0], outputs // 2
    few = 0 < rows <= _FEW_ROWS * experts
    plainly = all(t.is_contiguous() for t in (x_ND, gate_up_proj, down_proj))
    step = _GROUPED_BYTES // x_ND.element_size()
    aligned = inputs % step == 0 and hidden % step == 0
    if not (few and plainly and aligned):
        return False
    sizes = outputs * inputs, inputs * hidden
    return all(is_torchs(x_ND, rows // experts, numel) for numel in sizes)


def grouped_mlp(x_ND: Tensor, counts_E: Tensor, gate_up_proj: Tensor, down_proj: Tensor) -> Tensor:
    """`expert_mlp` by two grouped GEMMs, for devices that have them."""
    ends_E = counts_E.cumsum(0, dtype=torch.int32)
    gate_up = grouped(x_ND, ends_E, gate_up_proj)
    hidden = swiglu(gate_up)
    return grouped(hidden, ends_E, down_proj)


def each_expert(rows_ND: Tensor, counts: Sequence[int], into: Weight, out_of: Weight,
                activation: Callable[[Tensor], Tensor], biases: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Rows sorted by expert through two-matrix experts of any activation, one after another: [N, D] -> [N, D].

    into [E, H, D]; `activation` makes F numbers of H; out_of [E, D, F]; biases [E, H] and [E, D]. An expert without
    rows costs nothing and gets a gradient of zeros.
    """
    into_E, out_of_E = by_expert(into), by_expert(out_of)
    into_bias_E, out_of_bias_E = map(by_expert, biases or (None, None))
    parts = rows_ND.split(counts)
    hit = [e for e, count in enumerate(counts) if count]
    done = []
    for e in hit or [0]:  # one at least, so that each weight has a gradient
        hidden = _plus(linear(parts[e], into_E[e]), into_bias_E, e)
        y = linear(activation(hidden), out_of_E[e])
        done.append(_plus(y, out_of_bias_E, e))
    return torch.cat(done)


def by_expert(stack: Weight | None) -> Any:
    """The stack to be read by expert; the gradient of a plain one is written once, not once for each expert."""
    if isinstance(stack, Tensor):
        return stack.unbind(0)
    return stack.unbind() if isinstance(stack, AdaptedWeight) else stack


def _plus(y: Tensor, biases_E: Sequence[Tensor] | None, expert: int) -> Tensor:
    return y if biases_E is None else y + biases_E[expert]
