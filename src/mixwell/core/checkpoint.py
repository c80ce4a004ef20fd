"""A checkpoint as a value: what the architecture is, its named tensors, and how it came to be.

Rooms that turn one model into another (convert, merge, precision) are functions from checkpoint to checkpoint; they
know names and shapes, and no model class. `mixwell.lm.folder` reads and writes folders.

Canonical tensor names (F hidden width, E experts, D width, V vocabulary, H heads of width P, G key/value heads):

    embed.weight [V, D] · norm.weight [D] · head.weight [V, D] (absent where tied)
    layers.{i}.sequence_norm.weight [D] · layers.{i}.channel_norm.weight [D]
    layers.{i}.sequence_mixer.qkv.weight [(H + 2 G) P, D] · .qkv.bias · .out.weight [D, H P]
    layers.{i}.sequence_mixer.q_norm.weight · .k_norm.weight
    layers.{i}.channel_mixer.gate_up_proj [2 F, D] · .down_proj [D, F]            (experts.layers.swiglu)
    layers.{i}.channel_mixer.gate_up_proj [E, 2 F, D] · .down_proj [E, D, F]      (experts.layers.moe)
    layers.{i}.channel_mixer.router.weight [E, D]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from mixwell.core.errors import MixwellError


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """An architecture with its weights and its history."""

    arch: Mapping[str, Any]  # plain data of `lm.config.ModelConfig`
    tensors: Mapping[str, Tensor]  # canonical name -> tensor; may be lazy
    lineage: tuple[Mapping[str, Any], ...] = ()  # one record a stage, oldest first
    files: Mapping[str, bytes] = field(default_factory=dict)  # tokenizer.json and the like, carried along

    def derive(self, *, arch: Mapping[str, Any] | None = None, tensors: Mapping[str, Tensor] | None = None,
               record: Mapping[str, Any] | None = None) -> Checkpoint:
        """A copy with other contents and one more record in its lineage."""
        return replace(self, arch=self.arch if arch is None else arch,
                       tensors=self.tensors if tensors is None else tensors,
                       lineage=self.lineage if record is None else (*self.lineage, record))


def held(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with its tensors in memory: what is looked at several times is read or made once."""
    return checkpoint.derive(tensors=dict(checkpoint.tensors))


def channel_mixers(arch: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The channel mixer's options of each layer, whether the architecture states one for all or one a layer.

    Raises `MixwellError` where it lists another number of layers than there are.
    """
    spec, layers = arch["channel_mixer"], int(arch["num_layers"])
    if isinstance(spec, Mapping):
        return [dict(spec) for _ in range(layers)]
    if len(spec) != layers:
        raise MixwellError(f"channel_mixer lists {len(spec)} layers, num_layers is {layers}; make them agree.")
    return [dict(s) for s in spec]


def with_channel_mixers(arch: Mapping[str, Any], specs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A copy of `arch` with these channel mixers, stated once where all layers agree."""
    listed = [dict(spec) for spec in specs]
    same = all(spec == listed[0] for spec in listed)
    mixer = listed[0] if same else listed
    return {**arch, "channel_mixer": mixer, "architecture": "auto"}
