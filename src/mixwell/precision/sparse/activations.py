"""Activations of sparse networks: which one each layer of a pruned network takes, found by a local search.

**Equation:** late-acceptance hill climbing over one operator a layer: a move redraws one place and swaps two; it is
    accepted where its energy is no worse than now or than `history` moves ago. Energy: what the caller measures of the
    pruned network trained with these operators, on rows held back from learning. Then f -> alpha f(beta x) with alpha
    and beta of each layer learnt, 1 at the start, in a training whose rates are its own.
**Shapes:** operators act on each number; alpha and beta are one number a layer.
**Reference:** Loni et al. 2023 (2305.10964), section 4, and the authors' code.
**Differs:** the second search, over optimisers and rates, is the caller's (any of scaling.search). ReLU may be among
    the operators, where theirs leaves it out. The best state met is returned, not the last.
**Fails when:** the energy is read off rows that judge the result, or so few weights are left that nothing is learnt.
**Cost:** `evaluations` trainings of the sparse network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.mixing import check_least

Energy = Callable[[Sequence[str]], float]  # of an operator a layer; the lower the better
TANH_SOFT = 0.87  # of TanhSoft-1, tanh(a x) softplus(x)
SWITCH = 1.702  # of ACON-C with p1 = 1, p2 = 0
SRS_SCALE, SRS_SHAPE = 5.0, 3.0  # of soft-root-sign


def symlog(x: Tensor) -> Tensor:
    """sign(x) log(1 + |x|)."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """sign(x) (exp |x| - 1), |x| at most 10 so that it stays finite."""
    size = x.abs().clamp_max(10.0)
    return x.sign() * size.expm1()


def tanh_soft(x: Tensor) -> Tensor:
    """tanh(a x) softplus(x)."""
    return torch.tanh(TANH_SOFT * x) * F.softplus(x)


def acon(x: Tensor) -> Tensor:
    """x sigmoid(b x)."""
    return x * torch.sigmoid(SWITCH * x)


def srs(x: Tensor) -> Tensor:
    """x / (x / a + exp(-x / b)); below -60, where it is next to nothing, as there."""
    y = x.clamp_min(-60.0)
    below = torch.exp(-y / SRS_SHAPE)
    return y / (y / SRS_SCALE + below)


OPERATORS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu, "relu6": F.relu6, "hardswish": F.hardswish, "swish": F.silu, "tanh_soft": tanh_soft, "acon": acon,
    "gelu": F.gelu, "srs": srs, "elu": F.elu, "tanh": torch.tanh, "softplus": F.softplus, "logsigmoid": F.logsigmoid,
    "symlog": symlog, "symexp": symexp}
PUBLISHED = tuple(name for name in OPERATORS if name != "relu")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the search."""

    layers: int  # places to choose for, at least 1
    operators: tuple[str, ...] = PUBLISHED  # to choose from
    history: int = 3  # moves ago that a move may be as bad as, at least 1
    evaluations: int = 20  # of the energy, at least 1

    def __post_init__(self) -> None:
        check_least(self, layers=1, history=1, evaluations=1)
        unknown = [name for name in self.operators if name not in OPERATORS]
        if unknown or not self.operators:
            raise ValueError(f"operators names {unknown or 'none'}; expected some of {', '.join(OPERATORS)}")


class Found(NamedTuple):
    """What the search ends with."""

    operators: tuple[str, ...]  # of each layer
    energy: float
    history: tuple[float, ...]  # the energy of every state tried


class Scaled(nn.Module):
    """alpha f(beta x), alpha and beta learnt where asked for."""

    def __init__(self, operator: str, learnt: bool = False) -> None:
        super().__init__()
        self.operator = operator
        one, other = torch.ones(2)
        self.alpha = nn.Parameter(one.clone(), requires_grad=learnt)
        self.beta = nn.Parameter(other.clone(), requires_grad=learnt)

    def forward(self, x: Tensor) -> Tensor:
        """Each number by itself."""
        f = OPERATORS[self.operator]
        return self.alpha * f(self.beta * x)


def replace(model: nn.Module, operators: Sequence[str], learnt: bool = False) -> None:
    """Put operators in the places of a model's `nn.ReLU` and `Scaled` modules, in their order.

    Raises `MixwellError` where there are more or fewer of them.
    """
    kinds = (nn.ReLU, Scaled)
    places = [name for name, module in model.named_modules() if isinstance(module, kinds)]
    if len(places) != len(operators):
        raise MixwellError(f"{len(operators)} operators came for a model with {len(places)} activations (nn.ReLU).")
    for name, operator in zip(places, operators):
        model.set_submodule(name, Scaled(operator, learnt))


def moved(state: Sequence[str], config: Config, generator: torch.Generator) -> list[str]:
    """A neighbour: one place drawn anew, then two swapped."""
    found = list(state)
    place = _below(len(found), generator)
    found[place] = _drawn(config, generator)
    one = _below(len(found), generator)
    other = _below(len(found), generator)
    kept = found[one]
    found[one] = found[other]
    found[other] = kept
    return found


def _drawn(config: Config, generator: torch.Generator) -> str:
    place = _below(len(config.operators), generator)
    return config.operators[place]


def _below(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))


@method(title="Activation functions of sparse networks by late acceptance",
        paper="Learning Activation Functions for Sparse Neural Networks", year=2023, tags={"search"})
def activations(energy: Energy, config: Config, generator: torch.Generator) -> Found:
    """The operators of least energy that the search meets, from a random start."""
    state = [_drawn(config, generator) for _ in range(config.layers)]
    now = energy(state)
    best, least = tuple(state), now
    late = [now] * config.history
    told = [now]
    for number in range(1, config.evaluations):
        trial = moved(state, config, generator)
        found = energy(trial)
        told.append(found)
        before = late[number % config.history]
        if found <= max(now, before):
            state, now = trial, found
        if now < least:
            best, least = tuple(state), now
        late[number % config.history] = now
    return Found(best, least, tuple(told))


def example(generator: torch.Generator) -> dict[str, Any]:
    """Three layers whose best operators are known."""
    wanted = ("gelu", "tanh", "swish")

    def energy(operators: Sequence[str]) -> float:
        pairs = zip(operators, wanted)
        return float(sum(one != other for one, other in pairs))

    return {"energy": energy, "config": Config(layers=3, operators=("gelu", "tanh", "swish")), "generator": generator}
