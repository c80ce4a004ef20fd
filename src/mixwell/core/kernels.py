"""Fast linear kernels behind one function each; the same call takes CPU and CUDA tensors.

Legend: N rows, D width, F hidden width, E experts.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


class _SwiGLU(torch.autograd.Function):
    """silu(gate) * up on the halves of one tensor, with a backward that keeps only the input."""

    @staticmethod
    def forward(ctx, gate_up: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[override]
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        result = torch.empty_like(gate_up)
        sigmoid = torch.sigmoid(gate)
        silu = gate * sigmoid
        torch.mul(grad, silu, out=result[..., gate.shape[-1] :])
        slope = sigmoid + silu * (1 - sigmoid)
        torch.mul(grad, slope.mul_(up), out=result[..., : gate.shape[-1]])
        return result


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, for `gate_up` [..., 2F] that holds gate and up side by side; returns [..., F]."""
    return _SwiGLU.apply(gate_up)


def mlp(x_ND: Tensor, gate_up_proj: Tensor, down_proj: Tensor) -> Tensor:
    """A SwiGLU feed-forward block: [N, D] -> [N, D] with weights [2F, D] and [D, F]."""
    return F.linear(swiglu(F.linear(x_ND, gate_up_proj)), down_proj)


def expert_mlp(x_ND: Tensor, counts_E: Tensor, gate_up_proj: Tensor, down_proj: Tensor) -> Tensor:
    """SwiGLU experts on rows sorted by expert: the first counts[0] rows go through expert 0, and so on.

    gate_up_proj [E, 2F, D], down_proj [E, D, F]; returns [N, D].
    """
    rows = x_ND.split(counts_E.tolist())
    parts = [mlp(r, gate_up_proj[e], down_proj[e]) for e, r in enumerate(rows) if r.shape[0]]
    return torch.cat(parts) if parts else x_ND.new_zeros(0, down_proj.shape[1])
