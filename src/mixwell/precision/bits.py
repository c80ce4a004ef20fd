"""What methods share that give each matrix bits of its own: the budget, what each width harms, and the codes.

A stack's experts are matrices of their own. A method says what harm each width does to each of them
(`Sensitivities`), and `allotted` finds the widths that do least within the budget and rounds by them.

Legend: U matrices, B widths, O rows, I width of a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mixwell.core.checkpoint import Checkpoint
from mixwell.core.errors import MixwellError
from mixwell.formats.tensors import size_bytes
from mixwell.mixing import check_above, check_least
from mixwell.mixing.calibration import Inputs
from mixwell.precision._allocation import allocate, check_budget
from mixwell.precision._parts import (
    Coded,
    chosen,
    group_width,
    joined,
    matrices,
    named,
    nearest,
    rounded,
    with_codes,
)
from mixwell.precision._statistics import calibrated

Place = tuple[str, int | None]  # a weight's name, and the expert where it is a stack
BYTE = 8


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Options of methods that give each matrix bits of its own."""

    bits_per_weight: float = 4.0  # mean bits of codes, scales apart
    max_bytes: int = 0  # of all tensors of the result, scales and whole ones among them; 0: bits_per_weight decides
    widths: tuple[int, ...] = (2, 3, 4, 8)  # to choose from, each 2 to 8
    group_size: int = 64  # numbers of a row that share a scale; 0: the whole row
    tokens: int = 4096  # of calibration text
    max_kl_nats: float = 1.0  # promised: mean KL per token of the logits before and after, above 0

    def __post_init__(self) -> None:
        check_least(self, tokens=1, group_size=0, max_bytes=0)
        check_above(self, max_kl_nats=0)
        if not self.widths or not all(2 <= width <= BYTE for width in self.widths):
            raise ValueError(f"widths is {self.widths}; expected some of 2 to {BYTE}")
        if self.bits_per_weight < min(self.widths):
            raise ValueError(f"bits_per_weight is {self.bits_per_weight}; expected at least {min(self.widths)}, the "
                             "smallest of widths")


@dataclass(frozen=True, eq=False, kw_only=True)
class Sensitivities:
    """What each width does to each matrix of a model."""

    places: Sequence[Place]
    harm_UB: Tensor  # float64, by the widths of the budget, in their order; sums over matrices are compared
    record: Mapping[str, Any] = field(default_factory=dict)  # of the calibration, for the lineage


def places_of(checkpoint: Checkpoint, config: Budget) -> list[Place]:
    """The matrices to quantise.

    Raises `MixwellError` where one cannot be, or the budget holds not even the smallest widths: before anything is
    paid for.
    """
    found: list[Place] = []
    for name in chosen(checkpoint, False):
        weight = checkpoint.tensors[name]
        named(name, group_width, weight, config.group_size)
        found += [(name, expert) for expert, _ in matrices(weight)]
    size_UB = sizes(checkpoint, found, config.widths)
    budget = room(checkpoint, found, config)
    named(limiting(config), check_budget, size_UB, budget)
    return found


def names_of(places: Sequence[Place]) -> list[str]:
    """The weights that the matrices are of, each once."""
    once = dict.fromkeys(name for name, _ in places)
    return list(once)


def part(tensors: Mapping[str, Tensor], place: Place) -> Tensor:
    """The matrix [O, I] at a place."""
    name, expert = place
    return tensors[name] if expert is None else tensors[name][expert]


def of_inputs(facts: Mapping[str, Tensor], place: Place, ndim: int) -> Tensor:
    """What is known of a matrix's inputs, in `ndim` dimensions: a stack's experts share it, or have their own."""
    name, expert = place
    own = facts[name]
    return own if own.ndim == ndim else own[expert]


def at_width(weight: Tensor, width: int, config: Budget) -> Tensor:
    """A matrix rounded to so many bits, float64."""
    return rounded(weight, width, config.group_size, True)


def at_widths(checkpoint: Checkpoint, places: Sequence[Place], widths: Sequence[int],
              config: Budget) -> dict[str, Tensor]:
    """Every weight with each of its matrices rounded to its width [U], float64."""
    each = []
    for place, width in zip(places, widths):
        weight = part(checkpoint.tensors, place)
        each.append(at_width(weight, width, config))
    found = {}
    for name, own in by_weight(places, each).items():
        whole = torch.stack(own)
        found[name] = whole.view_as(checkpoint.tensors[name])
    return found


