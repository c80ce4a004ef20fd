"""mergekit's merge files as values: what they may hold, which parameters a method takes, what is not served by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mixwell.core.config import from_dict
from mixwell.core.errors import MixwellError, shown, suggest
from mixwell.run import yaml_data

Parameters = Mapping[str, Any] | None
Ground = Literal["none", "optional", "needed", "first"]  # what a method does with base_model


class Takes(NamedTuple):
    """What a method reads from a file."""

    base: Ground = "none"
    required: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()  # one value for all models
    own: tuple[str, ...] = ()  # one value a model


_TASK = ("normalize", "rescale", "lambda", "int8_mask")
_WEIGHT = ("weight",)
METHODS: dict[str, Takes] = {
    "linear": Takes("none", _WEIGHT, ("normalize",), _WEIGHT),
    "slerp": Takes("first", ("t",), ("t",)),
    "nuslerp": Takes("optional", _WEIGHT, ("nuslerp_row_wise", "nuslerp_flatten"), _WEIGHT),
    "multislerp": Takes("optional", _WEIGHT, ("normalize_weights", "eps"), _WEIGHT),
    "karcher": Takes("none", (), ("max_iter", "tol")),
    "passthrough": Takes("none", (), (), ("scale",)),
    "model_stock": Takes("needed", (), ("filter_wise",)),
    "nearswap": Takes("needed", ("t",), ("t",)),
    "arcee_fusion": Takes("needed"),
    "sce": Takes("needed", (), ("select_topk", "int8_mask")),
    "ram": Takes("needed", (), ("epsilon",)),
    "ramplus_tl": Takes("needed", (), ("r", "alpha", "epsilon")),
    "task_arithmetic": Takes("needed", _WEIGHT, _TASK, ("weight", "density")),
    "ties": Takes("needed", _WEIGHT, _TASK, ("weight", "density")),
    "dare_ties": Takes("needed", _WEIGHT, _TASK, ("weight", "density")),
    "dare_linear": Takes("needed", _WEIGHT, _TASK, ("weight", "density")),
    "breadcrumbs": Takes("needed", _WEIGHT, _TASK, ("weight", "density", "gamma")),
    "breadcrumbs_ties": Takes("needed", _WEIGHT, _TASK, ("weight", "density", "gamma")),
    "della": Takes("needed", _WEIGHT, _TASK, ("weight", "density", "epsilon")),
    "della_linear": Takes("needed", _WEIGHT, _TASK, ("weight", "density", "epsilon")),
}
OURS = {"lambda": "scale"}  # mergekit's name of an option -> ours
IGNORED = ("int8_mask",)  # saves mergekit memory and changes no number


@dataclass(frozen=True, kw_only=True)
class Part:
    """One model of a merge, or of a slice of its layers."""

    model: Any
    layer_range: tuple[int, int] | None = None
    parameters: Parameters = None


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Layers of the result, made of as many layers of each source."""

    sources: tuple[Part, ...]
    base_model: Any = None
    residual_weight: float | None = None
    parameters: Parameters = None


@dataclass(frozen=True, kw_only=True)
class Module:
    """A part of a model with layers of its own; models of text have one."""

    slices: tuple[Slice, ...] = ()
    models: tuple[Part, ...] = ()
    parameters: Parameters = None


@dataclass(frozen=True, kw_only=True)
class File:
    """A merge file."""

    merge_method: str
    models: tuple[Part, ...] = ()
    slices: tuple[Slice, ...] = ()
    modules: Mapping[str, Module] = field(default_factory=dict)
    base_model: Any = None
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer_source: Any = None
    tokenizer: Mapping[str, Any] | None = None
    chat_template: str | None = None
    parameters: Parameters = None

    def __post_init__(self) -> None:
        if self.merge_method not in METHODS:
            raise MixwellError(f"merge_method: {shown(self.merge_method)} is not known."
                               f"{suggest(self.merge_method, METHODS)} Known: {', '.join(METHODS)}.")
        given = [part for part in (self.models, self.slices, self.modules) if part]
        if len(given) != 1:
            raise MixwellError("expected one of models, slices and modules.")
        if self.tokenizer_source is not None and self.tokenizer is not None:
            raise MixwellError("tokenizer_source and tokenizer stand side by side; keep one.")

    @property
    def module(self) -> Module:
        """The one module; several raise `MixwellError`."""
        if not self.modules:
            return Module(slices=self.slices, models=self.models)
        if len(self.modules) > 1:
            raise MixwellError(f"modules: {', '.join(self.modules)} came; mixwell merges models of text, which have "
                               "one module.")
        (only,) = self.modules.values()
        if bool(only.slices) == bool(only.models):
            raise MixwellError("modules: expected either slices or models in it.")
        return only


def read(path: Path) -> File:
    """A merge file. What is no such file, or asks for what is not served, raises `MixwellError` that names it."""
    try:
        data = yaml_data.read(path)
    except FileNotFoundError:
        raise MixwellError(f"{path} is not there; expected a merge file (YAML with merge_method).") from None
    if not isinstance(data, dict):
        raise MixwellError(f"{path}: expected keys and values such as `merge_method: ties`.")
    try:
        found = from_dict(File, data)
        _refuse(found)
    except MixwellError as error:
        raise MixwellError(f"{path.name}: {str(error).removeprefix('File: ')}") from error
    return found


def _refuse(found: File) -> None:
    """What mergekit's files may hold and is not served."""
    for place in found.module.slices:
        if place.residual_weight is not None:
            raise MixwellError("slices: residual_weight is not served.")


def reference(model: Any) -> str:
    """The folder, or the name, that a model is called by. Adapters and revisions raise `MixwellError`."""
    if isinstance(model, Mapping):
        if model.get("lora") is not None:
            raise MixwellError("model: lora is not served in a merge; merge the adapter into its model first.")
        inner = model.get("model")
        if isinstance(inner, Mapping) and inner.get("revision"):
            raise MixwellError("model: revision is not served; name the folder of that revision.")
        model = inner.get("path") if isinstance(inner, Mapping) else inner
    if not isinstance(model, str):
        raise MixwellError(f"model: expected a folder or a name, got {shown(model)}.")
    if "+" in model and not Path(model).expanduser().exists():
        raise MixwellError(f"model: {shown(model)} names an adapter behind '+', which is not served in a merge; merge "
                           "the adapter into its model first.")
    return model
