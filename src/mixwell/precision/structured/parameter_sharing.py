"""Random parameter sharing (STABLE-RPS): every matrix of a layer reads its entries from one short array.

**Equation:** W_t = lambda s_t z[slot(t)], t the place of an entry among all n of the layer's matrices, z of m =
    ceil(ratio n) numbers, s_t = +-1 fixed, slot(t) = (h(t div m) + t mod m) mod m: every chunk of m places takes each
    number once. h(c) = ((c r_0 + c^2 r_1 + r_2) mod P) mod m. The gradient of z_j is divided by (sum of its uses'
    lambda)^2 / uses, so that W moves by the mean of its uses' gradients, whatever z's scale is.
**Shapes:** x [..., I]; z (array) [m], of the first matrix of a layer; lambda (weight) [1] of each, without gradient.
**Reference:** Desai and Shrivastava 2023 (2310.11611), and the first author's code (mapper pareto, scaler v1).
**Differs:** the array is of one layer's matrices, experts among them, and not of the whole model. lambda makes up for
    the root of 3 between a uniform's bound and its deviation, so that W starts with the std of the dense matrix. Signs
    are hashed, too, instead of stored.
**Fails when:** under Adam the division has no effect, a uniform rate of z stands instead; take plain descent.
**Cost:** n products of a dense matrix, 2 O I FLOPs a row, and n gathers a pass; m numbers are stored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from mixwell.core.method import method
from mixwell.core.routing import Context
from mixwell.kernels.linear import linear
from mixwell.mixing import Structured, check_above, check_most
from mixwell.precision.structured._parts import structured_example, uniform

PRIME = 2**31 - 1  # P


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of random parameter sharing."""

    ratio: float = 0.1  # m / n, above 0, at most 1
    bound: float = 0.05  # s_0: z starts uniform in -s_0 to s_0; above 0
    scaled: bool = True  # divide the gradient by what the uses add up to

    def __post_init__(self) -> None:
        check_above(self, ratio=0, bound=0)
        check_most(self, ratio=1)


def slots(start: int, count: int, size: int, hashed: Tensor) -> Tensor:
    """The number of the array [count] that the places from `start` on read, int64; hashed: r_0, r_1, r_2 and more."""
    end = start + count
    places = torch.arange(start, end, device=hashed.device)
    first, second, shift = hashed[:3]
    chunk = places // size
    square = chunk * chunk % PRIME
    linear_part = chunk * first + shift
    mixed = (linear_part + square * second) % PRIME
    return (mixed + places) % size


def signs(start: int, count: int, hashed: Tensor) -> Tensor:
    """+-1 of the places from `start` on, float32 [count]: the parity of two rounds of a hash."""
    end = start + count
    places = torch.arange(start, end, device=hashed.device)
    first, second = hashed[3:]
    mixed = (places * first + second) % PRIME
    again = (mixed * second + first) % PRIME
    high = again >> 7
    odd = high % 2
    return 1.0 - 2.0 * odd


class _Divided(torch.autograd.Function):
    """The array itself; its gradient is divided."""

    @staticmethod
    def forward(ctx, array: Tensor, divisor: Tensor) -> Tensor:
        ctx.divisor = divisor
        return array.view_as(array)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad / ctx.divisor.to(grad.dtype), None


