"""The tensors of a training whose state lies spread over processes, on disk: torch's distributed checkpoint.

Each process writes what it holds into a safetensors file of its own, with the place of every piece in the file's
header; any number of processes, one among them, reads whole tensors back. Nothing is gathered to be written.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixwell.core import disk
from mixwell.core.errors import MixwellError
from mixwell.core.files import digest_file
from mixwell.parallel.team import Alone

FILE_BYTES = 32 << 20  # of whole tensors about, in the files of all processes together


def write(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors, DTensors those that lie spread; every process calls this, and returns when its file is there."""
    from torch.distributed import checkpoint

    places = _files(tensors)
    writer = checkpoint.HuggingFaceStorageWriter(str(folder), places, save_distributed=True)
    checkpoint.save(dict(tensors), storage_writer=writer)


def _files(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """The number of the file of each tensor, from 1: a process packs a file in memory before it writes it."""
    found: dict[str, int] = {}
    reached = 0
    for name, tensor in tensors.items():
        found[name] = 1 + reached // FILE_BYTES
        reached += tensor.numel() * tensor.element_size()
    return found


def write_together(team: Alone, folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """`write` by all processes of a team; what a kill left in the folder is taken away first."""
    if team.leads:
        disk.remove(folder)
    team.most(0.0)  # nobody writes before that is done
    write(folder, tensors)


def digests(folder: Path) -> dict[str, str]:
    """The digest of each file, once it is on the disk."""
    found = {}
    for path in sorted(folder.iterdir()):
        disk.sync_file(path)
        found[path.name] = digest_file(path)
    return found


class Parts(Mapping[str, Tensor]):
    """Whole tensors by name, put together as they are asked for. Files that are not as written raise `MixwellError`."""

    def __init__(self, folder: Path, files: Mapping[str, str]) -> None:
        from torch.distributed.checkpoint import HuggingFaceStorageReader

        for name, expected in files.items():
            path = folder / name
            if not path.is_file() or digest_file(path) != expected:
                raise MixwellError(f"{path} is not as it was written: its digest is another, or it is gone.")
        self._folder = folder
        self._known: dict[str, Any] = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata

    def __getitem__(self, name: str) -> Tensor:
        from torch.distributed import checkpoint

        about = self._known[name]
        whole = {name: torch.empty(about.size, dtype=about.properties.dtype)}
        reader = checkpoint.HuggingFaceStorageReader(str(self._folder))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            checkpoint.load(whole, storage_reader=reader, no_dist=True)
        return whole[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)
