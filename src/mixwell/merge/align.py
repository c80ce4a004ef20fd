"""Permutation alignment: a second model's hidden units in the order of the first one's, then the mean of both.

**Equation:** permutations P of units that maximise sum over weights <A, P B P'^T>, by turns: for one P at a time, the
    linear assignment on M = sum over tensors that have these units of A_flat B_flat^T, B under all other permutations;
    until no turn raises the sum. w = (1 - t) A + t P(B).
**Shapes:** a unit may be a row of one tensor and a column of another; the residual stream is one set of units in every
    tensor that reads or writes it.
**Reference:** Ainsworth, Hayase and Srinivasa 2022 (2209.04836), algorithm 1 (weights) and section 3.1 (activations).
**Differs:** attention heads stay in their places, for rotary positions tie the units inside. Experts are matched by
    `merge.match_experts`. Units of gated blocks are not rescaled first.
**Fails when:** networks are narrow or little trained: no permutation brings their minima together.
**Cost:** O(n^3) a set of n units and turn, O(n) products of the model's size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixwell.core.checkpoint import Checkpoint
from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.merge._assignment import best_assignment, mean_of
from mixwell.merge._parts import MANY

MODELS = range(2, MANY)
GAIN = 1e-12  # by which a turn must raise the sum
RESIDUAL = "residual"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of alignment."""

    t: float = 0.5  # share of the aligned models in the result; 1 gives the last one, aligned
    residual: bool = True  # permute the residual stream, too; models of one ancestor share it
    sweeps: int = 20  # turns over all sets of units, at most

    def __post_init__(self) -> None:
        within = 0 <= self.t <= 1
        if self.sweeps < 1 or not within:
            raise ValueError(f"sweeps is {self.sweeps}, t {self.t}; expected 1 or more, and 0 to 1")


class Axes(NamedTuple):
    """Which set of units each axis of a tensor counts; None where it counts none that is permuted."""

    view: tuple[int, ...]  # the tensor's shape, an axis of two kinds of units split
    units: tuple[str | None, ...]


Spec = Mapping[str, Axes]  # of every tensor with units


def permuted(tensor: Tensor, axes: Axes, orders: Mapping[str, Tensor], without: str = "") -> Tensor:
    """The tensor with its units in these orders, those of `without` as they are."""
    found = tensor.reshape(axes.view)
    moved = set(orders) - {without}
    for axis, units in enumerate(axes.units):
        if units in moved:
            order = orders[units]
            found = found.index_select(axis, order)
    return found.reshape(tensor.shape)


def likeness(units: str, spec: Spec, first: Mapping[str, Tensor], second: Mapping[str, Tensor],
             orders: Mapping[str, Tensor]) -> Tensor:
    """M [n, n]: how alike unit i of the first model and unit j of the second are, over all tensors that have them."""
    total: Tensor | None = None
    for name, axes in spec.items():
        for axis, found in enumerate(axes.units):
            if found != units:
                continue
            a = _rows(first[name], axes, axis)
            b = _rows(permuted(second[name], axes, orders, without=units), axes, axis)
            product = a @ b.T
            total = product if total is None else total + product
    if total is None:
        raise ValueError(f"no tensor has the units {units!r}")
    return total


def _rows(tensor: Tensor, axes: Axes, axis: int) -> Tensor:
    """One row a unit, in float64."""
    moved = tensor.reshape(axes.view).movedim(axis, 0)
    return moved.reshape(moved.shape[0], -1).double()


def weight_matching(spec: Spec, first: Mapping[str, Tensor], second: Mapping[str, Tensor], sweeps: int,
                    generator: torch.Generator) -> dict[str, Tensor]:
    """For each set of units the second model's unit that goes into each place."""
    sizes = {units: axes.view[axis] for axes in spec.values() for axis, units in enumerate(axes.units) if units}
    orders = {units: torch.arange(size) for units, size in sizes.items()}
    names = list(sizes)
    for _ in range(sweeps):
        moved = False
        for place in torch.randperm(len(names), generator=generator).tolist():
            moved |= _turn(names[place], spec, first, second, orders)
        if not moved:
            break
    return orders


def _turn(units: str, spec: Spec, first: Mapping[str, Tensor], second: Mapping[str, Tensor],
          orders: dict[str, Tensor]) -> bool:
    """Put one set of units into its best order; whether that raised the sum."""
    found = likeness(units, spec, first, second, orders)
    best = best_assignment(-found)
    places = torch.arange(len(best))
    before = float(found[places, orders[units]].sum())
    after = float(found[places, best].sum())
    if after <= before + GAIN * abs(before):
        return False
    orders[units] = best
    return True


