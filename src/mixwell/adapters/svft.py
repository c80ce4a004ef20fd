"""SVFT: a sparse matrix trained between the singular vectors of a frozen one.

**Equation:** W' = U (diag(S) + sigmoid(g) M) V^T with W = U diag(S) V^T; M has values at N places that stay, g is a
    number. Change of W: U sigmoid(g) M V^T.
**Shapes:** W [O, I]; U [O, K], V^T [K, I], K = min(O, I); values [N]; g []; of a stack each with E in front.
**Reference:** Lingam et al. 2024, SVFT (2405.19597), section 3; VijayLingam95/SVFT.
**Differs:** W stays as it is beside the change, so the start has no error of a decomposition. The values start normal
    with variance 2 / N, as in the release, so the start is not quite the base; `start: zero` makes it so. `top_k` takes
    the largest u_i . v_j of a square W, as the paper says; of others the largest entries of the square factor, as the
    release does. Its truncated and filled-up ranks are not here.
**Fails when:** W was never trained: its singular vectors then mean nothing. The rate is some hundred times LoRA's.
**Cost:** 2 K (I + O) + 2 N a token, and the singular vectors are kept: K (I + O) numbers; N + 1 are trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mixwell.adapters._parts import WeightAdapter, example_target, product
from mixwell.adapters.targets import Target
from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.core.rng import normal
from mixwell.mixing import check_not_negative

Places = tuple[Tensor, Tensor]  # rows and columns, int64 [N]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of SVFT."""

    pattern: Literal["banded", "random", "top_k"] = "banded"  # of the places
    band: int = 0  # diagonals on each side of the main one; the other patterns have as many places; 0 = plain SVFT
    start: Literal["kaiming", "zero"] = "kaiming"  # of the values

    def __post_init__(self) -> None:
        check_not_negative(self, "band")


def num_places(size: int, band: int) -> int:
    """Entries of a band in a square matrix."""
    diagonals = 2 * band + 1
    missing = band * (band + 1)  # where diagonals are shorter than the main one
    return size * diagonals - missing


def banded(size: int, band: int) -> Places:
    """The places of a band."""
    at = torch.arange(size)
    rows, columns = torch.cartesian_prod(at, at).unbind(1)
    apart = rows - columns
    near = apart.abs() <= band
    return rows[near], columns[near]


def drawn(size: int, count: int, generator: torch.Generator) -> Places:
    """So many places, with replacement."""
    rows = torch.randint(size, (count,), generator=generator, device=generator.device)
    columns = torch.randint(size, (count,), generator=generator, device=generator.device)
    return rows, columns


def aligned(U: Tensor, Vh: Tensor, count: int) -> Places:
    """The places of the largest u_i . v_j; of a W that is not square, of the factor that is."""
    if len(U) == Vh.shape[1]:
        found = U.T @ Vh.T
    else:
        found = U if U.shape[0] == U.shape[1] else Vh
    largest = found.flatten().topk(count)
    order = largest.indices
    size = found.shape[1]
    rows = order // size
    return rows, order % size


@method(
    title="SVFT, a sparse core between singular vectors",
    paper="SVFT: Parameter-Efficient Fine-Tuning with Singular Vectors",
    year=2024,
    tags={"matrix", "experts", "inexact-start"},
)
class SVFT(WeightAdapter):
    """A sparse change between singular vectors; see the module's card."""

    parts = ("U", "Vh", "values", "rows", "columns", "gate")
    targets = ("all-linear",)
    config: Config
    U: Tensor
    Vh: Tensor
    rows: Tensor
    columns: Tensor

    def __init__(self, target: Target, config: Config, generator: torch.Generator) -> None:
        super().__init__(target, config)
        stack = target.stack
        size = min(target.outputs, target.inputs)
        if config.band >= size:
            raise MixwellError(f"band is {config.band} at {target.name}, which has {size} singular values; choose "
                               "less.")
        count = num_places(size, config.band)
        std = (2 / count) ** 0.5 if config.start == "kaiming" else 0.0
        self.values = nn.Parameter(normal((*stack, count), std, generator))
        self.gate = nn.Parameter(self.values.new_zeros(stack))
        self.register_buffer("U", self.values.new_zeros(*stack, target.outputs, size))
        self.register_buffer("Vh", self.values.new_zeros(*stack, size, target.inputs))
        rows, columns = drawn(size, count, generator) if config.pattern == "random" else banded(size, config.band)
        for name, places in (("rows", rows), ("columns", columns)):
            alike = places.to(self.values.device).expand(*stack, -1)
            self.register_buffer(name, alike.clone())

    @torch.no_grad()
    def begin(self) -> None:
        """Decompose W, and find where its singular vectors agree."""
        weight = self.target.numbers.float()
        U, _, Vh = torch.linalg.svd(weight, full_matrices=False)
        self.U.copy_(U)
        self.Vh.copy_(Vh)
        if self.config.pattern == "top_k":
            count = self.values.shape[-1]
            pairs = zip(U, Vh) if self.target.stack else [(U, Vh)]
            found = [aligned(*pair, count) for pair in pairs]
            rows, columns = (torch.stack(places) for places in zip(*found))
            self.rows.copy_(rows.view_as(self.rows))
            self.columns.copy_(columns.view_as(self.columns))

    def after(self, x: Tensor, y: Tensor, weight: Any, U: Tensor, Vh: Tensor, values: Tensor, rows: Tensor,
              columns: Tensor, gate: Tensor) -> Tensor:
        """W x + U sigmoid(g) M V^T x."""
        seen = product(x, Vh)
        scaled = torch.sigmoid(gate) * values
        factors = scaled.to(x.dtype)
        terms = seen.index_select(-1, columns) * factors
        nothing = torch.zeros_like(seen)
        core = nothing.index_add(-1, rows, terms)
        return y + product(core, U)

    def delta(self, weight: Tensor, U: Tensor, Vh: Tensor, values: Tensor, rows: Tensor, columns: Tensor,
              gate: Tensor) -> Tensor:
        """U sigmoid(g) M V^T."""
        size = U.shape[-1]
        scaled = torch.sigmoid(gate) * values
        M = scaled.new_zeros(size, size).index_put((rows, columns), scaled, accumulate=True)
        return U @ M @ Vh


def example(generator: torch.Generator) -> dict[str, Any]:
    """A layer of six inputs and five outputs, one diagonal on each side."""
    return {"target": example_target(generator), "config": Config(band=1)}
