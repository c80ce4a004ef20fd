"""LoRA: a frozen matrix with a product of two thin ones beside it, on linear layers and inside fused experts.

**Equation:** y = W x + s B A drop(x); s = alpha / R, or alpha / sqrt(R) with `rslora`.
    DoRA: y = (m / n) * (W x + s B A drop(x)), n = ||W + s B A|| of each row, taken as a constant; m starts as ||W||.
    PiSSA: A_0 = sqrt(S_R / s) V_R^T, B_0 = U_R sqrt(S_R / s) of W = U S V^T; y = W x + s (B A - B_0 A_0) drop(x).
    Experts: A_e, B_e for each expert, rank R each, on the rows that were routed to it.
**Shapes:** W [O, I], A [R, I], B [O, R], m [O]; of a stack [E, O, I], [E, R, I], [E, O, R], [E, O].
**Reference:** Hu et al. 2021 (2106.09685), eq. 3; Kalajdzievski 2023 (2312.03732), rsLoRA; Liu et al. 2024
    (2402.09353), eq. 5 and 11, DoRA; Meng et al. 2024 (2404.02948), eq. 2-5, PiSSA.
**Differs:** PiSSA takes the start out in the branch and leaves W as it is, so its file needs no other base, and the
    start is exact. DoRA's n comes from W A^T and A A^T; the sum W + s B A is never built. With dropout, DoRA scales
    the undropped W x. Query, key and value stand in one matrix here and share A; so do gate and up.
**Fails when:** the change that is needed has a higher rank than R; alpha is kept while R grows (take `rslora`).
**Cost:** 2 R (I + O) a token; DoRA 2 R I O more a pass; PiSSA twice the branch, and a decomposition of W at the start.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from mixwell.adapters._parts import WeightAdapter, check_rank, dropped, example_target, full, product, uniform
from mixwell.adapters.targets import Target, check_fits, first_fit
from mixwell.core.method import method
from mixwell.core.rng import normal
from mixwell.mixing import check_above, check_least, check_rate


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of LoRA."""

    rank: int = 8  # R, of each matrix; of each expert of a stack
    alpha: float = 8.0  # the change counts alpha / R times
    rslora: bool = False  # alpha / sqrt(R) instead
    dora: bool = False  # train the length of each row apart from its direction
    start: Literal["kaiming", "gaussian", "pissa"] = "kaiming"  # of A; B starts at 0 but for pissa
    dropout: float = 0.0  # of what goes into A, in training; 0 up to 1
    rank_pattern: Mapping[str, int] = field(default_factory=dict)  # pattern of targets -> their rank
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)  # pattern of targets -> their alpha

    def __post_init__(self) -> None:
        check_least(self, rank=1)
        check_above(self, alpha=0)
        check_rate(self, "dropout")
        for pattern, alpha in self.alpha_pattern.items():
            if not alpha > 0:
                raise ValueError(f"alpha_pattern: {pattern} is {alpha}; expected a number above 0")

    def rank_at(self, name: str) -> int:
        """R at a target."""
        return first_fit(name, self.rank_pattern, self.rank)

    def scale_at(self, name: str) -> float:
        """s at a target."""
        rank = self.rank_at(name)
        alpha = first_fit(name, self.alpha_pattern, self.alpha)
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def row_lengths(weight: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
    """||W + s B A|| of each row [O], from W A^T and A A^T."""
    of_weight = weight.square().sum(-1)
    between = weight @ A.T
    of_change = scale * B @ (A @ A.T)
    across = 2 * between + of_change
    more = scale * (across * B).sum(-1)
    return (of_weight + more).clamp_min(0).sqrt()


@method(
    title="LoRA, with rsLoRA, DoRA and the PiSSA start",
    paper="LoRA: Low-Rank Adaptation of Large Language Models",
    year=2021,
    tags={"matrix", "experts"},
)
class LoRA(WeightAdapter):
    """A low-rank change; see the module's card."""

    parts = ("A", "B", "start_A", "start_B", "magnitude")
    targets = ("all-linear",)
    config: Config
    start_A: Tensor | None
    start_B: Tensor | None

    @classmethod
    def build(cls, targets: Sequence[Target], config: Config, generator: torch.Generator) -> Sequence[Self]:
        """An adapter for each target; a pattern of ranks or alphas that fits none of them raises `MixwellError`."""
        names = [target.name for target in targets]
        check_fits("rank_pattern", config.rank_pattern, names)
        check_fits("alpha_pattern", config.alpha_pattern, names)
        return super().build(targets, config, generator)

    def __init__(self, target: Target, config: Config, generator: torch.Generator) -> None:
        super().__init__(target, config)
        name = target.name
        rank = config.rank_at(name)
        check_rank(rank, target)
        self.scale = config.scale_at(name)
        A, B = self._start(rank, generator)
        self.A = nn.Parameter(A)
        self.B = nn.Parameter(B)
        pissa = config.start == "pissa"
        self.register_buffer("start_A", A.clone() if pissa else None)
        self.register_buffer("start_B", B.clone() if pissa else None)
        self.register_parameter("magnitude", None)
        if config.dora:
            self.magnitude = nn.Parameter(A.new_ones(*target.stack, target.outputs))

    def _start(self, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A and B at their start, as far as it takes nothing of W."""
        target, start = self.target, self.config.start
        shape = *target.stack, rank, target.inputs
        if start == "pissa":
            A = torch.zeros(shape, device=target.tensor.device)
        elif start == "gaussian":
            A = normal(shape, 1 / rank, generator)
        else:
            A = uniform(shape, target.inputs**-0.5, generator)
        B = A.new_zeros(*target.stack, target.outputs, rank)
        return A, B

    @torch.no_grad()
    def begin(self) -> None:
        """Take the largest directions of W for PiSSA, and the lengths of its rows for DoRA."""
        if self.start_A is not None and self.start_B is not None:
            A, B = principal(self.target.numbers, self.A.shape[-2], self.scale)
            for part, value in ((self.A, A), (self.B, B), (self.start_A, A), (self.start_B, B)):
                part.copy_(value)
        if self.magnitude is not None:
            lengths = self._lengths()
            self.magnitude.copy_(lengths)

    def _lengths(self) -> Tensor:
        """m at its start: each row as long as it is."""
        weight = self.target.numbers.float()
        bound = self.bound()
        if not self.target.stack:
            return self._row_lengths(weight, *bound.parts[:4])
        pairs = zip(weight, bound.unbind())
        rows = [self._row_lengths(own, *one.parts[:4]) for own, one in pairs]
        return torch.stack(rows)

    def _row_lengths(self, weight: Tensor, A: Tensor, B: Tensor, start_A: Tensor | None, start_B: Tensor | None,
                     ) -> Tensor:
        if start_A is not None and start_B is not None:
            A = torch.cat((A, start_A))
            B = torch.cat((B, -start_B), dim=1)
        whole = full(weight)
        A = A.detach().to(whole.dtype)
        B = B.detach().to(whole.dtype)
        return row_lengths(whole, A, B, self.scale)

    def after(self, x: Tensor, y: Tensor, weight: Any, A: Tensor, B: Tensor, start_A: Tensor | None = None,
              start_B: Tensor | None = None, magnitude: Tensor | None = None) -> Tensor:
        """W x + s B A drop(x), each row brought to its length with DoRA."""
        draws = self.context.generator if self.training else None
        x = dropped(x, self.config.dropout, draws)
        change = product(x, A, B)
        if start_A is not None and start_B is not None:
            change = change - product(x, start_A, start_B)
        y = y + self.scale * change
        if magnitude is None:
            return y
        lengths = self._row_lengths(weight, A, B, start_A, start_B)
        gain = magnitude / lengths
        return y * gain.to(y.dtype)

    def delta(self, weight: Tensor, A: Tensor, B: Tensor, start_A: Tensor | None = None,
              start_B: Tensor | None = None, magnitude: Tensor | None = None) -> Tensor:
        """s B A, or what brings W + s B A to its length."""
        change = B @ A
        if start_A is not None and start_B is not None:
            change = change - start_B @ start_A
        change = self.scale * change
        if magnitude is None:
            return change
        lengths = self._row_lengths(weight, A, B, start_A, start_B)
        gain = magnitude / lengths
        return gain[:, None] * (weight + change) - weight


def principal(weight: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """(A, B) with s B A the best approximation of W [..., O, I] of that rank, its weight shared evenly."""
    U, S, Vh = torch.linalg.svd(weight.float(), full_matrices=False)
    largest = S[..., :rank] / scale
    roots = largest.sqrt()
    right = Vh[..., :rank, :]
    left = U[..., :rank]
    A = roots[..., None] * right
    B = left * roots[..., None, :]
    return A, B


def example(generator: torch.Generator) -> dict[str, Any]:
    """A layer of six inputs and five outputs, rank two."""
    return {"target": example_target(generator), "config": Config(rank=2, alpha=4.0)}
