"""A routing as one value, and the two moves that every sparse mixture makes with it: dispatch and combine.

Legend: T tokens, D width, E experts, K slots per token, N filled slots (T*K at most).
A slot without an expert holds index -1 and weight 0, so that routers with a varying number of experts per token
(expert choice, top-p, dropped tokens) speak the same language as top-k.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Routing:
    """Which experts each token goes to, and how much each counts."""

    indices_TK: Tensor  # int64; -1 marks an empty slot
    weights_TK: Tensor  # float32 or better; 0 in empty slots; carries the router's gradient
    scores_TE: Tensor  # float32 or better; the router's dense opinion (probabilities unless its card says otherwise)
    logits_TE: Tensor | None = None  # before the score function; None where a router has none
    losses: Mapping[str, Tensor] = field(default_factory=dict)  # auxiliary losses as outputs, by name, unscaled
    state: Tensor | None = None  # what the next layer's router may read (recurrent and pre-gated routers)

    @property
    def num_experts(self) -> int:
        """E."""
        return self.scores_TE.shape[-1]

    def load_E(self, mask_T: Tensor | None = None) -> Tensor:
        """Number of slots that each expert received, int64 [E]; tokens where `mask_T` is False are left out."""
        indices = self.indices_TK if mask_T is None else self.indices_TK[mask_T]
        return torch.bincount(indices.reshape(-1) + 1, minlength=self.num_experts + 1)[1:]

    def dense_TE(self) -> Tensor:
        """The weights as a dense [T, E] matrix (differentiable)."""
        slots = self.weights_TK.new_zeros(self.indices_TK.shape[0], self.num_experts + 1)
        return slots.scatter_add(1, self.indices_TK + 1, self.weights_TK)[:, 1:]

    def with_loss(self, name: str, value: Tensor) -> Routing:
        """A copy that carries one more auxiliary loss."""
        return replace(self, losses={**self.losses, name: value})


@dataclass(frozen=True, eq=False, kw_only=True)
class Context:
    """What a layer may know of its tokens beside their activations. Everything is optional; T = B * S, row-major."""

    batch_shape: tuple[int, int] | None = None  # (B, S) of the T tokens
    token_ids_T: Tensor | None = None  # int64; for hash, word-table and frequency routers
    mask_T: Tensor | None = None  # bool; False marks padding, which counts in no statistic
    positions_T: Tensor | None = None  # int64; place in the sequence
    labels_T: Tensor | None = None  # int64; domain, task or modality of each token
    layer: int = 0  # index of the layer
    num_layers: int = 1
    step: int = 0  # optimiser steps done, for schedules
    state: Tensor | None = None  # `Routing.state` of the previous mixture layer
    generator: torch.Generator | None = None  # for routers that draw; None outside training


@dataclass(frozen=True, eq=False)
class Plan:
    """The slots of a routing sorted by expert: computed once a layer, used by dispatch and combine."""

    tokens_N: Tensor  # int64; token of each sorted slot
    rows_TK: Tensor  # int64; row of each slot in sorted order, -1 for an empty one
    slots_N: Tensor  # int64; position in the flattened [T*K] of each sorted slot
    counts_E: Tensor  # int64; rows of each expert

    @property
    def full(self) -> bool:
        """Whether every slot is filled, so that no row needs masking."""
        return self.slots_N.numel() == self.rows_TK.numel()


def plan(indices_TK: Tensor, num_experts: int) -> Plan:
    """Sort the slots by expert, stably, so that each expert's rows are contiguous and in token order."""
    flat = indices_TK.reshape(-1)
    order = torch.argsort(flat, stable=True)
    counts = torch.bincount(flat + 1, minlength=num_experts + 1)
    slots_N = order[int(counts[0]) :]
    rows = torch.full_like(flat, -1)
    rows[slots_N] = torch.arange(slots_N.numel(), device=flat.device)
    return Plan(slots_N // indices_TK.shape[1], rows.view_as(indices_TK), slots_N, counts[1:])


class _Dispatch(torch.autograd.Function):
    """Gather forward; backward gathers and sums over the K slots, so that no add is scattered."""

    @staticmethod
    def forward(ctx, x_TD: Tensor, tokens_N: Tensor, rows_TK: Tensor, full: bool) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(rows_TK)
        ctx.full = full
        return x_TD.index_select(0, tokens_N)

    @staticmethod
    def backward(ctx, grad_ND: Tensor):  # type: ignore[override]
        (rows_TK,) = ctx.saved_tensors
        return _gather_sum(grad_ND, rows_TK, None, ctx.full), None, None, None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y_ND: Tensor, weights_TK: Tensor, tokens_N: Tensor, slots_N: Tensor, rows_TK: Tensor,  # type: ignore[override]
                full: bool) -> Tensor:
        ctx.save_for_backward(y_ND, weights_TK, tokens_N, slots_N)
        return _gather_sum(y_ND, rows_TK, weights_TK, full)

    @staticmethod
    def backward(ctx, grad_TD: Tensor):  # type: ignore[override]
        y_ND, weights_TK, tokens_N, slots_N = ctx.saved_tensors
        grad_ND = grad_TD.index_select(0, tokens_N)
        weights_N = weights_TK.reshape(-1).index_select(0, slots_N)
        grad_weights = None
        if ctx.needs_input_grad[1]:
            dots_N = torch.einsum("nd,nd->n", grad_ND, y_ND).to(weights_TK.dtype)
            grad_weights = torch.zeros_like(weights_TK).view(-1).index_copy(0, slots_N, dots_N).view_as(weights_TK)
        return grad_ND * weights_N.to(grad_ND.dtype).unsqueeze(1), grad_weights, None, None, None, None


def _gather_sum(rows_ND: Tensor, rows_TK: Tensor, weights_TK: Tensor | None, full: bool) -> Tensor:
    """sum_k weights[t, k] * rows[rows_TK[t, k]], summed slot by slot in a fixed order."""
    total: Tensor | None = None
    for k in range(rows_TK.shape[1]):
        index = rows_TK[:, k]
        if rows_ND.shape[0] == 0:
            break
        part = rows_ND.index_select(0, index if full else index.clamp(min=0))
        if weights_TK is not None:
            part = part * weights_TK[:, k : k + 1].to(part.dtype)
        if not full:
            part = part.masked_fill((index < 0).unsqueeze(1), 0)
        total = part if total is None else total.add_(part)
    return rows_ND.new_zeros(rows_TK.shape[0], rows_ND.shape[1]) if total is None else total


def dispatch(x_TD: Tensor, plan: Plan) -> Tensor:
    """Gather the tokens' rows in expert order: [T, D] -> [N, D]."""
    return _Dispatch.apply(x_TD, plan.tokens_N, plan.rows_TK, plan.full)


def combine(y_ND: Tensor, plan: Plan, weights_TK: Tensor) -> Tensor:
    """Weighted sum of each token's expert outputs: [N, D] -> [T, D]; a token without experts gets zeros."""
    return _Combine.apply(y_ND, weights_TK, plan.tokens_N, plan.slots_N, plan.rows_TK, plan.full)
