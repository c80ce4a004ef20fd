"""A GGUF file as a checkpoint: its metadata, its tensors with full weights, its tokenizer."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixwell.core.errors import MixwellError
from mixwell.formats.declared import Declared, Form, Lazy, check_form
from mixwell.lm.gguf.architectures import Architecture, architecture_of, config_of
from mixwell.lm.gguf.header import read_header

STRETCHES = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")
_EXPERT = re.compile(r"\.experts\.(\d+)\.")


class GgufFile:
    """A GGUF file that was opened: `metadata` as plain data, `tensor(name)` with full weights."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.library = _library()
        self.metadata, self._places = read_header(self.path)

    @property
    def names(self) -> set[str]:
        """Names of the tensors."""
        return set(self._places)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors, by name."""
        return {name: place.shape for name, place in self._places.items()}

    def tensor(self, name: str) -> Tensor:
        """The weights under `name`: bfloat16 where so stored, else float32, dequantised.

        Raises `MixwellError` for rows that are no whole blocks, and in a file that is cut short.
        """
        shape, number, offset = self._places[name]
        kind = self._kind(name, number)
        block, width = self.library.GGML_QUANT_SIZES[kind]
        if not shape or shape[-1] % block:
            raise MixwellError(f"{self.path}: {name} has shape {list(shape)}; rows of {kind.name} hold a multiple of "
                               f"{block} numbers. Copy the file again.")
        row_bytes = shape[-1] // block * width
        rows = math.prod(shape[:-1])
        if offset + rows * row_bytes > self.path.stat().st_size:
            raise MixwellError(f"{self.path} is cut short: {name} lies beyond its end; copy it again.")
        raw = np.fromfile(self.path, np.uint8, rows * row_bytes, offset=offset)
        if kind == self.library.GGMLQuantizationType.BF16:
            halves = torch.from_numpy(raw).view(torch.bfloat16)
            return halves.view(shape)
        wide = self._dequantised(name, raw.reshape(rows, row_bytes), kind)
        return torch.from_numpy(wide).view(shape)

    def form(self, name: str) -> Form:
        """Type and shape that `tensor` gives."""
        place = self._places[name]
        half = self._kind(name, place.kind) == self.library.GGMLQuantizationType.BF16
        return Form(torch.bfloat16 if half else torch.float32, place.shape)

    def _kind(self, name: str, number: int) -> Any:
        try:
            return self.library.GGMLQuantizationType(number)
        except ValueError as error:
            raise MixwellError(f"{self.path}: {name} is of GGML's type {number}, which the package gguf does not "
                               "know.") from error

    def _dequantised(self, name: str, raw: np.ndarray, kind: Any) -> np.ndarray:
        try:
            wide = self.library.quants.dequantize(raw, kind)
        except NotImplementedError as error:
            raise MixwellError(f"{self.path}: {name} is {kind.name}, which is not dequantised; take a file in another "
                               "type (q8_0, q4_k_m, f16).") from error
        return np.ascontiguousarray(wide, dtype=np.float32)

    def hugging_face_names(self, architecture: str, layers: int) -> Any:
        """The library's map from Hugging Face's names to the file's."""
        enums = {name: enum for enum, name in self.library.MODEL_ARCH_NAMES.items()}
        return self.library.get_tensor_name_map(enums[architecture], layers)


def _library() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise MixwellError("reading a GGUF file needs the package gguf; install mixwell[gguf] or gguf.") from error
    return gguf


class HuggingFaceView(Lazy):
    """The tensors `names` of a Hugging Face folder, out of a GGUF file that holds the same."""

    def __init__(self, file: GgufFile, names: Mapping[str, tuple[int, ...]], heads: tuple[int, int]) -> None:
        super().__init__(names)
        self._file, self._shapes = file, names
        architecture, self._what = architecture_of(file.metadata, str(file.path))
        layers = file.metadata[f"{architecture}.block_count"]
        self._map = file.hugging_face_names(architecture, layers)
        self._heads = heads  # of queries, and of keys and values
        self._places = {name: self._place(name) for name in names}
        self._last: tuple[str, Tensor] = ("", torch.empty(0))  # the experts of a layer are read once
        self._check_names()
        self._check_forms()

    def _place(self, name: str) -> tuple[str, int | None]:
        """(name in the file, number of the expert) of a Hugging Face tensor."""
        expert = _EXPERT.search(name)
        plain = _EXPERT.sub(".experts.", name)
        stem, _, kind = plain.rpartition(".")
        found = self._map.get_name(stem)
        if found is None:
            raise MixwellError(f"{self._file.path}: {name} has no name in GGUF.")
        return f"{found}.{kind}", int(expert.group(1)) if expert else None

    def _check_names(self) -> None:
        """Refuse a file that lacks a tensor, or holds one that would not be used."""
        wanted = {place for place, _ in self._places.values()}
        there, path = self._file.names, self._file.path
        missing = wanted - there
        extra = there - wanted - set(STRETCHES)
        for name in sorted(missing):
            raise MixwellError(f"{path}: {name} is missing.")
        for name in sorted(extra):
            raise MixwellError(f"{path}: {name} has no place in this model; it would be dropped.")

    def _check_forms(self) -> None:
        """Refuse tensors of other shapes than the metadata say, and stacks of more experts or of fewer."""
        path = str(self._file.path)
        experts = Counter(place for place, expert in self._places.values() if expert is not None)
        for place, count in experts.items():
            shape = self._file.form(place).shape
            if shape[:1] != (count,):
                raise MixwellError(f"{path}: {place} has shape {list(shape)}; the metadata say {count} experts.")
        for name, shape in self._shapes.items():
            check_form(name, self.form(name), Declared(shape), path)

    def form(self, name: str) -> Form:
        """Type and shape of a tensor, without reading it."""
        place, expert = self._places[name]
        dtype, stored = self._file.form(place)
        shape = stored if expert is None else stored[1:]
        gate = (1, *shape)  # the one row of a shared expert's gate is stored as a vector
        return Form(dtype, gate if self._shapes[name] == gate else shape)

    def __getitem__(self, name: str) -> Tensor:
        place, expert = self._places[name]
        if place != self._last[0]:
            self._last = place, self._file.tensor(place)
        tensor = self._last[1]
        if expert is not None:
            tensor = tensor[expert]
        return self._restored(place, tensor).reshape(self._shapes[name])

    def _restored(self, place: str, tensor: Tensor) -> Tensor:
        """A tensor as the Hugging Face folder holds it."""
        what: Architecture = self._what
        if what.norms_hold_one and "norm" in place:
            return tensor - 1
        if what.interleaved and (".attn_q." in place or ".attn_k." in place):
            return apart(tensor, self._heads[".attn_k." in place])
        return tensor


def apart(rows: Tensor, heads: int) -> Tensor:
    """Rows (i, i + P/2) that turn together, of each head, from rows (2 i, 2 i + 1)."""
    pairs = rows.unflatten(0, (heads, -1, 2))
    halves = pairs.transpose(1, 2)
    return halves.reshape(rows.shape)


def hugging_face_config(file: GgufFile) -> dict[str, Any]:
    """config.json of the model in a file."""
    tied = "output.weight" not in file.names
    stretches = {name: file.tensor(name).tolist() for name in STRETCHES if name in file.names}
    return config_of(file.metadata, tied, stretches, str(file.path))
