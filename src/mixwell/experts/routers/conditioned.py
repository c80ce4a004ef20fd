"""Conditional routing: what the gate reads is a choice between token, context, label and attributes.

**Equation:** p = softmax(h);  I = top-k of p;  w_i = p_i / sum_{j in I} p_j, with
    token: h = W x_t;    context: h = W x_t + U mean(x_1 .. x_t of the row);
    label: h = W e_c, c the token's task or modality;    attribute: h = W norm(A code_c + b), code_c binary;
    token_label: h = W x_t + U e_c;    gate_per_label: h = W_c x_t.
**Shapes:** x [T, D]; W, U [E, D]; e [L, D]; codes [L, B]; A [D, B]; W_c [L, E, D]; weights [T, K].
**Reference:** Zhu et al. 2022, Uni-Perceiver-MoE (2206.04674), section 3.2, and the authors' code (attribute gate:
    linear map and layer norm, then the gate); Gupta et al. 2022 (2204.07689), section 3, task-aware gates.
**Differs:** the context is a running mean, which a causal model may read, where the paper pools with attention over the
    whole sequence; U beside W is the split of one map of the joined inputs. A new task's embedding or gate is the
    weighted mean of those of related tasks (`adopt`). W and U start normal with std 0.02, e with 1, A with one over the
    root of B.
**Fails when:** labels say nothing about what the tokens need: label and attribute gates see nothing else. The context
    gate restarts its mean where decoding goes on from a cache.
**Cost:** O(T D E); label and attribute gates: O(L D E), and nothing a token once folded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mixwell.core.method import method
from mixwell.core.routing import Context, Routing
from mixwell.experts.routers._parts import project, span
from mixwell.kernels.norm import wide
from mixwell.mixing import Router, check_choice, check_k, normal_parameter, softmax_top_k

BY_LABEL = {"label", "attribute", "token_label", "gate_per_label"}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the conditional router."""

    k: int = 2  # experts per token, 1 to E
    renormalise: bool | None = None  # weights of a token sum to 1; default: wherever k > 1
    condition: Literal["token", "context", "label", "attribute", "token_label", "gate_per_label"] = "token_label"
    labels: int | None = None  # L, tasks or modalities; not for attribute, whose codes say it
    codes: tuple[tuple[int, ...], ...] = ()  # attribute: the binary code of each label, all of one length

    def __post_init__(self) -> None:
        check_choice(self.k, self.renormalise)
        if self.condition == "attribute":
            self._check_codes()
        elif self.codes:
            raise ValueError(f"codes belong to condition attribute; the condition is {self.condition}")
        elif self.condition in BY_LABEL and (self.labels or 0) < 1:
            raise ValueError(f"condition {self.condition} needs labels, the number of tasks or modalities, at least 1")

    def _check_codes(self) -> None:
        lengths = {len(code) for code in self.codes}
        bits = {bit for code in self.codes for bit in code}
        if len(lengths) != 1 or not bits <= {0, 1}:
            raise ValueError("condition attribute needs codes: a list of 0 and 1 for each label, all of one length")

    @property
    def num_labels(self) -> int:
        """L; 0 where the gate reads no label."""
        if self.condition not in BY_LABEL:
            return 0
        return len(self.codes) or self.labels or 0


def running_mean(x_TD: Tensor, batch_shape: tuple[int, int], mask_T: Tensor | None = None) -> Tensor:
    """Mean of each row's real tokens up to and including each place [T, D]; padding before any token gives 0."""
    x_BSD = x_TD.unflatten(0, batch_shape)
    keep = x_BSD.new_ones(*batch_shape, 1)
    if mask_T is not None:
        keep = mask_T.view(keep.shape)
        keep = keep.to(x_TD.dtype)
    total = (x_BSD * keep).cumsum(1)
    count = keep.cumsum(1).clamp_min(1)
    return (total / count).flatten(0, 1)


