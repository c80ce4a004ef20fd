"""Half fine-tuning: a random half of each layer's matrices is trained, the other half keeps what the model knew.

**Equation:** min L(theta) over the chosen half of theta; in each layer 2 of query, key, value and output are frozen,
    of gate, up and down 2 in a random half of the layers and 1 in the others, and half of the norms.
**Shapes:** those of the model's parameters; query, key, value, gate and up are rows of fused weights here.
**Reference:** Hui et al. 2024, HFT (2404.18466); the rule as gucci-j/ssu states it.
**Differs:** where a layer has other matrices than a decoder's usual ones (a scan's, a mixture's), half of them, odd
    counts rounded down in a random half of the layers. Every expert of a stack has the same part frozen. A matrix's
    bias goes with it. Embeddings, head and whatever else is no matrix and no norm of a layer are trained, as the rule
    leaves them out; `others: false` freezes them.
**Fails when:** the choice is drawn anew at every step: then all is trained, and nothing is kept. One choice is for one
    round of training; the next round takes another seed.
**Cost:** gradients and moments of half of the numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from mixwell.adapters._parts import example_target
from mixwell.adapters.selected import Chosen, Entries, Selection, fused, layer_of, norms_of, stacked
from mixwell.adapters.targets import EVERY, Target, find
from mixwell.core.errors import MixwellError
from mixwell.core.method import method

BIAS, WEIGHT = ".bias", ".weight"
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of half fine-tuning."""

    others: bool = True  # whether embeddings, head, and what is neither matrix nor norm of a layer are trained


@dataclass(frozen=True)
class Unit:
    """What is trained or frozen as one: a norm, a matrix, or one of those that stand in a fused weight."""

    name: str  # of the parameter
    rows: range | None = None  # of a fused weight; None for the whole of it
    group: str = ""  # layer and part of it within which one half is drawn


@method(
    title="Half fine-tuning",
    paper="HFT: Half Fine-Tuning for Large Language Models",
    year=2024,
    tags={"matrix"},
)
class HalfFineTuning(Selection):
    """Trains a random half of each layer; see the module's card."""

    @classmethod
    def choose(cls, model: nn.Module, names: Sequence[str], config: Config, generator: torch.Generator) -> Chosen:
        """The half that is trained, drawn once."""
        there = [target for target in find(model, [EVERY]) if target.name in names]
        matrices = [target for target in there if layer_of(target.name) is not None]
        if not matrices:
            raise MixwellError("half fine-tuning draws within layers, and none of the targets lies in a layer.")
        norms = [name for name in norms_of(model, names) if layer_of(name) is not None]
        units = [unit for target in matrices for unit in _units(target)]
        units += [Unit(name, group=f"norms {layer_of(name)}") for name in norms]
        trained = half_of(units, generator)
        others = _others(names, units) if config.others else []
        return _chosen(trained, matrices, names, others)


def _units(target: Target) -> Iterable[Unit]:
    """The matrices of a weight."""
    layer, mixer = target.name.split(".")[1:3]
    group = f"{mixer} {layer}"
    parts = fused(target)
    if len(parts) == 1:
        yield Unit(target.name, group=group)
        return
    for rows in parts.values():
        yield Unit(target.name, rows, group)


def half_of(units: Sequence[Unit], generator: torch.Generator) -> list[Unit]:
    """A random half of the units of each group; of an odd number the larger one in a random half of the groups."""
    groups: dict[str, list[Unit]] = {}
    for unit in units:
        groups.setdefault(unit.group, []).append(unit)
    fewer = _rounded_down(groups, generator)
    found: list[Unit] = []
    for name, group in groups.items():
        odd = len(group) % 2
        count = len(group) // 2
        if odd and name not in fewer:
            count += 1
        found += _drawn(group, count, generator)
    return found


def _rounded_down(groups: dict[str, list[Unit]], generator: torch.Generator) -> set[str]:
    """Of the groups with an odd number of units, by part of the layer, a random half."""
    by_part: dict[str, list[str]] = {}
    for name, group in groups.items():
        if len(group) % 2:
            part = name.partition(" ")[0]
            by_part.setdefault(part, []).append(name)
    found: set[str] = set()
    for odd in by_part.values():
        half = _drawn(odd, len(odd) // 2, generator)
        found.update(half)
    return found


def _drawn(there: Sequence[T], count: int, generator: torch.Generator) -> list[T]:
    """So many of them at random, in their order."""
    order = torch.randperm(len(there), generator=generator, device=generator.device)
    kept = order[:count].sort().values
    return [there[place] for place in kept.tolist()]


def _others(names: Sequence[str], units: Sequence[Unit]) -> list[str]:
    """Parameters that the rule says nothing of."""
    ruled = {unit.name for unit in units}
    biases = {_bias_of(name) for name in ruled}
    return [name for name in names if name not in ruled and name not in biases]


def _bias_of(name: str) -> str:
    """The bias that goes with a weight; one that no parameter has where the weight has none."""
    layer = name.removesuffix(WEIGHT)
    return layer + BIAS


def _chosen(trained: Sequence[Unit], matrices: Sequence[Target], names: Sequence[str],
            others: Sequence[str]) -> Chosen:
    """The units by parameter: one all of whose matrices are trained as a whole, with its bias, else rows of it."""
    targets = {target.name: target for target in matrices}
    rows: dict[str, list[int]] = {}
    whole: list[str] = []
    for unit in trained:
        if unit.rows is None:
            whole.append(unit.name)
        else:
            rows.setdefault(unit.name, []).extend(unit.rows)
    slices: dict[str, Entries] = {}
    for name, own in rows.items():
        target = targets[name]
        if len(own) == target.outputs:
            whole.append(name)
        else:
            slices[name] = Entries("rows", stacked(target, torch.tensor(own)))
    biases = [_bias_of(name) for name in whole if _bias_of(name) in names]
    kept = {*whole, *biases, *others}
    return Chosen(tuple(name for name in names if name in kept), slices)


def example(generator: torch.Generator) -> dict[str, Any]:
    """The usual choice."""
    return {"target": example_target(generator), "config": Config()}
