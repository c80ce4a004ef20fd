"""Named tensors on disk: safetensors, read lazily, written atomically, in shards with an index where large.

Nothing here unpickles: a file that is not safetensors is refused by name.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mixwell.core.errors import MixwellError
from mixwell.core.files import digest, whole_file, write_json
from mixwell.formats import mapped, streams, sums
from mixwell.formats.declared import Form, Lazy, changed, form_of
from mixwell.formats.places import held
from mixwell.formats.plain import Schema, mapping, read_object, text
from mixwell.formats.streams import Ranges

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
          "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
          "BOOL": torch.bool}
LONGEST = 200  # characters of what the library says
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")


class LazyTensors(Lazy):
    """A read-only mapping from name to tensor that reads each one when it is asked for."""

    def __init__(self, files: Mapping[str, Opened]) -> None:
        super().__init__(files)
        self._files = files

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.raw(name)
        written = self.sum(name)
        if written is not None and written != sums.of(tensor):
            path = self._files[name].path
            raise changed(name, str(path))
        return tensor

    def raw(self, name: str) -> Tensor:
        """A tensor whose checksum is left to the caller."""
        return self._files[name].read(name)

    def let_go(self, tensor: Tensor) -> None:
        """Give the memory back in which a tensor of `raw` lies, once it was copied and nobody looks at it again."""
        mapped.let_go(tensor)

    def sum(self, name: str) -> int | None:
        """The checksum that was written with a tensor, where one was."""
        return self._files[name].sums.get(name)

    def form(self, name: str) -> Form:
        """Type and shape of a tensor, without reading it."""
        return self._files[name].form(name)

    def read_range(self, name: str, start: int, target: Tensor) -> None:
        """Fill flat `target`, of the tensor's type, with its entries from number `start` on."""
        self._files[name].ranges.read(name, start, target)


class Opened:
    """One safetensors file, its header read: that takes longer than to read a small tensor."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = safe_open(path, framework="pt")
        except SafetensorError as error:
            raise MixwellError(f"{path} {_in_words(error)}.") from error
        self.names = list(self._file.keys())
        written = (self._file.metadata() or {}).get(sums.KEY)
        self.sums = {} if written is None else sums.unpacked(written, self.names, str(path))

    def read(self, name: str) -> Tensor:
        """A tensor; it may lie in the file's own memory, and is not to be written into."""
        try:
            return self._file.get_tensor(name)
        except (SafetensorError, AttributeError) as error:
            raise MixwellError(f"{self.path}: {name} is of a type that this torch does not read ({error}).") from error

    @functools.cached_property
    def ranges(self) -> Ranges:
        """The file by the piece."""
        return Ranges(self.path)

    def form(self, name: str) -> Form:
        """Type and shape of a tensor, from the header."""
        tensor = self._file.get_slice(name)
        dtype = DTYPES.get(tensor.get_dtype())
        return Form(dtype, tuple(tensor.get_shape()))


def _in_words(error: SafetensorError) -> str:
    """What is wrong with a file, from what the library says of its header."""
    said = str(error).removeprefix("Error while deserializing header: ")
    if len(said) > LONGEST:  # it quotes the header
        said = f"{said[:LONGEST]} ..."
    if any(words in said for words in _SHORT):
        return f"is cut short or not a safetensors file ({said}); copy it again"
    return f"is not a safetensors file ({said})"


_SHORT = ("not fully covered", "header length", "too small")


def open_file(path: str | Path) -> LazyTensors:
    """Open one safetensors file after checking that its header and length agree.

    A header of more than 100 MB is refused unread, as the format's own library does.
    """
    opened = _open(Path(path))
    return LazyTensors(dict.fromkeys(opened.names, opened))


def _open(path: Path) -> Opened:
    if held(path.parent, path.name) is None:
        raise MixwellError(f"{path} is missing; expected a safetensors file.")
    with open(path, "rb") as file:
        if _is_pickle(file.read(8)):
            raise MixwellError(f"{path} is a pickle, which can run code when read; expected safetensors.")
    return Opened(path)


def _is_pickle(head: bytes) -> bool:
    """Whether a file that begins so is a pickle, bare or in torch's zip; a header of 640 bytes begins like one too."""
    if head.startswith(b"PK\x03\x04"):
        return True
    bare = head[:1] == b"\x80"
    protocol, rest = head[1:2], head[2:]
    return bare and protocol in _PROTOCOLS and rest != bytes(6)


_PROTOCOLS = (b"\x02", b"\x03", b"\x04", b"\x05")


def header_digest(path: str | Path) -> str:
    """SHA-256 (hex) of a safetensors file up to its first number: of names, types, shapes, places and checksums."""
    with open(path, "rb") as file:
        length = file.read(8)
        header = file.read(int.from_bytes(length, "little"))
    return digest(length + header)