@method(
    title="Conditional routing by token, context, label or attributes",
    paper=(
        "Uni-Perceiver-MoE: Learning Sparse Generalist Models with Conditional MoEs",
        "Sparsely Activated Mixture-of-Experts are Robust Multi-Task Learners",
    ),
    year=2022,
    tags={"token-choice", "batch-invariant", "exact-k", "simplex", "dense-at-full-k"},
)
class Conditioned(Router):
    """Conditional router; labels come from `Context.labels_T`."""

    config: Config

    def __init__(self, dim: int, num_experts: int, config: Config | None = None,
                 generator: torch.Generator | None = None) -> None:
        config = config or Config(labels=1)
        check_k(config.k, num_experts)
        super().__init__(dim, num_experts, config, generator)
        condition = config.condition
        labels = config.num_labels
        shape: tuple[int, ...] = (num_experts, dim)
        if condition == "gate_per_label":
            shape = (labels, num_experts, dim)
        self.weight = normal_parameter(shape, generator)
        if condition in ("context", "token_label"):
            self.condition_weight = normal_parameter((num_experts, dim), generator)
        if condition in ("label", "token_label"):
            self.embedding = normal_parameter((labels, dim), generator, 1.0)
        if condition == "attribute":
            bits = len(config.codes[0])
            self.attribute_weight = normal_parameter((dim, bits), generator, bits**-0.5)
            self.attribute_bias = normal_parameter((dim,), generator)

    def fold(self) -> Tensor:
        """The logits of every label as a table [L, E]; raises `ValueError` where the gate reads the token."""
        condition = self.config.condition
        weight = self.weight
        if condition == "label":
            return self.embedding @ weight.T
        if condition == "attribute":
            codes = torch.tensor(self.config.codes, dtype=weight.dtype, device=weight.device)
            hidden = codes @ self.attribute_weight.T + self.attribute_bias
            normed = F.layer_norm(hidden, (self.dim,))
            return normed @ weight.T
        raise ValueError(f"condition {condition} reads the token; only label and attribute gates fold")

    @torch.no_grad()
    def adopt(self, label: int, related: Sequence[int], weights: Sequence[float] | None = None) -> None:
        """Set up a new task: its embedding or gate becomes the weighted mean of those of related seen tasks.

        Raises `ValueError` where the condition learns nothing of a single label, or the labels are not others in range.
        """
        condition = self.config.condition
        rows = self.weight if condition == "gate_per_label" else getattr(self, "embedding", None)
        if rows is None:
            raise ValueError(f"condition {condition} learns nothing of a single label; nothing to adopt")
        known = all(0 <= r < len(rows) for r in (label, *related))
        if label in related or not related or not known:
            raise ValueError(f"label {label} cannot adopt from {list(related)}; expected other labels, 0 to "
                             f"{len(rows) - 1}")
        if weights is None:
            weights = [1.0] * len(related)
        shares = rows.new_tensor(weights)
        shares = shares / shares.sum()
        rows[label] = torch.tensordot(shares, rows[list(related)], 1)

    def _labels(self, x_TD: Tensor, context: Context) -> Tensor:
        labels = context.labels_T
        count = self.config.num_labels
        if labels is None:
            raise ValueError(f"condition {self.config.condition} needs a task or modality for each token: give "
                             "Context.labels_T")
        low, high = span(labels)
        if low < 0 or high >= count:
            raise ValueError(f"labels run from {low} to {high}; expected 0 to {count - 1}")
        return labels

    def logits(self, x_TD: Tensor, context: Context) -> Tensor:
        """Router logits [T, E] in float32 or better; raises `ValueError` without what the gate reads."""
        x = wide(x_TD)
        condition = self.config.condition
        if condition == "token":
            return project(x, self.weight)
        if condition == "context":
            if context.batch_shape is None:
                raise ValueError("condition context needs Context.batch_shape, the rows and places of the tokens")
            before = running_mean(x, context.batch_shape, context.mask_T)
            return project(x, self.weight) + project(before, self.condition_weight)
        labels = self._labels(x, context)
        if condition == "gate_per_label":
            return self._by_gate(x, labels)
        if condition == "token_label":
            by_label = self.embedding @ self.condition_weight.T
            return project(x, self.weight) + by_label[labels].to(x.dtype)
        return self.fold()[labels].to(x.dtype)

    def _by_gate(self, x_TD: Tensor, labels_T: Tensor) -> Tensor:
        """Each token's logits by the gate of its label."""
        logits = x_TD.new_zeros(len(x_TD), self.num_experts)
        for label in labels_T.unique().tolist():
            rows = (labels_T == label).nonzero()[:, 0]
            gate = self.weight[label]
            own = project(x_TD[rows], gate)
            logits = logits.index_copy(0, rows, own)
        return logits

    def forward(self, x_TD: Tensor, context: Context) -> Routing:
        """Route the tokens [T, D]."""
        logits = self.logits(x_TD, context)
        return softmax_top_k(logits, self.config.k, self.config.renormalise)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens of width six from three tasks, four experts."""
    x_TD = torch.randn(8, 6, generator=generator)
    config = Config(labels=3)
    context = Context(labels_T=torch.tensor([0, 1, 2] * 2 + [0, 1]))
    return {"dim": 6, "num_experts": 4, "config": config, "x_TD": x_TD, "context": context}
