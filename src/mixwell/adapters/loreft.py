"""LoReFT: a frozen network whose hidden states are edited in a small subspace, at the ends of the prompt alone.

**Equation:** h <- h + R^T (A h + b - R h) at the first f and last l positions of the prompt, R with orthonormal rows;
    DiReFT: h <- h + R^T (A h + b).
**Shapes:** h [D] of a layer's output; R, A [K, D], b [K]; two sets, for first and last, unless `tied`.
**Reference:** Wu et al. 2024, ReFT (2404.03592), eq. 1-3; stanfordnlp/pyreft.
**Differs:** R comes from a QR decomposition of a free matrix instead of torch's parametrisation. There is no dropout.
    The prompt is what stands before the answer: a pass that begins a text is one (all of it, padding left out) unless
    `prompts` gives lengths, as training on prompts with answers must; one that is read in pieces is edited at the ends
    of the first. `free` leaves R as it is (NoReFT).
**Fails when:** the task needs a computation that the frozen layers behind the edit do not do.
**Cost:** 4 K D for an edited position and layer, a decomposition of K D a pass; none at the other positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mixwell.adapters._parts import LayerAdapter, product, uniform
from mixwell.adapters.attached import Attached
from mixwell.adapters.targets import Target
from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.core.rng import normal
from mixwell.core.routing import Context
from mixwell.mixing import check_least, check_not_negative


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of LoReFT."""

    rank: int = 4  # K
    first: int = 7  # f, positions from the beginning of the prompt; half of a short prompt at most
    last: int = 7  # l, positions up to its end
    tied: bool = False  # one edit for both ends
    direct: bool = False  # DiReFT: without - R h
    free: bool = False  # R without orthonormal rows

    def __post_init__(self) -> None:
        check_least(self, rank=1)
        check_not_negative(self, "first", "last")
        if not self.first and not self.last:
            raise ValueError("first and last are 0; expected one of them above 0")


def orthonormal(directions: Tensor) -> Tensor:
    """R [..., K, D] with orthonormal rows that span what the columns [..., D, K] do; those that are so already stay."""
    Q, upper = torch.linalg.qr(directions)
    signs = upper.diagonal(dim1=-2, dim2=-1).sign()
    return (Q * signs[..., None, :]).mT


def edited(h: Tensor, R: Tensor, A: Tensor, b: Tensor, direct: bool) -> Tensor:
    """The change of h [..., D]."""
    wanted = product(h, A) + b.to(h.dtype)
    if not direct:
        wanted = wanted - product(h, R)
    return product(wanted, R.mT)


def ends(first_B: Tensor, length_B: Tensor, width: int, config: Config) -> tuple[Tensor, Tensor]:
    """Which of `width` columns are the first f and which the last l of prompts from columns first_B on, [B, T]."""
    half_B = length_B // 2
    columns = torch.arange(width, device=first_B.device)
    place_BT = columns - first_B[:, None]
    front_B = half_B.clamp(max=config.first)
    behind_B = half_B.clamp(max=config.last)
    tail_B = length_B - behind_B
    early_BT = (place_BT >= 0) & (place_BT < front_B[:, None])
    late_BT = (place_BT >= tail_B[:, None]) & (place_BT < length_B[:, None])
    return early_BT, late_BT


