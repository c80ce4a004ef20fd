"""Where a training run stands, on disk: one safetensors file and one JSON file, which change together.

What lies spread over processes is a folder of such files instead, one of each process (`training.parts`).
`state.json` names its tensor file and is replaced atomically; that replacement is the moment a new state counts.
Whatever a kill leaves behind, the folder therefore holds the last whole state. It is sealed and holds a digest of the
tensor file's header, which in turn holds a checksum of each tensor: nothing in the two can change unseen.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mixwell.core import disk
from mixwell.core.errors import MixwellError
from mixwell.formats import sealed
from mixwell.formats.tensors import header_digest, open_file, save_tensors
from mixwell.lm.training import parts

STATE = "state.json"


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> Path:
    """Put down the state after `step`, then clear away the one before it."""
    name = f"step-{step:08d}.safetensors"
    save_tensors(folder / name, tensors)  # on the disk when it returns: the JSON must not outlive a power cut alone
    header = header_digest(folder / name)
    sealed.write(folder / STATE, {**values, "step": step, "tensors": name, "header": header})
    _clear(folder, name)
    return folder / STATE


def place_of(folder: Path, step: int) -> Path:
    """Where the tensors after `step` go whose parts several processes hold."""
    return folder / f"step-{step:08d}"


def seal_parts(folder: Path, step: int, values: Mapping[str, Any]) -> Path:
    """As `save`, where the tensors lie in `place_of` already, written by all processes."""
    place = place_of(folder, step)
    files = parts.digests(place)
    sealed.write(folder / STATE, {**values, "step": step, "tensors": place.name, "files": files})
    _clear(folder, place.name)
    return folder / STATE


def _clear(folder: Path, name: str) -> None:
    """Take away the state before, and what a kill left half-written under any name."""
    for old in folder.iterdir():
        if old.name not in (name, STATE):
            disk.remove(old)


def load(folder: Path) -> tuple[dict[str, Any], Mapping[str, Tensor]] | None:
    """The last whole state, or None where none was saved yet. What is not as it was written raises `MixwellError`."""
    if not (folder / STATE).exists():
        return None
    values = sealed.read(folder / STATE, "the training cannot go on from it")
    path = folder / values["tensors"]
    if "files" in values:
        return values, parts.Parts(path, values["files"])
    tensors = open_file(path)
    if header_digest(path) != values["header"]:
        raise MixwellError(f"{path} is not as it was written: the digest of its header is another.")
    for name in tensors:
        tensors[name]  # to read one is to take its checksum
    return values, tensors


def require_same(found: Mapping[str, Any], expected: Mapping[str, Any], folder: Path) -> None:
    """Raise where a saved run was made with other settings, naming the first that differs."""
    for key in sorted({*found, *expected}):
        saved, own = found.get(key), expected.get(key)
        if saved != own:
            raise MixwellError(f"{folder} holds a run with {key} {saved!r}, and this one has {own!r}; use another "
                               "folder, or remove that one to start afresh.")
