"""Feed-forwards map by map: a model's blocks and experts taken apart, and put back as structured ones.

Legend: D width of the model, F hidden width, E experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from mixwell.core.checkpoint import Checkpoint, channel_mixers, with_channel_mixers
from mixwell.core.errors import MixwellError
from mixwell.formats.declared import FLOATING

# layers that are blocks of plain maps, with the options that structured ones have, too
BLOCKS: Mapping[str, tuple[str, ...]] = {
    "experts.layers.swiglu": ("hidden_dim", "activation", "gated"),
    "experts.layers.moe": ("hidden_dim", "num_experts", "router", "balance"),
}
STRUCTURED = "experts.layers.structured"
IDLE: Mapping[str, Any] = {"bias": False, "capacity_factor": None, "expert_dropout": 0.0, "shared_experts": 0,
                           "clamp": None}  # options that have to be at what does nothing


def check_layers(layers: Sequence[int] | None) -> None:
    """Raise `ValueError` for a list of layers that holds none, or a number below 0."""
    if layers is not None and (not layers or min(layers) < 0):
        raise ValueError(f"layers is {list(layers)}; expected numbers from 0, or nothing for all layers")


def kind_of(spec: Mapping[str, Any], layer: int, doing: str) -> str:
    """The full name of a layer's method; one that structured blocks could not stand for raises `MixwellError`."""
    kind = full_name(spec)
    if kind not in BLOCKS:
        raise MixwellError(f"layer {layer} is {kind}; {doing} takes dense blocks and plain mixtures of experts.")
    for option, value in IDLE.items():
        found = spec.get(option, value)
        if found != value:
            raise MixwellError(f"layer {layer} has {option} = {found!r}; {doing} takes {value!r} only.")
    return kind


def full_name(spec: Mapping[str, Any]) -> str:
    """The full name of a layer's method, which options may have in short."""
    method = str(spec.get("method"))
    if "." in method:
        return method
    return f"experts.layers.{method}"


def structured_spec(spec: Mapping[str, Any], structure: Mapping[str, Any]) -> dict[str, Any]:
    """The options of structured blocks in the place of a layer."""
    names = BLOCKS[full_name(spec)]
    made: dict[str, Any] = {"method": STRUCTURED}
    made["structure"] = dict(structure)
    for name in names:
        if name in spec:
            made[name] = spec[name]
    return made


class Blocks:
    """A checkpoint on its way to structured blocks: what is not taken is copied."""

    def __init__(self, checkpoint: Checkpoint, layers: Sequence[int] | None, doing: str) -> None:
        self.source = checkpoint
        self.specs = channel_mixers(checkpoint.arch)
        count = len(self.specs)
        self.layers = list(range(count)) if layers is None else list(layers)
        for layer in self.layers:
            if layer >= count:
                raise MixwellError(f"layers names {layer}; this model has layers 0 to {count - 1}.")
            kind_of(self.specs[layer], layer, doing)
        self.left = dict(checkpoint.tensors)
        self.made: dict[str, Tensor] = {}
        self.used: list[str] = []

    def take(self, layer: int, name: str) -> Tensor:
        """A weight of a layer; one that is quantised raises `MixwellError`."""
        full = f"layers.{layer}.channel_mixer.{name}"
        weight = self.left.pop(full)
        if weight.dtype not in FLOATING or f"{full}.scale" in self.left:
            raise MixwellError(f"{full} is quantised; hand in a model with full weights.")
        self.used.append(full)
        return weight

    def put(self, layer: int, place: str, parts: Mapping[str, Tensor]) -> None:
        """The tensors of the structured matrix at `place` of a layer."""
        for name, value in parts.items():
            self.made[f"layers.{layer}.channel_mixer.experts.{place}.{name}"] = value

    def result(self, record: Mapping[str, Any] | None = None) -> Checkpoint:
        """The new checkpoint, its channel mixers as `specs` says."""
        arch = with_channel_mixers(self.source.arch, self.specs)
        account = {"account": {"used": list(self.used), "dropped": {}}, **(record or {})}
        return self.source.derive(arch=arch, tensors={**self.left, **self.made}, record=account)


def whole_blocks(work: Blocks, layer: int) -> Iterator[tuple[str, Tensor]]:
    """(place, matrix [O, I]) of every map of a layer, expert by expert: gate, up, out."""
    gated = work.specs[layer].get("gated", True)
    into = work.take(layer, "gate_up_proj" if gated else "up_proj")
    down = work.take(layer, "down_proj")
    if down.ndim == 2:
        into, down = into.unsqueeze(0), down.unsqueeze(0)
    for expert, (own, out) in enumerate(zip(into, down)):
        if gated:
            gate, up = own.chunk(2)
            yield f"{expert}.gate", gate
            yield f"{expert}.up", up
        else:
            yield f"{expert}.up", own
        yield f"{expert}.out", out
