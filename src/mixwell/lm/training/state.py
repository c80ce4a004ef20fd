"""Where a training run stands, on disk: one safetensors file and one JSON file, which change together.

`state.json` names its tensor file and is replaced atomically; that replacement is the moment a new state counts.
Whatever a kill leaves behind, the folder therefore holds the last whole state.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mixwell.core.errors import MixwellError
from mixwell.core.files import read_json, write_json
from mixwell.formats.tensors import LazyTensors, open_file, save_tensors

STATE = "state.json"


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> Path:
    """Put down the state after `step`, then clear away the one before it."""
    name = f"step-{step:08d}.safetensors"
    save_tensors(folder / name, tensors)  # on the disk when it returns: the JSON must not outlive a power cut alone
    write_json(folder / STATE, {**values, "step": step, "tensors": name})
    for old in folder.iterdir():  # the state before, and what a kill left half-written under any name
        if old.name not in (name, STATE):
            old.unlink(missing_ok=True)
    return folder / STATE


def load(folder: Path) -> tuple[dict[str, Any], LazyTensors] | None:
    """The last whole state, or None where none was saved yet.

    Raises `MixwellError` for a state that names no tensors.
    """
    if not (folder / STATE).exists():
        return None
    values = read_json(folder / STATE)
    name = values.get("tensors") if isinstance(values, dict) else None
    if not isinstance(name, str) or Path(name).name != name:
        raise MixwellError(f"{folder / STATE} names no tensor file; remove {folder} to start afresh.")
    return values, open_file(folder / name)


def require_same(found: Mapping[str, Any], expected: Mapping[str, Any], folder: Path) -> None:
    """Raise where a saved run was made with other settings, naming the first that differs."""
    for key in sorted({*found, *expected}):
        saved, own = found.get(key), expected.get(key)
        if saved != own:
            raise MixwellError(f"{folder} holds a run with {key} {saved!r}, and this one has {own!r}; use another "
                               "folder, or remove that one to start afresh.")
