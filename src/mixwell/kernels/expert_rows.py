"""Rows sorted by expert through a stack of matrices, one product an expert.

Legend: N rows, D width, M outputs, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mixwell.kernels.adapted import AdaptedWeight
from mixwell.kernels.linear import Weight, plain, product_nn, product_tn, times


class Span(NamedTuple):
    """The rows of one expert among rows sorted by expert."""

    expert: int
    own: int  # how many rows are its own
    rows: slice  # its own, and perhaps some of later experts behind them


def spans_of(counts: list[int], compiled: bool) -> list[Span]:
    """Of the experts that have rows, in order; widened where products are compiled for their number of rows."""
    total, start = sum(counts), 0
    spans = []
    for expert, count in enumerate(counts):
        if count:
            rows = slice(start, start + count)
            spans.append(Span(expert, count, _wider(rows, total) if compiled else rows))
        start += count
    return spans


def _wider(rows: slice, total: int) -> slice:
    """`rows` with less than a sixteenth more behind it, so that few distinct numbers of rows occur: 16 an octave.

    oneDNN compiles a product for its shape (0.4 ms each, and memory), and experts get other numbers of rows at every
    step. The surplus rows belong to later experts, which write their own results over them; the last rows are not
    widened.
    """
    count = rows.stop - rows.start
    step = 1 << max(count.bit_length() - 5, 0)
    steps = -(-count // step)
    stop = rows.start + steps * step
    return rows if stop > total else slice(rows.start, stop)


@dataclass(frozen=True)
class Through:
    """How rows go through a stack: it decides the last digits."""

    grouped: bool = False  # by torch's product for all experts at once
    widened: bool = False  # an expert's rows as `spans_of` widens them
    last_in_place: bool = False  # the second of two products is written where it belongs
    in_place: bool = False

    def last(self) -> Through:
        """The same for the second of two products."""
        return replace(self, in_place=self.last_in_place)


def through_experts(x_ND: Tensor, counts: list[int], weight: Weight, way: Through) -> Tensor:
    """[N, D] -> [N, M] for a stack [E, M, D] in any form, with the change beside it where there is one."""
    if isinstance(weight, AdaptedWeight):
        base = weight.base
        return weight.around_experts(x_ND, counts, lambda rows_ND: through_experts(rows_ND, counts, base, way))
    if way.grouped:
        counts_E = torch.tensor(counts, device=x_ND.device)
        ends_E = counts_E.cumsum(0, dtype=torch.int32)
        return grouped(x_ND, ends_E, weight)  # type: ignore[arg-type]
    return _Stack.apply(x_ND, weight, counts, way)


def grouped(x_ND: Tensor, ends_E: Tensor, stack: Tensor) -> Tensor:
    """[N, D] -> [N, M] for a stack [E, M, D], all experts at once; ends_E: where the rows of each end."""
    y_NM = F.grouped_mm(x_ND, stack.transpose(1, 2), offs=ends_E)
    if y_NM.requires_grad:
        y_NM.register_hook(Tensor.contiguous)  # a gradient that is one number for all rows has no strides: refused
    return y_NM


class _Stack(torch.autograd.Function):
    """One matrix an expert; a frozen stack, plain or int8, gets no gradient and keeps no rows."""

    @staticmethod
    def forward(ctx, x_ND: Tensor, weight: Weight, counts: list[int], way: Through) -> Tensor:
        y_NM = x_ND.new_empty(x_ND.shape[0], weight.shape[1])
        ctx.spans = spans_of(counts, way.widened)
        for e, _, rows in ctx.spans:
            out = y_NM[rows]
            made = times(x_ND[rows], weight[e], out if way.in_place else None)
            if not way.in_place:
                out.copy_(made)
        ctx.constant = None if isinstance(weight, Tensor) else weight
        trained = isinstance(weight, Tensor) and ctx.needs_input_grad[1]
        ctx.save_for_backward(x_ND if trained else None, None if ctx.constant else weight)
        ctx.idle = [e for e, count in enumerate(counts) if not count]
        return y_NM

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_NM: Tensor):
        x_ND, weight = ctx.saved_tensors
        weight = ctx.constant or weight
        grad_NM = grad_NM.contiguous()
        grad_x = grad_NM.new_empty(grad_NM.shape[0], weight.shape[2]) if ctx.needs_input_grad[0] else None
        grad_weight = None if x_ND is None else torch.empty_like(weight)
        for e, own, rows in ctx.spans:
            if grad_x is not None:
                product_nn(grad_NM[rows], plain(weight[e], grad_NM), grad_x[rows])
            if grad_weight is not None and x_ND is not None:
                mine = slice(rows.start, rows.start + own)
                product_tn(grad_NM[mine], x_ND[mine], grad_weight[e])
        if grad_weight is not None and ctx.idle:
            grad_weight[ctx.idle] = 0
        return grad_x, grad_weight, None, None
