"""safetensors by the piece: ranges of tensors read without the rest of their file, files written a tensor at a time.

What is mapped into memory stays there as long as its file is open; ranges do not, and so a few large models can be read
side by side in the memory of a piece of each.
"""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol, runtime_checkable

import torch
from torch import Tensor

from mixwell.core.errors import MixwellError
from mixwell.core.files import whole_file
from mixwell.formats import sums
from mixwell.formats.declared import Form, Lazy, form_of

NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
         torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
         torch.bool: "BOOL"}
ALIGNED = 8  # bytes that a header's length is a multiple of


@runtime_checkable
class Ranged(Protocol):
    """Tensors that can be read by ranges, with their checksums."""

    def read_range(self, name: str, start: int, target: Tensor) -> None:
        """Fill flat `target` with entries of a tensor, from number `start` on."""

    def sum(self, name: str) -> int | None:
        """The checksum that was written with a tensor, where one was."""


@runtime_checkable
class Pieced(Protocol):
    """Tensors that can be made by the piece."""

    def pieces(self, name: str) -> Iterator[Tensor]:
        """A tensor's entries in order, `PIECE_BYTES` of them at a time, the last fewer; each is lost to the next."""


class Ranges:
    """Ranges of the tensors of one file, whose header was checked."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._file)
        length = int.from_bytes(os.pread(self._file, ALIGNED, 0), "little")
        header = json.loads(os.pread(self._file, length, ALIGNED))
        header.pop("__metadata__", None)
        data = ALIGNED + length
        self._starts = {name: data + entry["data_offsets"][0] for name, entry in header.items()}

    def read(self, name: str, start: int, target: Tensor) -> None:
        """Fill flat `target` with entries of a tensor, from number `start` on; a file cut short raises."""
        raw = memoryview(target.view(torch.uint8).numpy())  # type: ignore[arg-type]  # numpy arrays are buffers
        offset = self._starts[name] + start * target.element_size()
        while raw:
            count = os.preadv(self._file, [raw], offset)
            if count == 0:
                raise MixwellError(f"{self._path} was cut short while it was read; copy it again.")
            raw, offset = raw[count:], offset + count


class Selected(Lazy):
    """Some of a file's tensors."""

    def __init__(self, stored: Mapping[str, Tensor], names: Collection[str]) -> None:
        super().__init__(names)
        self._stored = stored

    def __getitem__(self, name: str) -> Tensor:
        return self._stored[name]

    def form(self, name: str) -> Form:
        """Type and shape of a tensor, without reading it."""
        return form_of(self._stored, name)


class SelectedRanges(Selected):
    """Some of a file's tensors, by the piece."""

    def __init__(self, stored: Any, names: Collection[str]) -> None:
        super().__init__(stored, names)
        self._ranged: Ranged = stored

    def read_range(self, name: str, start: int, target: Tensor) -> None:
        """Fill flat `target` with entries of a tensor, from number `start` on."""
        self._ranged.read_range(name, start, target)

    def sum(self, name: str) -> int | None:
        """The checksum that was written with a tensor, where one was."""
        return self._ranged.sum(name)


def selected(stored: Mapping[str, Tensor], names: Collection[str]) -> Selected:
    """Some of the tensors, by the piece where those are."""
    if isinstance(stored, Ranged):
        return SelectedRanges(stored, names)
    return Selected(stored, names)


def write(path: str | Path, tensors: Mapping[str, Tensor], names: Collection[str] | None = None) -> None:
    """Write `tensors`, or those of `names`, as one safetensors file whole or not at all.

    Each tensor is made when its turn comes, and then let go. They keep their order, wide types first. Their checksums
    stand in the header, which is completed at the end.
    """
    chosen = list(tensors if names is None else names)
    chosen.sort(key=lambda name: -_width(form_of(tensors, name)))
    found = dict.fromkeys(chosen, 0)
    with whole_file(path) as scratch, open(scratch, "wb") as file:
        file.write(_header(tensors, found))
        for name in chosen:
            found[name] = _write_tensor(file, name, tensors)
        file.seek(0)
        file.write(_header(tensors, found))


def _width(form: Form) -> int:
    assert form.dtype is not None
    return form.dtype.itemsize


def _header(tensors: Mapping[str, Tensor], found: Mapping[str, int]) -> bytes:
    """The header with these checksums, which all take the same room."""
    written = sums.packed(found[name] for name in sorted(found))
    about = {"format": "pt", sums.KEY: written}
    entries = dict(_entries(found, tensors))
    header = {"__metadata__": about, **entries}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    room = -len(text) % ALIGNED
    padded = text + b" " * room
    size = len(padded).to_bytes(ALIGNED, "little")
    return size + padded


def _entries(names: Iterable[str], tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, dict[str, object]]]:
    """Type, shape and place of each tensor."""
    start = 0
    for name in names:
        form = form_of(tensors, name)
        assert form.dtype is not None
        end = start + form.size_bytes
        yield name, {"dtype": NAMES[form.dtype], "shape": list(form.shape), "data_offsets": [start, end]}
        start = end


def _write_tensor(file: BinaryIO, name: str, tensors: Mapping[str, Tensor]) -> int:
    """Write one tensor, which must be what was said of it; returns its checksum."""
    if isinstance(tensors, Pieced):
        return _write_pieces(file, name, tensors)
    tensor = tensors[name].detach().contiguous().cpu()
    said = form_of(tensors, name)
    made = Form(tensor.dtype, tuple(tensor.shape))
    if made != said:
        raise MixwellError(f"{name} came out as {made}; expected {said}.")
    raw = tensor.reshape(-1).view(torch.uint8)
    file.write(raw.numpy().data)
    return sums.of(tensor)


def _write_pieces(file: BinaryIO, name: str, tensors: Any) -> int:
    """As `_write_tensor`, of a tensor that is never whole."""
    said = form_of(tensors, name)
    total = sums.Sum(torch.empty(said.shape, dtype=said.dtype, device="meta"))
    written = 0
    for piece in tensors.pieces(name):
        raw = piece.view(torch.uint8)
        file.write(raw.numpy().data)
        total.add(piece)
        written += raw.numel()
    if written != said.size_bytes:
        raise MixwellError(f"{name} came out as {written} bytes; expected {said}, {said.size_bytes} bytes.")
    return total.value