@method(
    title="LoReFT and DiReFT, edits of hidden states",
    paper="ReFT: Representation Finetuning for Language Models",
    year=2024,
    tags={"inexact-start"},
)
class LoReFT(LayerAdapter):
    """Edits a layer's output; see the module's card."""

    targets = (r"re:layers\.\d+",)
    config: Config

    def __init__(self, target: Target, config: Config, generator: torch.Generator) -> None:
        super().__init__(target, config)
        width = _width(target)
        if config.rank > width:
            raise MixwellError(f"rank is {config.rank} at {target.name}, which is {width} wide; choose 1 to {width}.")
        sets = 1 if config.tied else 2
        drawn = normal((sets, width, config.rank), width**-0.5, generator)
        self.directions = nn.Parameter(torch.linalg.qr(drawn).Q.contiguous())
        self.weight = nn.Parameter(uniform((sets, config.rank, width), width**-0.5, generator))
        self.shift = nn.Parameter(uniform((sets, config.rank), width**-0.5, generator))
        self.lengths_B: Tensor | None = None  # of the prompts of the batch in hand; None = whole rows

    def forward(self, x_BTD: Tensor, positions_BT: Tensor, cache: Any, mask_BT: Tensor | None,
                context: Context) -> Any:
        """What the layer gives, its states edited at the ends of the prompt."""
        y_BTD, *others = self.base(x_BTD, positions_BT, cache, mask_BT, context)
        shape = y_BTD.shape[:2]
        begins_BT = (positions_BT == 0).expand(shape)
        there_BT = torch.ones_like(begins_BT) if mask_BT is None else mask_BT
        first_BT = begins_BT & there_BT
        begins_B1 = first_BT.any(1, keepdim=True)
        if bool(begins_B1.any()):
            y_BTD = self._edit(y_BTD, there_BT & begins_B1)
        return (y_BTD, *others)

    def _edit(self, h_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """[B, T, D] with the prompts edited that begin here; what `mask_BT` leaves out is no part of one."""
        first_B = mask_BT.int().argmax(1)
        length_B = mask_BT.sum(1)
        if self.lengths_B is not None:
            _check_lengths(self.lengths_B, length_B)
            length_B = self.lengths_B.to(length_B.device)
        width = mask_BT.shape[1]
        chosen = ends(first_B, length_B, width, self.config)
        R = self.directions.mT if self.config.free else orthonormal(self.directions)
        for place, rows_BT in enumerate(chosen):
            own = 0 if self.config.tied else place
            rows_BT = rows_BT & mask_BT
            h_ND = h_BTD[rows_BT]
            change_ND = edited(h_ND, R[own], self.weight[own], self.shift[own], self.config.direct)
            h_BTD = h_BTD.masked_scatter(rows_BT[..., None], h_ND + change_ND)
        return h_BTD


@contextmanager
def prompts(there: Attached, lengths_B: Tensor) -> Iterator[None]:
    """Let the rows of batches begin with prompts of these lengths, int64 [B]; what follows is answer, not edited."""
    adapters = list(there.adapters.values())
    for adapter in adapters:
        adapter.lengths_B = lengths_B
    try:
        yield
    finally:
        for adapter in adapters:
            adapter.lengths_B = None


def prompt_lengths(targets_BT: Tensor, ignored: int = -100) -> Tensor:
    """Tokens of each row up to the first whose successor counts, int64 [B]; whole rows where no target does.

    targets_BT: the token behind each one, `ignored` where it is no part of the answer.
    """
    counts_BT = targets_BT != ignored
    first_B = counts_BT.int().argmax(1)
    answered_B = counts_BT.any(1)
    whole = targets_BT.shape[1]
    return torch.where(answered_B, first_B + 1, whole)


def _check_lengths(lengths_B: Tensor, length_B: Tensor) -> None:
    """Raise `MixwellError` for prompts that do not fit the rows."""
    if lengths_B.shape != length_B.shape:
        raise MixwellError(f"prompts: {list(lengths_B.shape)} lengths came for {len(length_B)} rows; give one a row.")
    own_B = lengths_B.to(length_B.device)
    wrong_B = (own_B > length_B) | (own_B < 0)
    if bool(wrong_B.any()):
        raise MixwellError(f"prompts: lengths {lengths_B.tolist()} came for rows of {length_B.tolist()} tokens.")


def _width(target: Target) -> int:
    """D of a layer of a decoder."""
    for name, norm in target.owner.named_children():
        if name.endswith(("_norm", "_norm_after")):
            width: int = norm.weight.shape[0]  # type: ignore[index, assignment]
            return width
    raise MixwellError(f"{target.name} is no layer of a decoder, so it has no hidden states to edit; take layers.N.")


def example(generator: torch.Generator) -> dict[str, Any]:
    """Rank two at the first two and the last three positions, at a layer of nothing but a norm of width six."""
    from mixwell.kernels.norm import RMSNorm

    owner = nn.Module()
    owner.add_module("sequence_norm", RMSNorm(6, 1e-5))
    return {"target": Target("layers.0", owner), "config": Config(rank=2, first=2, last=3)}