def activation_matching(first_NU: Tensor, second_NU: Tensor) -> Tensor:
    """The second model's unit for each of the first one's, by the correlation of what they say of the same N inputs."""
    a, b = _standard(first_NU), _standard(second_NU)
    return best_assignment(-(a.T @ b))


def _standard(values_NU: Tensor) -> Tensor:
    wide = values_NU.double()
    centred = wide - wide.mean(0)
    return centred / centred.norm(dim=0).clamp(min=1e-12)


def decoder_spec(checkpoint: Checkpoint, residual: bool) -> Spec:
    """The units of a decoder: those of every dense block, and with `residual` those of the residual stream."""
    stream = RESIDUAL if residual else None
    spec: dict[str, Axes] = {}
    for name, tensor in checkpoint.tensors.items():
        shape = tuple(tensor.shape)
        inside = name.split(".", 2)[-1] if name.startswith("layers.") else name
        block = _block_axes(name, inside, shape, stream)
        axes = block or _stream_axes(name, inside, shape, stream)
        if any(axes.units):
            spec[name] = axes
    return spec


def _block_axes(name: str, inside: str, shape: tuple[int, ...], stream: str | None) -> Axes | None:
    """Of a dense feed-forward block's tensor; None for all others."""
    if len(shape) != 2 or not inside.startswith("channel_mixer."):
        return None
    layer = name.split(".")[1]
    part = inside.removeprefix("channel_mixer.")
    kind = part.removeprefix("shared_")
    units = f"layers.{layer}.{part.removesuffix(kind)}"
    rows, columns = shape
    if kind == "gate_up_proj":
        halves = (2, rows // 2, columns)
        return Axes(halves, (None, units, stream))
    if kind == "up_proj":
        return Axes(shape, (units, stream))
    if kind == "down_proj":
        return Axes(shape, (stream, units))
    return None


_LAST = ("embed.weight", "head.weight", "qkv.weight", "router.weight", "gate_up_proj")  # the stream is the last axis
_NOWHERE = ("q_norm.weight", "k_norm.weight", "qkv.bias", "router.bias")  # it is no axis
_GAINS = ("norm.weight", "sequence_norm.weight", "channel_norm.weight")
_MIDDLE = ("sequence_mixer.out.weight", "down_proj")  # it is the last but one


def _stream_axes(name: str, inside: str, shape: tuple[int, ...], stream: str | None) -> Axes:
    """Of a tensor that reads or writes the residual stream; one of which that is not known raises."""
    units: list[str | None] = [None] * len(shape)
    if stream is None or name.endswith(_NOWHERE):
        return Axes(shape, tuple(units))
    if inside in _GAINS or inside.endswith(_LAST):
        units[-1] = stream
        return Axes(shape, tuple(units))
    if inside.endswith(_MIDDLE) and len(shape) > 1:
        units[-2] = stream
        return Axes(shape, tuple(units))
    raise MixwellError(f"alignment does not know the axes of {name} {list(shape)}; leave the residual stream as it is "
                       "(residual: false).")


@method(title="Permutation alignment", year=2022, tags={"checkpoints"})
def align(checkpoints: Sequence[Checkpoint], base: Checkpoint | None, config: Config,
          generator: torch.Generator) -> Checkpoint:
    """The mean of the first decoder and the others, their units in its order."""
    first, *others = checkpoints
    spec = decoder_spec(first, config.residual)
    start = dict(first.tensors)
    aligned = []
    for other in others:
        tensors = dict(other.tensors)
        orders = weight_matching(spec, start, tensors, config.sweeps, generator)
        moved = {name: permuted(tensors[name], axes, orders) for name, axes in spec.items()}
        aligned.append(tensors | moved)
    return first.derive(tensors=mean_of(start, aligned, config.t))


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two dense decoders of one layer, width six."""
    checkpoints = [_decoder(generator) for _ in range(2)]
    return {"checkpoints": checkpoints, "base": None, "config": Config(), "generator": generator}


def _decoder(generator: torch.Generator) -> Checkpoint:
    mixer = {"method": "experts.layers.swiglu", "hidden_dim": 5}
    arch = {"num_layers": 1, "dim": 6, "channel_mixer": mixer}
    shapes: dict[str, tuple[int, ...]] = {
        "embed.weight": (9, 6),
        "norm.weight": (6,),
        "layers.0.channel_norm.weight": (6,),
        "layers.0.channel_mixer.gate_up_proj": (10, 6),
        "layers.0.channel_mixer.down_proj": (6, 5),
    }
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return Checkpoint(arch, tensors)
