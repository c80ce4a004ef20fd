"""A routing as one value, and the two moves that every sparse mixture makes with it: dispatch and combine.

Legend: T tokens, D width, E experts, K slots per token, N filled slots (T*K at most).
A slot without an expert holds index -1 and weight 0, so that routers with a varying number of experts per token
(expert choice, top-p, dropped tokens) speak the same language as top-k.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_FEW = 128  # slots, up to which a plan is made without tensor operations
_BLOCK = 2048  # rows handled at a time where several passes follow each other, so that they stay in cache


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
        bins = indices.reshape(-1) + 1  # the first bin counts the empty slots
        counts = torch.bincount(bins, minlength=self.num_experts + 1)
        return counts[1:]

    def dense_TE(self) -> Tensor:
        """The weights as a dense [T, E] matrix (differentiable)."""
        tokens = self.indices_TK.shape[0]
        slots = self.weights_TK.new_zeros(tokens, self.num_experts + 1)  # the first column takes the empty slots
        filled = slots.scatter_add(1, self.indices_TK + 1, self.weights_TK)
        return filled[:, 1:]

    def with_loss(self, name: str, value: Tensor) -> Routing:
        """A copy that carries one more auxiliary loss."""
        return replace(self, losses={**self.losses, name: value})


class Peers(Protocol):
    """Processes that train one model together, each on tokens of its own."""

    def joined(self, routing: Routing, context: Context) -> tuple[Routing, Context]:
        """The tokens of all of them, where the gradient reaches this process's own."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Context:
    """What a layer may know of its tokens beside their activations. Everything is optional; T = B * S, row-major."""

    batch_shape: tuple[int, int] | None = None  # (B, S) of the T tokens
    token_ids_T: Tensor | None = None  # int64; for hash, word-table and frequency routers
    earlier_ids_BS: Tensor | None = None  # int64; the ids read right before these tokens, -1 where none were
    mask_T: Tensor | None = None  # bool; False marks padding, which counts in no statistic
    positions_T: Tensor | None = None  # int64; place in the sequence
    labels_T: Tensor | None = None  # int64; domain, task or modality of each token
    layer: int = 0  # index of the layer
    num_layers: int = 1
    step: int = 0  # optimiser steps done, for schedules
    state: Tensor | None = None  # `Routing.state` of the previous mixture layer
    generator: torch.Generator | None = None  # for routers that draw; None outside training
    again: bool = False  # whether this pass repeats one, for its gradient: what counts tokens must not count again
    losses: bool = True  # whether auxiliary losses are asked for; a layer may leave them out where they are not
    peers: Peers | None = None  # those over whose tokens balance is asked for
    kept: dict[Any, Any] | None = None  # what methods keep of these rows from one cached pass to the next


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
    if flat.numel() <= _FEW and flat.device.type == "cpu":
        return _plan_few(indices_TK, flat.tolist(), num_experts)
    order = torch.argsort(flat, stable=True)
    counts = torch.bincount(flat + 1, minlength=num_experts + 1)
    slots_N = order[int(counts[0]) :]
    rows = torch.full_like(flat, -1)
    rows[slots_N] = torch.arange(slots_N.numel(), device=flat.device)
    return Plan(slots_N // indices_TK.shape[1], rows.view_as(indices_TK), slots_N, counts[1:])


def _plan_few(indices_TK: Tensor, experts: list[int], num_experts: int) -> Plan:
    """The same in plain Python, which is quicker than seven tensor operations where the slots are few."""
    slots = sorted((s for s, e in enumerate(experts) if e >= 0), key=experts.__getitem__)
    rows, counts = [-1] * len(experts), [0] * num_experts
    for row, slot in enumerate(slots):
        rows[slot] = row
        counts[experts[slot]] += 1
    k = indices_TK.shape[1]
    tokens_N, rows_S, slots_N, counts_E = (
        torch.tensor(values, dtype=torch.int64) for values in ([s // k for s in slots], rows, slots, counts))
    return Plan(tokens_N, rows_S.view_as(indices_TK), slots_N, counts_E)


class _Dispatch(torch.autograd.Function):
    """Gather forward; backward gathers and sums over the K slots, so that no add is scattered."""

    @staticmethod
    def forward(ctx, x_TD: Tensor, plan: Plan) -> Tensor:
        ctx.plan = plan
        return x_TD.index_select(0, plan.tokens_N)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_ND: Tensor):
        return _gather_sum(grad_ND, ctx.plan, None), None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y_ND: Tensor, weights_TK: Tensor, plan: Plan) -> Tensor:
        ctx.save_for_backward(y_ND, weights_TK)
        ctx.plan = plan
        return _gather_sum(y_ND, plan, weights_TK)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_TD: Tensor):
        y_ND, weights_TK = ctx.saved_tensors
        slots_N = ctx.plan.slots_N
        weights_N = weights_TK.reshape(-1).index_select(0, slots_N)
        grad_ND = grad_TD.index_select(0, ctx.plan.tokens_N)
        dots_N = torch.empty_like(weights_N)
        for start in range(0, slots_N.numel(), _BLOCK):
            rows = slice(start, start + _BLOCK)
            if ctx.needs_input_grad[1]:
                dots_N[rows] = (grad_ND[rows].to(dots_N.dtype) * y_ND[rows].to(dots_N.dtype)).sum(1)
            grad_ND[rows] *= weights_N[rows, None].to(grad_ND.dtype)
        if not ctx.needs_input_grad[1]:
            return grad_ND, None, None
        grad_weights = weights_N.new_zeros(weights_TK.numel()).index_copy_(0, slots_N, dots_N)
        return grad_ND, grad_weights.view_as(weights_TK), None


def _gather_sum(rows_ND: Tensor, plan: Plan, weights_TK: Tensor | None) -> Tensor:
    """sum_k weights[t, k] * rows[rows_TK[t, k]] over the filled slots, in slot order, summed in float32 or better."""
    flat = plan.rows_TK.reshape(-1)
    weights = None if weights_TK is None else weights_TK.reshape(-1).to(rows_ND.dtype)
    if plan.full:
        starts_T = torch.arange(0, flat.numel(), plan.rows_TK.shape[1], device=flat.device)
    else:
        filled_TK = plan.rows_TK >= 0
        ends_T = filled_TK.sum(1).cumsum(0)
        starts_T = torch.cat([ends_T.new_zeros(1), ends_T[:-1]])
        filled = filled_TK.reshape(-1)
        flat, weights = flat[filled], None if weights is None else weights[filled]
    return torch.embedding_bag(rows_ND, flat, starts_T, mode=0, per_sample_weights=weights)[0]


def dispatch(x_TD: Tensor, plan: Plan) -> Tensor:
    """Gather the tokens' rows in expert order: [T, D] -> [N, D]."""
    if torch.is_grad_enabled():
        return _Dispatch.apply(x_TD, plan)
    return x_TD.index_select(0, plan.tokens_N)


def combine(y_ND: Tensor, plan: Plan, weights_TK: Tensor) -> Tensor:
    """Weighted sum of each token's expert outputs: [N, D] -> [T, D]; a token without experts gets zeros."""
    if torch.is_grad_enabled():
        return _Combine.apply(y_ND, weights_TK, plan)
    return _gather_sum(y_ND, plan, weights_TK)


def expert_capacity(capacity_factor: float, num_tokens: int, k: int, num_experts: int) -> int:
    """Slots of each expert: ceil(capacity_factor * T * K / E). Raises `ValueError` for a factor of 0 or less."""
    if not capacity_factor > 0:
        raise ValueError(f"capacity_factor is {capacity_factor}; expected a number above 0")
    return math.ceil(capacity_factor * num_tokens * k / num_experts - 1e-9)
