"""BLAST: blocks of one matrix share bases along rows and columns, and each has its own weights between them.

**Equation:** block (i, j) of W is B_i diag(D[:, i, j]) C_j;  z_i = sum_j D[:, i, j] * (C_j x_j), y_i = B_i z_i.
    Factorising: B, then C, then D go down the gradient of ||W - W'||_F^2, each times (G + e I)^-1, G the Gram matrix of
    what it is multiplied with and e = delta ||W - W'||_F, by a rate that falls in a line; W over its root mean square,
    which goes into D at the end.
**Shapes:** x [..., I]; B (weight) [b, O / b, r]; C (right) [b, r, I / b]; D (gates) [r, b, b].
**Reference:** Lee et al. 2024 (2410.21262), sections 2 and 3, and its code.
**Differs:** the start of a training from scratch is not in the code: B and C normal, D uniform in 0 to 2, by memory of
    the paper, levelled to the std asked for. Factorising is done in float64 and keeps the best of its rounds.
**Fails when:** more rounds end nearer than `steps`: recovery of an over-ranked matrix is slow.
**Cost:** 2 r (O + I + b^2) FLOPs a row; each round of factorising O(O I r).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, einsum, nn

from mixwell.core.method import method
from mixwell.core.rng import normal
from mixwell.core.routing import Context
from mixwell.mixing import Structured, check_above, check_least, check_not_negative, normal_parameter
from mixwell.precision.structured._parts import in_blocks, structured_example, uniform


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of BLAST."""

    rank: int  # r, bases of each row and column of blocks
    blocks: int = 4  # b, a divisor of O and of I
    steps: int = 300  # rounds of factorising
    lr: float = 1.0  # of the first round, above 0
    last_lr: float = 0.0  # of the last one, 0 or more
    delta: float = 0.1  # of e, above 0
    preconditioned: bool = True  # False: plain descent, without (G + e I)^-1

    def __post_init__(self) -> None:
        check_least(self, rank=1, blocks=1, steps=1)
        check_above(self, lr=0, delta=0)
        check_not_negative(self, "last_lr")


class Factors(NamedTuple):
    """What a BLAST matrix is made of."""

    left: Tensor  # B [b, p, r]
    right: Tensor  # C [b, r, q]
    gates: Tensor  # D [r, b, b]

    def grid(self) -> Tensor:
        """The blocks [b, b, p, q]."""
        gated = einsum("rij,jrq->ijrq", self.gates, self.right)
        return einsum("ipr,ijrq->ijpq", self.left, gated)


def product(x: Tensor, factors: Factors) -> Tensor:
    """W x: [T, I] -> [T, O]."""
    left, right, gates = factors
    blocks, _, q = right.shape
    parts = x.unflatten(1, (blocks, q))
    inner = torch.bmm(parts.transpose(0, 1), right.mT)
    mixed = einsum("jtr,rij->itr", inner, gates)
    y = torch.bmm(mixed, left.mT)
    y = y.transpose(0, 1)
    return y.flatten(1)


def factorise(weight: Tensor, config: Config, generator: torch.Generator) -> Factors:
    """Factors of a matrix, float64, the nearest of all rounds."""
    whole = weight.double()
    size = whole.square().mean().sqrt()
    wanted = in_blocks(whole / size, config.blocks)
    now = _drawn(wanted, config.rank, generator)
    best, least = now, float("inf")
    rates = torch.linspace(config.lr, config.last_lr, config.steps)
    for rate in rates.tolist():
        now = _round(wanted, now, rate, config)
        error = float((wanted - now.grid()).norm())
        if not error < least:
            continue
        best, least = now, error
    return best._replace(gates=best.gates * size)


def _drawn(wanted: Tensor, rank: int, generator: torch.Generator) -> Factors:
    """Bases near zero and gates of std 1."""
    blocks, _, p, q = wanted.shape
    small = 1e-3 / rank**0.5
    left = normal((blocks, p, rank), small, generator)
    right = normal((blocks, rank, q), small, generator)
    gates = normal((rank, blocks, blocks), 1.0, generator)
    left, right, gates = left.double(), right.double(), gates.double()
    return Factors(left, right, gates)


def _round(wanted: Tensor, now: Factors, rate: float, config: Config) -> Factors:
    """One step of the left bases, of the right ones, and of the gates, each from what is left of the matrix then."""
    for move in (_left_step, _right_step, _gate_step):
        rest = wanted - now.grid()
        ease = config.delta * rest.norm() if config.preconditioned else None
        now = move(now, rest, ease, rate)
    return now


