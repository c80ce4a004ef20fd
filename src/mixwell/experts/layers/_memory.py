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

from mixwell.kernels.norm import wide
from mixwell.mixing import normal_parameter

_BLOCK_BYTES = 8 << 20  # of table rows gathered at a time


def product_top_k(rows_Rn: Tensor, columns_Rn: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of all n^2 sums rows[i] + columns[j], best first: (scores [R, k], slots i n + j [R, k]).

    Exact: the sum of the i-th and the j-th best (from 1) has i j - 1 sums before it, so that only i j <= k can enter.
    """
    size = rows_Rn.shape[-1]
    best_rows, i = rows_Rn.topk(k, dim=-1)
    best_columns, j = columns_Rn.topk(k, dim=-1)
    pairs = [(a, b) for a in range(k) for b in range(k) if (a + 1) * (b + 1) <= k]
    first, second = torch.tensor(pairs, device=rows_Rn.device).T
    sums = best_rows[..., first] + best_columns[..., second]
    scores, chosen = sums.topk(k, dim=-1)
    rows = i.gather(-1, first[chosen])
    columns = j.gather(-1, second[chosen])
    return scores, rows * size + columns


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
        x = wide(x_TD)
        heads, width, _ = self.query.shape
        maps = self.query.to(x.dtype).flatten(0, 1)
        queries = F.linear(x, maps)
        queries = queries.unflatten(-1, (heads, width))
        if self.normalise:
            queries = F.layer_norm(queries, (width,))
        halves = queries.unflatten(-1, (2, -1))
        keys = self.keys.to(x.dtype)
        both = torch.einsum("thpc,hpnc->pthn", halves, keys)
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
            gathered = table_ND[slots_TS[rows]]
            dots = torch.bmm(gathered, x_TD[rows].unsqueeze(-1))
            result[rows] = dots.squeeze(-1)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_TS: Tensor):
        x_TD, table_ND, slots_TS = ctx.saved_tensors
        needs_x, needs_table, _ = ctx.needs_input_grad
        grad_x = weighted_rows(table_ND, slots_TS, grad_TS) if needs_x else None
        if not needs_table:
            return grad_x, None, None
        grad_table = torch.zeros_like(table_ND)
        for rows in _blocks(x_TD, slots_TS):
            x = x_TD[rows].unsqueeze(1)
            products = grad_TS[rows].unsqueeze(-1) * x
            slots = slots_TS[rows].flatten()
            grad_table.index_add_(0, slots, products.flatten(0, 1))
        return grad_x, grad_table, None


def _blocks(x_TD: Tensor, slots_TS: Tensor) -> list[slice]:
    tokens, width = x_TD.shape
    row_bytes = slots_TS.shape[1] * width * x_TD.element_size()
    size = max(1, _BLOCK_BYTES // max(1, row_bytes))
    return [slice(start, start + size) for start in range(0, tokens, size)]


def dots_with_rows(x_TD: Tensor, table_ND: Tensor, slots_TS: Tensor) -> Tensor:
    """x[t] . table[slots[t, s]]: [T, S]."""
    return _Dots.apply(x_TD, table_ND, slots_TS)
