"""Conversions of models larger than memory: tensors are read when they are looked at, new ones wait on the disk.

Methods take a layer's tensors, compute, and place what they made, layer by layer. They do so here with tensors that
have a type and a shape and no numbers until an operation asks for them, and what they place is written at once.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from mixwell.core import disk
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.files import disk_errors
from mixwell.formats.declared import Form, form_of

RECENT = 2  # tensors that are kept after they were read: the two of a block are looked at in turns
SMALL_BYTES = 2**16  # what is smaller stays in memory


class Unread(Tensor):
    """A tensor whose numbers are read when an operation asks for them; results are ordinary tensors."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    numbers: Callable[[], Tensor]

    @staticmethod
    def __new__(cls, form: Form, numbers: Callable[[], Tensor]) -> Unread:
        """numbers: reads the tensor, which has that form."""
        made: Unread = Tensor._make_wrapper_subclass(cls, form.shape, dtype=form.dtype)
        made.numbers = numbers
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
            cls, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """The operation on the numbers. One that would write into them raises: nobody would see it."""
        written = function._schema.is_mutable and isinstance(args[0], Unread)
        if written:
            raise RuntimeError(f"{function} writes into a tensor of the source; expected a copy")
        given = tree_map_only(Unread, _numbers, (args, kwargs or {}))
        return function(*given[0], **given[1])


def _numbers(tensor: Unread) -> Tensor:
    return tensor.numbers()


def unread(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with tensors that are read from its files when they are looked at; those in memory stay."""
    tensors = checkpoint.tensors
    if isinstance(tensors, dict):
        return checkpoint
    read = functools.lru_cache(RECENT)(tensors.__getitem__)
    found = {name: Unread(form_of(tensors, name), functools.partial(read, name)) for name in tensors}
    return checkpoint.derive(tensors=found)


class Spill:
    """Tensors in files of an existing folder, which whoever made it removes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count()
        self._read = functools.lru_cache(RECENT)(_read)

    def kept(self, tensor: Tensor) -> Tensor:
        """The tensor, read again when it is looked at; a small one, or one that training needs, as it is."""
        here = tensor.requires_grad or tensor.is_meta or tensor.nbytes < SMALL_BYTES
        if here or isinstance(tensor, Unread):
            return tensor
        alike = tensor.ndim > 1 and tensor.stride(0) == 0  # copies of one expert take the room of one
        stored = tensor[0] if alike else tensor
        path = self._folder / str(next(self._numbers))
        form = Form(stored.dtype, tuple(stored.shape))
        _write(path, stored)
        numbers = functools.partial(self._numbers_of, path, form, tuple(tensor.shape))
        return Unread(Form(tensor.dtype, tuple(tensor.shape)), numbers)

    def _numbers_of(self, path: Path, form: Form, shape: tuple[int, ...]) -> Tensor:
        return self._read(path, form).expand(shape)


def _write(path: Path, tensor: Tensor) -> None:
    raw = tensor.contiguous().view(-1).view(torch.uint8)
    with disk_errors(path):
        raw.numpy().tofile(path)


def _read(path: Path, form: Form) -> Tensor:
    assert form.dtype is not None
    raw = np.fromfile(path, np.uint8)
    return torch.from_numpy(raw).view(form.dtype).view(form.shape)


@contextmanager
def beside(path: str | Path | None) -> Iterator[Spill | None]:
    """Room for a conversion on the disk of the folder `path` that it will be; None, and none, where there is no path.

    What a process left there that was killed is removed first.
    """
    if path is None:
        yield None
        return
    place = Path(path)
    disk.make_folder(place.parent)
    disk.clear_scratch(place.parent, place.name)
    folder = disk.scratch_beside(place)
    folder.mkdir()
    try:
        yield Spill(folder)
    finally:
        disk.remove(folder)