def open_folder(folder: str | Path) -> LazyTensors:
    """Open `model.safetensors`, or the shards that its index names.

    A missing, truncated or foreign file, a tensor that the index promises and no shard holds, or both forms side by
    side raise.
    """
    folder = Path(folder)
    if held(folder, INDEX) is not None:
        return _open_shards(folder)
    if held(folder, SINGLE) is not None:
        return open_file(folder / SINGLE)
    for pattern in PICKLES:
        for pickle in folder.glob(pattern):
            raise MixwellError(f"{folder} holds {pickle.name}, a pickle, which can run code when read. Expected "
                               f"{SINGLE}; convert it where you trust it (transformers: save_pretrained) and hand that "
                               "in.")
    raise MixwellError(f"{folder} holds neither {SINGLE} nor {INDEX}; expected a Hugging Face model folder.")


def _open_shards(folder: Path) -> LazyTensors:
    """The files that an index names, where they hold what it says and nothing else."""
    weight_map = read_object(folder / INDEX, _INDEX, ("weight_map",))["weight_map"]
    if not weight_map:
        raise MixwellError(f"{folder / INDEX} has no weight_map; expected tensor names and the files they lie in.")
    names = sorted(set(weight_map.values()))
    if names != [SINGLE] and held(folder, SINGLE) is not None:
        raise MixwellError(f"{folder} holds {SINGLE} and beside it {INDEX}, which names other files; one of them "
                           "is left from an earlier save. Remove the index with its shards, or the single file.")
    shards = {name: _open(_inside(folder, name)) for name in names}
    inside = {name: set(shard.names) for name, shard in shards.items()}
    for name, shard in weight_map.items():
        if name not in inside[shard]:
            raise MixwellError(f"{folder / shard} lacks {name!r}, which {INDEX} promises; download it again.")
    extra = set().union(*inside.values()) - set(weight_map)
    if extra:
        raise MixwellError(f"{folder}: the shards hold {min(extra)!r}, which {INDEX} does not name; mend the index.")
    return LazyTensors({name: shards[shard] for name, shard in weight_map.items()})


_INDEX: Schema = {"weight_map": mapping(text(1000))}


def _inside(folder: Path, shard: str) -> Path:
    """The path of a shard that an index names, refused where it points outside the folder."""
    if Path(shard).name != shard:
        raise MixwellError(f"{folder / INDEX} names the file {shard!r}; expected a plain file name in the same folder.")
    return folder / shard


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Path:
    """Write one safetensors file whole or not at all, with a checksum of each tensor in its header."""
    plain = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    written = sums.packed(sums.of(plain[name]) for name in sorted(plain))
    with whole_file(path) as scratch:
        _save(plain, scratch, {"format": "pt", **(metadata or {}), sums.KEY: written})
    return Path(path)


def _save(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    try:
        save_file(_unshared(tensors), path, metadata=metadata)
        _order_metadata(path)
    except SafetensorError as error:
        if found := re.search(r"(?:os error|code:) (\d+)", str(error)):  # so that `disk_errors` words it
            code = int(found[1])
            raise OSError(code, os.strerror(code), str(path)) from error
        raise


def _order_metadata(path: Path) -> None:
    """The library writes metadata in an order of chance; in that of their names, equal tensors give equal bytes."""
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False)
        ordered = text.encode().ljust(length)
        if len(ordered) == length:
            file.seek(8)
            file.write(ordered)


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """safetensors refuses tensors that share memory; a second view of the same memory becomes a copy."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        pointer = tensor.untyped_storage().data_ptr()
        result[name] = tensor.clone() if tensor.numel() and pointer in seen else tensor
        seen.add(pointer)
    return result


def save_shards(folder: str | Path, tensors: Mapping[str, Tensor], *, shard_bytes: int = 4 * 2**30) -> None:
    """Write `tensors` into an existing folder as one file, or as shards of at most `shard_bytes` with an index."""
    folder = Path(folder)
    sizes = {name: form_of(tensors, name).size_bytes for name in tensors}
    groups = _groups(sizes, shard_bytes)
    if len(groups) == 1:
        streams.write(folder / SINGLE, tensors)
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(groups, start=1):
        shard = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        streams.write(folder / shard, tensors, names)
        weight_map |= dict.fromkeys(names, shard)
    total = sum(sizes.values())
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _groups(sizes: Mapping[str, int], most: int) -> list[list[str]]:
    """Names in their order, cut where the next one would make a group larger than `most` bytes."""
    groups: list[list[str]] = [[]]
    used = 0
    for name, size in sizes.items():
        if groups[-1] and used + size > most:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += size
    return groups


def size_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Bytes that the tensors take in memory."""
    return sum(form_of(tensors, name).size_bytes for name in tensors)
