"""What the memory layers share: retrieval by product keys, and rows of a large table picked and summed.

Legend: T tokens, D width, H heads, C width of half a query, N = n^2 slots of a memory, S slots picked by a token,
R rows.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mixwell.experts.layers._parts import normal_parameter

_BLOCK_BYTES = 8 << 20  # of table rows gathered at a time


def product_top_k(rows_Rn: Tensor, columns_Rn: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of all n^2 sums rows[i] + columns[j], best first: (scores [R, k], slots i n + j [R, k]).

    Exact: the sum of the i-th and the j-th best (from 1) has i j - 1 sums before it, so that only i j <= k can enter.
    """
    best_rows, i = rows_Rn.topk(k, dim=-1)
    best_columns, j = columns_Rn.topk(k, dim=-1)
    pairs = [(a, b) for a in range(k) for b in range(k) if (a + 1) * (b + 1) <= k]
    first, second = torch.tensor(pairs, device=rows_Rn.device).T
    scores, chosen = (best_rows[..., first] + best_columns[..., second]).topk(k, dim=-1)
    return scores, i.gather(-1, first[chosen]) * rows_Rn.shape[-1] + j.gather(-1, second[chosen])


class ProductKeys(nn.Module):
    """Queries of a token, and the slots whose product keys they like best."""

    keep_float32: ClassVar[bool] = True  # read by whoever casts a model

    def __init__(self, dim: int, num_keys: int, key_dim: int, heads: int, normalise: bool,
                 generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.normalise = normalise
        self.query = normal_parameter((heads, 2 * key_dim, dim), generator, dim**-0.5)
        self.keys = normal_parameter((heads, 2, num_keys, key_dim), generator, key_dim**-0.5)

    def scores(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of both halves of the keys, two of [T, H, n], in float32 or better."""
        x = x_TD.to(torch.promote_types(x_TD.dtype, torch.float32))
        queries = F.linear(x, self.query.to(x.dtype).flatten(0, 1)).unflatten(-1, self.query.shape[:2])
        if self.normalise:
            queries = F.layer_norm(queries, queries.shape[-1:])
        halves = queries.unflatten(-1, (2, -1))
        both = torch.einsum("thpc,hpnc->pthn", halves, self.keys.to(x.dtype))
        return both[0], both[1]

    def forward(self, x_TD: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """(scores [T, H, k], slots [T, H, k]) of the k best slots for each head."""
        return product_top_k(*self.scores(x_TD), k)

    def flops_per_token(self) -> float:
        """Two a multiply-add, of the queries and of both halves of the keys."""
        heads, width, dim = self.query.shape
        return 2.0 * heads * width * (dim + self.keys.shape[2])


def weighted_rows(table_ND: Tensor, slots_TS: Tensor, weights_TS: Tensor) -> Tensor:
    """sum_s weights[t, s] table[slots[t, s]]: [T, D]."""
    return F.embedding_bag(slots_TS, table_ND, mode="sum", per_sample_weights=weights_TS.to(table_ND.dtype))


class _Dots(torch.autograd.Function):
    """Gathered rows live for one block only; in the backward pass the rows are summed without being gathered."""

    @staticmethod
    def forward(ctx, x_TD: Tensor, table_ND: Tensor, slots_TS: Tensor) -> Tensor:
        ctx.save_for_backward(x_TD, table_ND, slots_TS)
        result = x_TD.new_empty(slots_TS.shape)
        for rows in _blocks(x_TD, slots_TS):
            result[rows] = torch.bmm(table_ND[slots_TS[rows]], x_TD[rows].unsqueeze(-1)).squeeze(-1)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_TS: Tensor):
        x_TD, table_ND, slots_TS = ctx.saved_tensors
        grad_x = weighted_rows(table_ND, slots_TS, grad_TS) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return grad_x, None, None
        grad_table = torch.zeros_like(table_ND)
        for rows in _blocks(x_TD, slots_TS):
            products = grad_TS[rows].unsqueeze(-1) * x_TD[rows].unsqueeze(1)
            grad_table.index_add_(0, slots_TS[rows].flatten(), products.flatten(0, 1))
        return grad_x, grad_table, None


def _blocks(x_TD: Tensor, slots_TS: Tensor) -> list[slice]:
    size = max(1, _BLOCK_BYTES // max(1, slots_TS.shape[1] * x_TD.shape[1] * x_TD.element_size()))
    return [slice(start, start + size) for start in range(0, x_TD.shape[0], size)]


def dots_with_rows(x_TD: Tensor, table_ND: Tensor, slots_TS: Tensor) -> Tensor:
    """x[t] . table[slots[t, s]]: [T, S]."""
    return _Dots.apply(x_TD, table_ND, slots_TS)
