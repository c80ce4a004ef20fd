"""BOFT: what goes into a frozen matrix is turned by a product of sparse rotations that are wired like a butterfly.

**Equation:** y = s * (W Q^T x) + b, row vectors x Q = x F_m .. F_1; F_i = P_i blockdiag(C_1 .. C_n) P_i^T;
    C = (I - S)(I + S)^-1, S = (R - R^T) / 2. One factor (m = 1) and s = 1 is OFT.
**Shapes:** W [O, I]; R [G, m, I / b, b, b], one set for each of G groups of rows of W; s [O]; a stack has E in front.
**Reference:** Liu et al. 2023, BOFT (2311.06243), section 4; Qiu et al. 2023, OFT (2306.07280); PEFT's layers by the
    authors, whose order of factors, rows and blocks this is.
**Differs:** more than one factor on a CPU as well, where PEFT falls back to one. Blocks are applied to x as they are,
    no d x d matrix is built. `series` is the truncated sum that PEFT's OFT takes for the inverse. Fused weights share
    one rotation unless `groups` gives their parts rotations of their own, which costs their product once more.
**Fails when:** the change that is needed alters lengths or angles between inputs: a rotation keeps them.
**Cost:** 2 m b I a token; m I b numbers are kept for m I (b - 1) / 2 free ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn

from mixwell.adapters._parts import WeightAdapter, example_target, full, product
from mixwell.adapters.targets import Target, check_fits, first_fit
from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.mixing import check_least, check_rate

SERIES = 4  # terms of a truncated inverse at least


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of BOFT."""

    block_size: int = 4  # b; even where factors > 1
    factors: int = 1  # m; I is a multiple of b 2^(m - 1)
    gain: bool = True  # whether s is trained, too; without it the change is a rotation
    dropout: float = 0.0  # share of the blocks of one drawn factor that stand still in training
    series: int = 0  # terms of the sum in the place of the inverse, 4 or more; 0 = the inverse
    groups: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # pattern of targets -> rows of each group

    def __post_init__(self) -> None:
        check_least(self, block_size=2, factors=1)
        check_rate(self, "dropout")
        if self.factors > 1 and self.block_size % 2:
            raise ValueError(f"block_size is {self.block_size}; expected an even one for more than one factor")
        if self.series and self.series < SERIES:
            raise ValueError(f"series is {self.series}; expected {SERIES} or more, or 0 for the inverse")


def cayley(R: Tensor, series: int = 0) -> Tensor:
    """Rotations [..., b, b] of any square matrices: (I - S)(I + S)^-1 of their skew parts S, 0 giving I to the bit."""
    S = (R - R.mT) / 2
    eye = torch.eye(R.shape[-1], dtype=R.dtype, device=R.device)
    if not series:
        return torch.linalg.solve(eye + S, eye - S, left=False)
    power = -S
    found = eye + 2 * power
    for _ in range(2, series - 1):
        power = -power @ S
        found = found + 2 * power
    return found - power @ S


def butterfly(width: int, block: int, factor: int) -> Tensor:
    """Which channel stands at each place [I] where factor i's blocks lie side by side: half blocks, even ones first.

    The first factor (0) leaves all where they are.
    """
    if not factor:
        return torch.arange(width)
    together = 2 ** (factor + 1)  # half blocks that change places with each other
    half = block // 2
    halves = torch.arange(width).view(-1, together, half)
    even = halves[:, 0::2]
    odd = halves[:, 1::2]
    ordered = torch.cat((even, odd), dim=1)
    return ordered.flatten()


def turned(x: Tensor, blocks: Tensor) -> Tensor:
    """x Q for rows x [..., I] and blocks [m, I / b, b, b]."""
    factors, count, size, _ = blocks.shape
    for factor in reversed(range(factors)):
        order = butterfly(count * size, size, factor)
        order = order.to(x.device)
        side_by_side = x.index_select(-1, order.argsort())
        by_block = side_by_side.unflatten(-1, (count, size))
        own = blocks[factor].to(x.dtype)
        mixed = torch.einsum("...nb,nbc->...nc", by_block, own)
        x = mixed.flatten(-2).index_select(-1, order)
    return x


