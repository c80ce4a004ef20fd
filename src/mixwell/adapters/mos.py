"""MoS: low-rank factors put together from shards of pools that all layers share.

**Equation:** y = W x + (alpha / R) B A x; row j of A is the shards of places j l .. j l + l - 1 in the layer's list,
    end to end, and column j of B likewise from a pool and a list of its own. A list: (R - p) l public shards, drawn
    once without replacement, then the layer's own p l.
**Shapes:** W [O, I]; pools [e L l, I / l] and [e L l, O / l] of the L matrices of one kind; lists [L, R l].
**Reference:** Wang et al. 2024, MoS (2410.00938); Forence1999/MoS.
**Differs:** every expert of a stack counts as a layer of its own. The lists are chosen at random and kept, as in the
    release: there is no router that is trained.
**Fails when:** R is near e: little is then shared, and e = R is plain LoRA. Shards that many layers share gather all
    their gradients, so the rate is another than LoRA's.
**Cost:** 2 R (I + O) a token; e (I + O) numbers a matrix are trained, as LoRA of rank e has.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Self

import torch
from torch import Tensor, nn

from mixwell.adapters._parts import WeightAdapter, check_rank, product, uniform
from mixwell.adapters.targets import Target
from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.mixing import check_above, check_least, check_not_negative, normal_parameter

NUMBER = re.compile(r"\.\d+\.")  # of a layer, in a name


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of MoS."""

    rank: int = 8  # R, of each matrix
    budget: int = 2  # e, the rank of a LoRA with as many numbers
    shards: int = 4  # l, of each row of A and column of B; divides both widths
    private: int = 1  # p, ranks of a layer that no other shares
    alpha: float = 16.0  # the change counts alpha / R times

    def __post_init__(self) -> None:
        check_least(self, rank=1, budget=1, shards=1)
        check_not_negative(self, "private")
        check_above(self, alpha=0)
        if not self.private <= self.budget <= self.rank:
            raise ValueError(f"private, budget and rank are {self.private}, {self.budget} and {self.rank}; expected "
                             "each to be at most the next")


def lists(layers: int, config: Config, generator: torch.Generator) -> Tensor:
    """The places [L, R l] of each layer's shards in a pool, public ones drawn, then its own."""
    own = config.private * config.shards
    public = (config.budget - config.private) * layers * config.shards
    wanted = (config.rank - config.private) * config.shards
    found = []
    for layer in range(layers):
        order = torch.randperm(public, generator=generator, device=generator.device)
        first = public + layer * own
        mine = torch.arange(first, first + own, device=generator.device)
        found.append(torch.cat((order[:wanted], mine)))
    return torch.stack(found)


def put_together(pool: Tensor, places: Tensor, rank: int) -> Tensor:
    """Rows [..., R, width] of the shards at places [..., R l]."""
    shards = pool[places]
    return shards.reshape(*places.shape[:-1], rank, -1)


@method(
    title="MoS, a mixture of shards",
    paper="MoS: Unleashing Parameter Efficiency of Low-Rank Adaptation with Mixture of Shards",
    year=2024,
    tags={"matrix", "experts"},
)
class MoS(WeightAdapter):
    """A low-rank change made of shared shards; see the module's card."""

    parts = ("A", "B")
    targets = ("all-linear",)
    config: Config

    @classmethod
    def build(cls, targets: Sequence[Target], config: Config, generator: torch.Generator) -> Sequence[Self]:
        """Adapters that share a pair of pools with all others of their kind."""
        kinds: dict[tuple[Any, ...], list[Target]] = {}
        for target in targets:
            name = NUMBER.sub(".*.", target.name, count=1)
            kinds.setdefault((name, target.shape), []).append(target)
        made: dict[str, Self] = {}
        for alike in kinds.values():
            for target, adapter in zip(alike, cls._alike(alike, config, generator)):
                made[target.name] = adapter
        return [made[target.name] for target in targets]

    @classmethod
    def _alike(cls, targets: Sequence[Target], config: Config, generator: torch.Generator) -> list[Self]:
        """Adapters of matrices of one kind."""
        first = targets[0]
        layers = sum(prod(target.stack) for target in targets)
        _check_kind(first, layers, config)
        count = config.budget * layers * config.shards
        width = first.inputs // config.shards
        A = uniform((count, width), first.inputs**-0.5, generator)
        pools = nn.Parameter(A), nn.Parameter(A.new_zeros(count, first.outputs // config.shards))
        places = lists(layers, config, generator), lists(layers, config, generator)
        found = []
        start = 0
        for target in targets:
            end = start + prod(target.stack)
            own = [listed[start:end].view(*target.stack, -1) for listed in places]
            found.append(cls(target, config, pools, own))
            start = end
        return found

    def __init__(self, target: Target, config: Config, pools: tuple[nn.Parameter, nn.Parameter],
                 places: Sequence[Tensor]) -> None:
        super().__init__(target, config)
        self.pool_A, self.pool_B = pools
        self.places_A: Tensor
        self.places_B: Tensor
        self.register_buffer("places_A", places[0].clone())
        self.register_buffer("places_B", places[1].clone())
        self.scale = config.alpha / config.rank

    @property
    def A(self) -> Tensor:
        """[..., R, I]."""
        return put_together(self.pool_A, self.places_A, self.config.rank)

    @property
    def B(self) -> Tensor:
        """[..., O, R]."""
        return put_together(self.pool_B, self.places_B, self.config.rank).mT

    def after(self, x: Tensor, y: Tensor, weight: Any, A: Tensor, B: Tensor) -> Tensor:
        """W x + (alpha / R) B A x."""
        change = product(x, A, B)
        return y + self.scale * change

    def delta(self, weight: Tensor, A: Tensor, B: Tensor) -> Tensor:
        """(alpha / R) B A."""
        change = B @ A
        return self.scale * change


def _check_kind(target: Target, layers: int, config: Config) -> None:
    """Raise `MixwellError` for matrices that the options cannot serve."""
    check_rank(config.rank, target)
    shards = config.shards
    if target.inputs % shards or target.outputs % shards:
        raise MixwellError(f"shards is {shards} at {target.name}, a matrix of {target.outputs} x {target.inputs}; "
                           "choose a divisor of both.")
    public = (config.budget - config.private) * layers
    wanted = config.rank - config.private
    if public < wanted:
        raise MixwellError(f"{target.name}: {layers} matrices of its kind share {public} public ranks, and rank "
                           f"{config.rank} draws {wanted}; raise budget, or lower rank or private.")


def example(generator: torch.Generator) -> dict[str, Any]:
    """A stack of four matrices of eight inputs and four outputs, rank three for the numbers of rank two."""
    owner = nn.Module()
    owner.register_parameter("weight", normal_parameter((4, 4, 8), generator))
    return {"target": Target("weight", owner, "weight"), "config": Config(rank=3, budget=2, shards=2)}
