"""A checkpoint as a GGUF file, written a tensor at a time and whole or not at all."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from mixwell.core.checkpoint import Checkpoint
from mixwell.core.errors import MixwellError, suggest
from mixwell.core.files import whole_file
from mixwell.lm.gguf.blocks import KINDS, Kind
from mixwell.lm.gguf.describing import metadata_of, written_as
from mixwell.lm.gguf.header import ALIGNMENT, MAGIC, VERSIONS
from mixwell.lm.gguf.naming import ROUTERS, Piece, pieces
from mixwell.lm.gguf.words import words_of

_NUMBERS = {bool: (7, "?"), int: (4, "I"), float: (6, "f")}
_TEXT, _ARRAY = 8, 9
PIECE = 2**18  # numbers that are encoded at a time: what is made of them on the way stays small
MATRICES_OF_ENDS = ("token_embd.weight", "output.weight")  # of files in four bits these have eight


def write_gguf(checkpoint: Checkpoint, path: str | Path, kind: str = "q8_0", name: str = "") -> Path:
    """Write a model as a GGUF file whose matrices are of `kind`, a key of `blocks.KINDS`, and return its path.

    Vectors and routers stay float32; embedding and head of a file in four bits have eight, as llama.cpp gives them
    more than the rest. Raises `MixwellError` for a model or a tokenizer that GGUF cannot say, for rows that are no
    whole blocks, and for a kind that is not made here; nothing is written then.
    """
    chosen = _kind(kind)
    arch, tensors = checkpoint.arch, checkpoint.tensors
    family, what = written_as(arch)
    table = pieces(tensors, arch, what)
    kinds = {target: _kind_of(target, piece, kind) for target, piece in table.items()}
    metadata = metadata_of(arch, family, what) | words_of(checkpoint.files, arch["vocab_size"])
    metadata |= {"general.name": name or Path(path).stem, "general.file_type": chosen.file_type,
                 "general.quantization_version": 2}
    with whole_file(path) as scratch, open(scratch, "wb") as file:
        file.write(_header(metadata, table, kinds))
        _pad(file)
        for target, parts in _cut(tensors, table):
            for part in parts:
                _write_part(file, target, part, kinds[target])
            _pad(file)
    return Path(path)


def _kind(name: str) -> Kind:
    if name in KINDS:
        return KINDS[name]
    more = ""
    if name.endswith(("_k", "_k_s", "_k_m", "_k_l")) or name.startswith("iq"):
        more = " k-quants and the like are made by llama-quantize, from a file in f32 or bf16."
    raise MixwellError(f"type {name!r} is not written.{suggest(name, KINDS)} Written are {', '.join(KINDS)}.{more}")


def _kind_of(target: str, piece: Piece, kind: str) -> Kind:
    """The type of a tensor of the file; a matrix whose rows are no whole blocks raises `MixwellError`."""
    if len(piece.shape) == 1 or target.endswith(ROUTERS):
        return KINDS["f32"]
    wider = kind.startswith("q4") and target in MATRICES_OF_ENDS
    found = KINDS["q8_0" if wider else kind]
    if piece.shape[-1] % found.block:
        raise MixwellError(f"{target} has rows of {piece.shape[-1]} numbers; {kind} takes multiples of {found.block}. "
                           "Write f16, bf16 or f32, in which no group of numbers shares a scale.")
    return found


def _cut(tensors: Mapping[str, Tensor], table: Mapping[str, Piece]) -> Iterator[tuple[str, list[Tensor]]]:
    """The file's tensors in order, by the part; a canonical one is read once for all pieces of it."""
    last, whole = "", None
    for target, piece in table.items():
        if piece.source != last:
            last, whole = piece.source, tensors[piece.source]
        assert whole is not None
        yield target, piece.cut(whole)


def _write_part(file: BinaryIO, target: str, tensor: Tensor, kind: Kind) -> None:
    blocks_NB = tensor.contiguous().view(-1, kind.block)
    for part_NB in blocks_NB.split(PIECE // kind.block):
        try:
            encoded = kind.encode(part_NB)
        except ValueError as error:
            raise MixwellError(f"{target}: {error}.") from error
        file.write(encoded.numpy().data)


def _header(metadata: Mapping[str, Any], table: Mapping[str, Piece], kinds: Mapping[str, Kind]) -> bytes:
    """Magic, version, counts, metadata, and of each tensor its name, dimensions, type and place."""
    parts = [MAGIC, struct.pack("<IQQ", VERSIONS[-1], len(table), len(metadata))]
    for key, value in metadata.items():
        parts += [_text(key), _value(value)]
    start = 0
    for target, piece in table.items():
        kind = kinds[target]
        dimensions = piece.shape[::-1]
        count = len(dimensions)
        form = f"<I{count}QIQ"
        parts.append(_text(target))
        parts.append(struct.pack(form, count, *dimensions, kind.number, start))
        blocks = math.prod(dimensions) // kind.block
        end = start + blocks * kind.width
        start = _aligned(end)
    return b"".join(parts)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    """A value behind the number of its type."""
    if isinstance(value, str):
        return struct.pack("<I", _TEXT) + _text(value)
    if isinstance(value, list):
        return struct.pack("<I", _ARRAY) + _array(value)
    number, form = _NUMBERS[type(value)]
    return struct.pack(f"<I{form}", number, value)


def _array(values: list[Any]) -> bytes:
    """The type of the items, their count, the items."""
    count = len(values)
    first = type(values[0]) if values else int
    if first is str:
        head = struct.pack("<IQ", _TEXT, count)
        texts = map(_text, values)
        return head + b"".join(texts)
    number, form = _NUMBERS[first]
    if first is int:  # llama.cpp reads types of tokens as signed
        number, form = 5, "i"
    layout = f"<IQ{count}{form}"
    return struct.pack(layout, number, count, *values)


def _aligned(position: int) -> int:
    missing = -position % ALIGNMENT[1]
    return position + missing


def _pad(file: BinaryIO) -> None:
    missing = -file.tell() % ALIGNMENT[1]
    file.write(bytes(missing))
