"""What conversions share: looking at a checkpoint's layers by canonical names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixwell.core.errors import MixwellError

DENSE, SPARSE = "experts.layers.swiglu", "experts.layers.moe"


def channel(layer: int, name: str) -> str:
    """Canonical name of a tensor of one layer's channel mixer."""
    return f"layers.{layer}.channel_mixer.{name}"


def is_method(spec: Mapping[str, Any], name: str) -> bool:
    """Whether a channel mixer's options name the method `name`, fully or in short."""
    method = str(spec.get("method", ""))
    return name == method or name.rpartition(".")[2] == method


def refuse_quantised(tensors: Mapping[str, Any], doing: str) -> None:
    """Raise `MixwellError` for integer weights: conversions work on real ones."""
    for name in tensors:
        if f"{name}.scale" in tensors:
            raise MixwellError(f"{name} is quantised; {doing} needs full weights. Convert first and quantise last.")