def _left_step(now: Factors, rest: Tensor, ease: Tensor | None, rate: float) -> Factors:
    left, right, gates = now
    gated = einsum("rij,jrq->ijrq", gates, right)
    ahead = einsum("ijpq,ijrq->irp", rest, gated)
    gram = einsum("ijrq,ijsq->irs", gated, gated)
    move = _eased(gram, ahead, ease)
    moved = left + rate * move.mT
    return now._replace(left=moved)


def _right_step(now: Factors, rest: Tensor, ease: Tensor | None, rate: float) -> Factors:
    left, right, gates = now
    gated = einsum("ipr,rij->ijpr", left, gates)
    ahead = einsum("ijpr,ijpq->jrq", gated, rest)
    gram = einsum("ijpr,ijps->jrs", gated, gated)
    move = _eased(gram, ahead, ease)
    moved = right + rate * move
    return now._replace(right=moved)


def _gate_step(now: Factors, rest: Tensor, ease: Tensor | None, rate: float) -> Factors:
    left, right, gates = now
    ahead = einsum("ipr,ijpq,jrq->ijr", left, rest, right)
    of_left = left.mT @ left
    of_right = right @ right.mT
    gram = of_left.unsqueeze(1) * of_right
    move = _eased(gram, ahead.unsqueeze(-1), ease)
    turned = move.squeeze(-1).permute(2, 0, 1)
    moved = gates + rate * turned
    return now._replace(gates=moved)


def _eased(gram: Tensor, half: Tensor, ease: Tensor | None) -> Tensor:
    """(G + e I)^-1 times the way down, or the way down itself, from half of it."""
    ahead = 2 * half  # the loss is the square, not half of it
    if ease is None:
        return ahead
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype)
    held = gram + ease.clamp_min(1e-12) * eye
    return torch.linalg.solve(held, ahead)


@method(
    title="BLAST: blocks with shared bases",
    paper="BLAST: Block-Level Adaptive Structured Matrices for Efficient Deep Neural Network Inference",
    year=2024,
    tags={"factorises"},
)
class Blast(Structured):
    """Blocks with shared bases; see the module's card."""

    factorises = True
    config: Config

    def __init__(self, rows: int, columns: int, config: Config, generator: torch.Generator | None = None,
                 std: float | None = None) -> None:
        super().__init__(rows, columns, config)
        blocks = config.blocks
        rank = config.rank
        if rows % blocks or columns % blocks:
            raise ValueError(f"blocks is {blocks} for a matrix of {rows} x {columns}; expected a divisor of both")
        p = rows // blocks
        q = columns // blocks
        variance = self.own_std(std) ** 2
        each = (0.75 * variance / rank) ** 0.25  # the square of a gate is 4 / 3 in the mean
        self.weight = normal_parameter((blocks, p, rank), generator, each)
        self.right = normal_parameter((blocks, rank, q), generator, each)
        gates = uniform((rank, blocks, blocks), generator)
        self.gates = nn.Parameter(2 * gates)

    @classmethod
    def from_dense(cls, weight: Tensor, config: Config, generator: torch.Generator) -> Self:
        """What the descent finds; a matrix of zeros raises `ValueError`."""
        rows, columns = weight.shape
        made = cls(rows, columns, config, generator)
        if not bool(weight.any()):
            raise ValueError("the matrix is nothing but zeros; expected one that was trained")
        found = factorise(weight, config, generator)
        with torch.no_grad():
            made.weight.copy_(found.left)
            made.right.copy_(found.right)
            made.gates.copy_(found.gates)
        return made

    def factors(self) -> Factors:
        """B, C and D."""
        return Factors(self.weight, self.right, self.gates)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[..., I] -> [..., O]."""
        rows = x.reshape(-1, self.columns)
        y = product(rows, self.factors())
        return y.view(*x.shape[:-1], self.rows)

    def dense(self) -> Tensor:
        """W [O, I]."""
        grid = self.factors().grid()
        return grid.transpose(1, 2).reshape(self.rows, self.columns)

    def flops_per_token(self) -> float:
        """2 r (O + I + b^2)."""
        sizes = [factor.numel() for factor in self.parameters()]
        return 2.0 * sum(sizes)


def example(generator: torch.Generator) -> dict[str, Any]:
    """A matrix of eight by twelve in two by two blocks of three bases."""
    return structured_example(generator, Config(rank=3, blocks=2, steps=20))