@method(
    title="Random parameter sharing (STABLE-RPS)",
    paper="In defense of parameter sharing for model-compression",
    year=2023,
)
class ParameterSharing(Structured):
    """A matrix whose entries are read from a shared array; see the module's card."""

    fixed: ClassVar[tuple[str, ...]] = ("weight",)  # takes no gradient
    config: Config
    hashed: Tensor

    def __init__(self, rows: int, columns: int, config: Config, generator: torch.Generator | None = None,
                 std: float | None = None, group: _Group | None = None) -> None:
        super().__init__(rows, columns, config)
        self.group = group or _Group()
        size = rows * columns
        self.start = self.group.join(self, size)
        scale = self.own_std(std) * 3**0.5 / config.bound
        self.weight = nn.Parameter(torch.full((1,), scale))
        self._known: list[int] = []  # the hash that `_places` were made with
        self._places = self.weight.new_empty(0), self.weight.new_empty(0)
        if group is None:
            self.group.open(config, generator)

    @classmethod
    def build(cls, shapes: Sequence[tuple[int, int]], config: Config, generator: torch.Generator | None,
              std: float | None) -> list[Self]:
        """The matrices of one layer, which read one array."""
        group = _Group()
        made = [cls(rows, columns, config, generator, std, group) for rows, columns in shapes]
        group.open(config, generator)
        return made

    def dense(self) -> Tensor:
        """W [O, I]."""
        array = self.group.read(self.config.scaled)
        slots_N, signs_N = self._where()
        scale = self.weight.detach()
        entries = array[slots_N] * signs_N.to(array.dtype)
        whole = scale * entries
        return whole.view(self.rows, self.columns)

    def _where(self) -> tuple[Tensor, Tensor]:
        """Slots and signs of its entries, made once for a hash and a device."""
        owner = self.group.owner
        hashed = owner.hashed
        keys = hashed.tolist()
        known = keys == self._known and self._places[0].device == hashed.device
        if not known:
            count = self.rows * self.columns
            slots_N = slots(self.start, count, len(owner.array), hashed)
            self._places = slots_N, signs(self.start, count, hashed)
            self._known = keys
        return self._places

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[..., I] -> [..., O]."""
        return linear(x, self.dense())

    def flops_per_token(self) -> float:
        """2 O I."""
        return 2.0 * self.rows * self.columns


class _Group:
    """The matrices of one layer; the first holds the array. No module, so that the array has one name."""

    def __init__(self) -> None:
        self.members: list[Any] = []
        self.size = 0
        self._known: tuple[Any, ...] = ()  # the hash, device and lambdas that `_divided` was made with
        self._divided = torch.empty(0)

    @property
    def owner(self) -> Any:
        """The matrix that holds the array."""
        return self.members[0]

    def join(self, member: ParameterSharing, size: int) -> int:
        """Take a matrix in; the place of its first entry among all."""
        start = self.size
        self.members.append(member)
        self.size += size
        return start

    def open(self, config: Config, generator: torch.Generator | None) -> None:
        """Draw the array and the hash."""
        length = math.ceil(config.ratio * self.size)
        owner = self.owner
        draws = uniform((length,), generator)
        start = config.bound * (2 * draws - 1)
        owner.array = nn.Parameter(start)
        keys = uniform((5,), generator)
        wide = (PRIME - 1) * keys.double()
        owner.register_buffer("hashed", 1 + wide.long())

    def read(self, scaled: bool) -> Tensor:
        """The array, its gradient divided where that is asked for."""
        array: Tensor = self.owner.array
        if not scaled or not torch.is_grad_enabled():
            return array
        return _Divided.apply(array, self._divisor())

    @torch.no_grad()
    def _divisor(self) -> Tensor:
        """(sum of the uses' lambda)^2 / uses of each number; made once for a hash, lambdas and a device."""
        hashed = self.owner.hashed
        scales = torch.cat([member.weight for member in self.members])
        known = hashed.tolist(), scales.tolist(), hashed.device
        if known != self._known:
            self._known, self._divided = known, self._summed()
        return self._divided

    def _summed(self) -> Tensor:
        array = self.owner.array
        total = torch.zeros_like(array, dtype=torch.float32)
        uses = torch.zeros_like(total)
        for member in self.members:
            slots_N, _ = member._where()
            scale = member.weight.float().expand(len(slots_N))
            total.index_add_(0, slots_N, scale)
            uses.index_add_(0, slots_N, torch.ones_like(scale))
        return total.square() / (uses + 1e-3) + 1e-6


def example(generator: torch.Generator) -> dict[str, Any]:
    """A matrix of eight by twelve that reads 24 numbers."""
    return structured_example(generator, Config(ratio=0.25))