def sensitivities(checkpoint: Checkpoint, places: Sequence[Place], harm_UB: Tensor,
                  calibration: Inputs) -> Sensitivities:
    """Harms with the record of the calibration that they come from."""
    record = calibrated(checkpoint, calibration)
    return Sensitivities(places=places, harm_UB=harm_UB, record=record)


def sizes(checkpoint: Checkpoint, places: Sequence[Place], widths: Sequence[int]) -> Tensor:
    """Bits of the codes [U, B] of each matrix at each width, float64."""
    counts = []
    for place in places:
        weight = part(checkpoint.tensors, place)
        counts.append(weight.numel())
    counts_U = torch.tensor(counts, dtype=torch.float64)
    widths_B = torch.tensor(widths, dtype=torch.float64)
    return counts_U[:, None] * widths_B


def room(checkpoint: Checkpoint, places: Sequence[Place], config: Budget) -> float:
    """Bits that the codes may take in all. Raises `MixwellError` where `max_bytes` holds not even what is beside."""
    if not config.max_bytes:
        ones_U1 = sizes(checkpoint, places, (1,))
        return config.bits_per_weight * float(ones_U1.sum())
    beside = _bytes_beside(checkpoint, places, config)
    if beside >= config.max_bytes:
        raise MixwellError(f"max_bytes is {config.max_bytes}; scales and what stays whole take {beside} bytes alone.")
    return float(config.max_bytes - beside) * BYTE


def _bytes_beside(checkpoint: Checkpoint, places: Sequence[Place], config: Budget) -> int:
    """Bytes of the result that are no codes: its scales, the bits of its rows, and the tensors that stay whole."""
    names = names_of(places)
    whole = {name: value for name, value in checkpoint.tensors.items() if name not in names}
    total = size_bytes(whole)
    for place in places:
        weight = part(checkpoint.tensors, place)
        groups = weight.shape[-1] // group_width(weight, config.group_size)
        of_a_row = groups * torch.bfloat16.itemsize + 1
        total += weight.shape[0] * of_a_row
    return total


def best_widths(checkpoint: Checkpoint, found: Sensitivities, config: Budget) -> list[int]:
    """The width of each matrix [U], of least harm within the budget."""
    places, widths = found.places, config.widths
    size_UB = sizes(checkpoint, places, widths)
    budget = room(checkpoint, places, config)
    where = limiting(config)
    choice = named(where, allocate, found.harm_UB, size_UB, budget)
    return [widths[place] for place in choice]


def limiting(config: Budget) -> str:
    """The option that says how large the result may be."""
    return "max_bytes" if config.max_bytes else "bits_per_weight"


def allotted(checkpoint: Checkpoint, found: Sensitivities, config: Budget) -> Checkpoint:
    """The checkpoint with the bits of least harm within the budget."""
    widths = best_widths(checkpoint, found, config)
    return in_widths(checkpoint, found, widths, config)


def in_widths(checkpoint: Checkpoint, found: Sensitivities, widths: Sequence[int], config: Budget) -> Checkpoint:
    """The checkpoint with each matrix rounded to its width [U], which the lineage records by weight."""
    by_name = by_weight(found.places, widths)
    made = {}
    for name, own in by_name.items():
        weight = checkpoint.tensors[name]
        made[name] = _encoded(weight, own, config)
    record = {**found.record, "bits": by_name}
    return with_codes(checkpoint, made, record=record)


def by_weight(places: Sequence[Place], values: Sequence[Any]) -> dict[str, list[Any]]:
    """What belongs to matrices [U], by weight: one of a plain one, E of a stack."""
    found: dict[str, list[Any]] = {}
    for (name, _), value in zip(places, values):
        own = found.setdefault(name, [])
        own.append(value)
    return found


def _encoded(weight: Tensor, widths: Sequence[int], config: Budget) -> Coded:
    """A matrix, or a stack with the bits of each expert."""
    each = zip(matrices(weight), widths)
    parts = [nearest(own, width, config.group_size, True) for (_, own), width in each]
    return joined(weight, parts)
