"""Named tensors on disk: safetensors, read lazily, written atomically, in shards with an index where large.

Nothing here unpickles: a file that is not safetensors is refused by name.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mixwell.core.errors import MixwellError
from mixwell.core.files import read_json, whole_file, write_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")


class LazyTensors(Mapping[str, Tensor]):
    """A read-only mapping from name to tensor that reads each one when it is asked for."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = dict(files)

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self._files[name], framework="pt") as file:
            return file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def open_file(path: str | Path) -> LazyTensors:
    """Open one safetensors file after checking that its header and length agree."""
    path = Path(path)
    return LazyTensors(dict.fromkeys(_names(path), path))


def open_folder(folder: str | Path) -> LazyTensors:
    """Open `model.safetensors`, or the shards that its index names.

    A missing, truncated or foreign file, a tensor that the index promises and no shard holds, or both forms side by
    side raise.
    """
    folder = Path(folder)
    if (folder / INDEX).exists():
        index = read_json(folder / INDEX)
        weight_map = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(weight_map, dict) or not weight_map:
            raise MixwellError(f"{folder / INDEX} has no weight_map; expected tensor names and the files they lie in.")
        if (folder / SINGLE).exists() and set(weight_map.values()) != {SINGLE}:
            raise MixwellError(f"{folder} holds {SINGLE} and beside it {INDEX}, which names other files; one of them "
                               "is left from an earlier save. Remove the index with its shards, or the single file.")
        held = {shard: set(_names(_inside(folder, shard))) for shard in sorted(set(weight_map.values()))}
        for name, shard in weight_map.items():
            if name not in held[shard]:
                raise MixwellError(f"{folder / shard} lacks {name!r}, which {INDEX} promises; download it again.")
        extra = sorted(set().union(*held.values()) - set(weight_map))
        if extra:
            raise MixwellError(f"{folder}: the shards hold {extra[0]!r}, which {INDEX} does not name; mend the index.")
        return LazyTensors({name: folder / shard for name, shard in weight_map.items()})
    if (folder / SINGLE).exists():
        return open_file(folder / SINGLE)
    pickles = [p.name for pattern in PICKLES for p in folder.glob(pattern)]
    if pickles:
        raise MixwellError(f"{folder} holds {pickles[0]}, a pickle, which can run code when read. Expected {SINGLE}; "
                           "convert it where you trust it (transformers: save_pretrained) and hand that in.")
    raise MixwellError(f"{folder} holds neither {SINGLE} nor {INDEX}; expected a Hugging Face model folder.")


def _inside(folder: Path, shard: object) -> Path:
    """The path of a shard that an index names, refused where it points outside the folder."""
    if not isinstance(shard, str) or Path(shard).name != shard:
        raise MixwellError(f"{folder / INDEX} names the file {shard!r}; expected a plain file name in the same folder.")
    return folder / shard


def _is_pickle(head: bytes) -> bool:
    """Whether a file that begins so is a pickle, bare or in torch's zip; a header of 640 bytes begins like one too."""
    bare = head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and head[2:] != bytes(6)
    return bare or head[:4] == b"PK\x03\x04"


def _names(path: Path) -> list[str]:
    if not path.exists():
        raise MixwellError(f"{path} is missing; expected a safetensors file.")
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(8)
        if _is_pickle(head):
            raise MixwellError(f"{path} is a pickle, which can run code when read; expected safetensors.")
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
        if length + 8 > size:
            raise MixwellError(f"{path} is cut short or not safetensors ({size} bytes); copy it again.")
        try:
            header = json.loads(file.read(length))
            end = max((v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"), default=0)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise MixwellError(f"{path} is not a safetensors file ({error}).") from error
    if 8 + length + end != size:
        raise MixwellError(f"{path} is cut short: {8 + length + end} bytes expected, {size} found; copy it again.")
    try:
        with safe_open(path, framework="pt") as opened:
            return list(opened.keys())
    except SafetensorError as error:
        raise MixwellError(f"{path} is not a valid safetensors file ({error}).") from error


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Path:
    """Write one safetensors file atomically."""
    plain = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    with whole_file(path) as scratch:
        _save(plain, scratch, metadata)
    return Path(path)


def _save(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None) -> None:
    try:
        save_file(_unshared(tensors), path, metadata=dict(metadata or {"format": "pt"}))
    except SafetensorError as error:
        if "No space" in str(error):
            raise OSError(28, "No space left on device") from error  # so that disk_errors words it
        raise


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
    groups: list[list[str]] = [[]]
    used, total = 0, 0
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}
    for name, size in sizes.items():
        if groups[-1] and used + size > shard_bytes:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used, total = used + size, total + size
    if len(groups) == 1:
        save_tensors(folder / SINGLE, tensors)
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(groups, start=1):
        shard = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        save_tensors(folder / shard, {name: tensors[name] for name in names})
        weight_map |= dict.fromkeys(names, shard)
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def size_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Bytes that the tensors take in memory."""
    return sum(t.numel() * t.element_size() for t in tensors.values())
