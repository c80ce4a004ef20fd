"""Parameterised hypercomplex products (PHM, PHC): a matrix as a sum of Kronecker products with a learned algebra.

**Equation:** W = sum_{i=1..n} A_i kron F_i, over the channels; a convolution's kernel axes stay with F.  Hamilton: n
    = 4, A_1 = I and A_2 to A_4 the signed permutations by which quaternions multiply from the left.  n = 1: dense.
**Shapes:** x [..., I]; A (algebra) [n, n, n]; F (weight) [n, O / n, I / n], with `kernel` k [n, O / n, C / n, k, k], I
    = C k^2 in the order of `torch.nn.functional.unfold`.
**Reference:** Grassucci et al. 2021, PHNNs (2110.04176), eq. 4-8, and its code.
**Differs:** A starts normal with variance 1 / n and F as the dense matrix would, so that W's entries start as its do;
    the code's fans of the small tensors start W a twentieth of that. No bias. `from_dense`, the nearest sum by the
    decomposition of the matrix laid out anew (Van Loan and Pitsianis 1993), is not of the paper.
**Fails when:** n is near the width: n^3 numbers of A are then many.
**Cost:** n^3 + O I / n numbers, no fewer products: 2 O I FLOPs a row, and n O I once a pass to make W.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixwell.core.method import method
from mixwell.core.routing import Context
from mixwell.kernels.linear import linear
from mixwell.mixing import Structured, check_least, normal_parameter
from mixwell.precision.structured._parts import in_blocks, structured_example

HAMILTON = 4  # its dimensions
# sign and number of the part in each place of the matrix that w + x i + y j + z k multiplies by
SIGNED = (1, -2, -3, -4), (2, 1, -4, 3), (3, 4, 1, -2), (4, -3, 2, 1)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the sum of Kronecker products."""

    terms: int = 4  # n, a divisor of O and of the input channels
    algebra: Literal["learned", "hamilton"] = "learned"  # A: trained, or the quaternions' (terms 4)
    kernel: int = 0  # k, side of a convolution's kernel; 0: no convolution

    def __post_init__(self) -> None:
        check_least(self, terms=1, kernel=0)
        if self.algebra == "hamilton" and self.terms != HAMILTON:
            raise ValueError(f"terms is {self.terms} with the quaternions' algebra; expected {HAMILTON}")


def hamilton() -> Tensor:
    """The matrices by which 1, i, j and k multiply a quaternion from the left [4, 4, 4]."""
    found = torch.zeros(HAMILTON, HAMILTON, HAMILTON)
    for row, parts in enumerate(SIGNED):
        for column, part in enumerate(parts):
            which = abs(part) - 1
            found[which, row, column] = math.copysign(1, part)
    return found


def kronecker_sum(algebra: Tensor, parts: Tensor) -> Tensor:
    """sum_i A_i kron F_i: [n, n, n] and [n, o, c, ...] -> [n o, n c, ...]."""
    blocks = torch.einsum("ipq,ioc...->poqc...", algebra, parts)
    rows = blocks.flatten(2, 3)
    return rows.flatten(0, 1)


def nearest(weight: Tensor, terms: int) -> tuple[Tensor, Tensor]:
    """(A, F) of the nearest sum of n products to a matrix [n o, n c]: the leading parts of its blocks side by side."""
    grid = in_blocks(weight, terms)
    shape = grid.shape[2:]
    blocks = grid.flatten(2).flatten(0, 1)
    U, S, Vh = torch.linalg.svd(blocks, full_matrices=False)
    algebra = U[:, :terms].T
    parts = S[:terms, None] * Vh[:terms]
    missing = terms - len(parts)  # of a matrix with fewer entries a block than terms
    algebra = F.pad(algebra, (0, 0, 0, missing))
    parts = F.pad(parts, (0, 0, 0, missing))
    return algebra.reshape(terms, terms, terms), parts.view(terms, *shape)


def fitted(weight: Tensor, algebra: Tensor) -> Tensor:
    """F of the nearest sum with the quaternions' algebra, whose matrices are orthogonal to each other."""
    grid = in_blocks(weight, HAMILTON)
    along = torch.einsum("ipq,pqoc->ioc", algebra, grid)
    return along / HAMILTON


@method(
    title="Sum of Kronecker products (PHM, PHC)",
    paper="PHNNs: Lightweight Neural Networks via Parameterized Hypercomplex Convolutions",
    year=2021,
    tags={"factorises"},
)
class KroneckerSum(Structured):
    """A sum of Kronecker products; see the module's card."""

    factorises = True
    config: Config

    def __init__(self, rows: int, columns: int, config: Config, generator: torch.Generator | None = None,
                 std: float | None = None) -> None:
        super().__init__(rows, columns, config)
        n = config.terms
        kernel = [config.kernel] * (2 if config.kernel else 0)
        area = math.prod(kernel)
        if columns % (n * area) or rows % n:
            raise ValueError(f"terms is {n} for {rows} outputs of {columns} inputs with a kernel of {area}; expected a "
                             "divisor of the outputs and of the input channels")
        channels = columns // area
        if config.algebra == "hamilton":
            self.register_buffer("algebra", hamilton())
        elif n == 1:
            self.algebra = nn.Parameter(torch.ones(1, 1, 1))
        else:
            self.algebra = normal_parameter((n, n, n), generator, n**-0.5)
        entry = self.own_std(std)
        self.weight = normal_parameter((n, rows // n, channels // n, *kernel), generator, entry)

    @classmethod
    def from_dense(cls, weight: Tensor, config: Config, generator: torch.Generator) -> Self:
        """The nearest sum of so many products; a convolution's kernel raises `ValueError`."""
        if config.kernel:
            raise ValueError(f"kernel is {config.kernel}; a kernel is factorised by no rule here, only a matrix is")
        rows, columns = weight.shape
        made = cls(rows, columns, config, generator)
        wide = weight.double()
        with torch.no_grad():
            if config.algebra == "hamilton":
                made.weight.copy_(fitted(wide, made.algebra.double()))
                return made
            algebra, parts = nearest(wide, config.terms)
            made.algebra.copy_(algebra)
            made.weight.copy_(parts)
        return made

    def kernel(self) -> Tensor:
        """W with a convolution's axes apart: [O, C, k, k], or [O, I]."""
        return kronecker_sum(self.algebra, self.weight)

    def dense(self) -> Tensor:
        """W [O, I]."""
        return self.kernel().flatten(1)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[..., I] -> [..., O]; of a convolution, patch by patch."""
        return linear(x, self.dense())

    def convolve(self, images: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
        """[B, C, H, W] -> [B, O, H', W'] by the kernel."""
        assert self.config.kernel, "no kernel was asked for"
        return F.conv2d(images, self.kernel(), stride=stride, padding=padding)

    def flops_per_token(self) -> float:
        """2 O I."""
        return 2.0 * self.rows * self.columns


def example(generator: torch.Generator) -> dict[str, Any]:
    """A matrix of eight by twelve as a sum of two products."""
    return structured_example(generator, Config(terms=2))