@method(
    title="BOFT, butterfly rotations, and OFT",
    paper="Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization",
    year=2023,
    tags={"matrix", "experts"},
)
class BOFT(WeightAdapter):
    """Rotations of what goes in; see the module's card."""

    parts = ("R", "gain")
    targets = ("all-linear",)
    config: Config
    gain: Tensor | None

    @classmethod
    def build(cls, targets: Sequence[Target], config: Config, generator: torch.Generator) -> Sequence[Self]:
        """An adapter for each target; a pattern of groups that fits none of them raises `MixwellError`."""
        check_fits("groups", config.groups, [target.name for target in targets])
        return super().build(targets, config, generator)

    def __init__(self, target: Target, config: Config, generator: torch.Generator) -> None:
        super().__init__(target, config)
        self.groups = first_fit(target.name, config.groups, (target.outputs,))
        _check_widths(target, config, self.groups)
        self.maps_input = len(self.groups) == 1
        blocks = target.inputs // config.block_size
        shape = *target.stack, len(self.groups), config.factors, blocks, config.block_size, config.block_size
        self.R = nn.Parameter(torch.zeros(shape, device=generator.device))
        self.register_parameter("gain", None)
        if config.gain:
            self.gain = nn.Parameter(torch.ones(*target.stack, target.outputs, device=generator.device))

    def _blocks(self, R: Tensor) -> Tensor:
        """Rotations [m, I / b, b, b] of one group, some of them standing still in training."""
        found = cayley(R, self.config.series)
        draws = self.context.generator if self.training else None
        still = int(self.config.dropout * R.shape[1])
        if draws is None or not still:
            return found
        factor = int(torch.randint(R.shape[0], (1,), generator=draws, device=draws.device))
        order = torch.randperm(R.shape[1], generator=draws, device=draws.device)
        kept = torch.ones(R.shape[:2], device=R.device)
        kept[factor, order[:still]] = 0
        eye = torch.eye(R.shape[-1], device=R.device, dtype=R.dtype)
        return torch.where(kept[..., None, None] > 0, found, eye)

    def before(self, x: Tensor, R: Tensor, gain: Tensor | None = None) -> Tensor:
        """x turned, where all rows read it turned alike."""
        if not self.maps_input:
            return x
        blocks = self._blocks(R[0])
        return turned(x, blocks)

    def after(self, x: Tensor, y: Tensor, weight: Any, R: Tensor, gain: Tensor | None = None) -> Tensor:
        """The product, of each group of rows with x turned its own way, times s."""
        if not self.maps_input:
            parts = full(weight).split(self.groups)
            rotations = [self._blocks(own) for own in R]
            moved = [turned(x, blocks) - x for blocks in rotations]
            changes = [product(change, part) for change, part in zip(moved, parts)]
            together = torch.cat(changes, dim=-1)
            y = y + together
        if gain is None:
            return y
        return y * gain.to(y.dtype)

    def delta(self, weight: Tensor, R: Tensor, gain: Tensor | None = None) -> Tensor:
        """diag(s) W Q^T - W."""
        parts = weight.split(self.groups)
        rotations = [cayley(own, self.config.series) for own in R]
        changed = [_turned_weight(part, blocks) for part, blocks in zip(parts, rotations)]
        together = torch.cat(changed)
        if gain is None:
            return together - weight
        scaled = gain[:, None] * together
        return scaled - weight


def _turned_weight(weight: Tensor, blocks: Tensor) -> Tensor:
    """W Q^T."""
    eye = torch.eye(weight.shape[-1], dtype=weight.dtype, device=weight.device)
    Q = turned(eye, blocks)
    return weight @ Q.T


def _check_widths(target: Target, config: Config, groups: tuple[int, ...]) -> None:
    """Raise `MixwellError` for a matrix that the options do not divide."""
    least = config.block_size * 2 ** (config.factors - 1)
    if target.inputs % least:
        raise MixwellError(f"{target.name} has {target.inputs} inputs; {config.factors} factors of blocks of "
                           f"{config.block_size} ask for a multiple of {least}.")
    if sum(groups) != target.outputs:
        raise MixwellError(f"groups: {target.name} has {target.outputs} rows, and {list(groups)} came; expected "
                           "numbers that add up to them.")


def example(generator: torch.Generator) -> dict[str, Any]:
    """A layer of eight inputs and five outputs, two factors of blocks of two."""
    return {"target": example_target(generator, inputs=8), "config": Config(block_size=2, factors=2)}
