"""Moves over a wire that a gradient goes back through.

Each worker's loss is its own share of one loss, so that gradients are summed over the workers, never averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mixwell.parallel.wire import Wire


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, wire: Wire, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        ctx.wire, ctx.sent, ctx.received = wire, sent, received
        return wire.exchange(rows, sent, received)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        back = ctx.wire.exchange(grad, ctx.received, ctx.sent)
        return back, None, None, None


def exchange(rows: Tensor, wire: Wire, sent: Sequence[int], received: Sequence[int]) -> Tensor:
    """`Wire.exchange`; each row's gradient goes back to where the row came from."""
    return _Exchange.apply(rows, wire, sent, received)


def there_and_back(rows_ND: Tensor, counts_E: Tensor, wire: Wire,
                   experts: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Rows [N, D] sorted by expert to the workers that hold the experts, and what these make of them back [N, O].

    experts: gets the rows that came, sorted by worker and within that by expert, and their counts [W, L].
    """
    size = wire.size
    out_WL = counts_E.view(size, -1)
    ones = [1] * size
    in_WL = wire.exchange(out_WL, ones, ones)
    sent = out_WL.sum(1).tolist()
    received = in_WL.sum(1).tolist()
    came_MD = exchange(rows_ND, wire, sent, received)
    done_MO = experts(came_MD, in_WL)
    return exchange(done_MO, wire, received, sent)


class _Everyone(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: Tensor, wire: Wire) -> Tensor:
        ctx.wire, ctx.rows = wire, tensor.shape[0]
        return torch.cat(wire.gather(tensor))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        first = ctx.wire.rank * ctx.rows
        own = grad.narrow(0, first, ctx.rows)
        return own * ctx.wire.size, None


def everyone(tensor: Tensor, wire: Wire) -> Tensor:
    """The rows [T, ...] of all workers [size T, ...], for a loss that all of them compute alike.

    Each takes 1 / size of that loss as its share. The gradient that reaches a worker's own rows is that of the whole
    loss, and nothing travels back.
    """
    return _Everyone.apply(tensor, wire)
