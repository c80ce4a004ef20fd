"""What a tensor must be before it is used: one check for all that is read from a file, whatever its form.

A reader declares type and shape of each tensor that it will place; `copied` gives a fresh copy of what fits and raises
for the rest. A compressed form declares its parts: a weight in int8 and the scales beside it, say.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from mixwell.core.errors import MixwellError, shown
from mixwell.formats.sums import PIECE_BYTES, Sum

FLOATING = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})


class Form(NamedTuple):
    """Type and shape of a tensor that is stored."""

    dtype: torch.dtype | None  # None for a type that is never placed
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes that it takes."""
        width = 1 if self.dtype is None else self.dtype.itemsize
        return width * math.prod(self.shape)

    def __str__(self) -> str:
        dtype, shape = _name(self.dtype), list(self.shape)
        return f"{dtype} {shape}"


def floating(name: object, where: str) -> torch.dtype:
    """The floating type of that name, such as bfloat16; another name raises `MixwellError`."""
    known = {_name(dtype): dtype for dtype in FLOATING}
    if isinstance(name, str) and name in known:
        return known[name]
    listed = ", ".join(sorted(known))
    raise MixwellError(f"{where}: {shown(name)} is not known; expected {listed}.")


def form_of(tensors: Mapping[str, Tensor], name: str) -> Form:
    """Type and shape of a tensor among others, without reading it where they can tell (`form`)."""
    stated = getattr(tensors, "form", None)
    if stated is not None:
        return stated(name)
    tensor = tensors[name]
    return Form(tensor.dtype, tuple(tensor.shape))


@dataclass(frozen=True)
class Declared:
    """Type, shape and range of a tensor."""

    shape: tuple[int, ...]
    dtypes: frozenset[torch.dtype] = FLOATING
    positive: bool = False  # above 0, as scales are; floating ones are finite in any case

def check_form(name: str, found: Form, declared: Declared, where: str) -> None:
    """Raise `MixwellError` where type or shape is another than declared; no number is looked at."""
    shape, wanted = list(found.shape), list(declared.shape)
    if shape != wanted:
        raise MixwellError(f"{where}: {name} has shape {shape}; expected {wanted}.")
    if found.dtype in declared.dtypes:
        return
    names = sorted(map(_name, declared.dtypes))
    known = ", ".join(names)
    raise MixwellError(f"{where}: {name} is {_name(found.dtype)}; expected {known}.")


def _name(dtype: torch.dtype | None) -> str:
    return "of a type that is not read" if dtype is None else str(dtype).removeprefix("torch.")


def changed(name: str, where: str) -> MixwellError:
    """What is raised for a tensor whose checksum is not the one that was written with it."""
    return MixwellError(f"{where}: {name} is not what was written (its checksum is another): the file is damaged; copy "
                        "it again.")


def copied(tensors: Mapping[str, Tensor], name: str, declared: Declared, where: str,
           into: Tensor | None = None) -> Tensor:
    """A copy of one of `tensors` (in `into`, where given), once it is what was declared and what was written.

    Type and shape are those declared, every number is finite, and the checksum is that of the file where it has one.
    """
    stored, written = _raw(tensors, name)
    found = Form(stored.dtype, tuple(stored.shape))
    check_form(name, found, declared, where)
    copy = torch.empty_like(stored, memory_format=torch.contiguous_format) if into is None else into
    total = Sum(stored)
    for source, target in _pieces(stored.detach(), copy):
        target.copy_(source)
        if written is not None:
            total.add(source)
        if target.is_floating_point() and not finite(target):
            raise MixwellError(f"{where}: {name} holds {_first_bad(target)}; expected finite numbers. The file is "
                               "damaged, or the training that made it had failed.")
        if declared.positive and not bool((target > 0).all()):
            raise MixwellError(f"{where}: {name} holds {float(target.min()):g}; expected numbers above 0.")
    if written is not None and total.value != written:
        raise changed(name, where)
    if isinstance(tensors, Summed):
        tensors.let_go(stored)
    return copy


def _raw(tensors: Mapping[str, Tensor], name: str) -> tuple[Tensor, int | None]:
    """A tensor, and the checksum that was written with it, where there is one and nobody looked at it yet."""
    if not isinstance(tensors, Summed):
        return tensors[name], None
    written = tensors.sum(name)
    return tensors.raw(name), written


@runtime_checkable
class Summed(Protocol):
    """Tensors that may have checksums."""

    def raw(self, name: str) -> Tensor:
        """A tensor whose checksum is left to the caller."""

    def sum(self, name: str) -> int | None:
        """The checksum that was written with it."""

    def let_go(self, tensor: Tensor) -> None:
        """Told of a tensor of `raw` that was copied."""


def _pieces(source: Tensor, target: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Both tensors in pieces that a processor's cache holds."""
    if not (source.is_contiguous() and target.is_contiguous()):
        yield source, target
        return
    size = PIECE_BYTES // source.element_size()
    pieces = source.view(-1).split(size)
    places = target.view(-1).split(size)
    yield from zip(pieces, places)


def finite(piece: Tensor) -> bool:
    """Whether every number is: a sum is not where one of them is not; where it is for its size, each is looked at."""
    total = float(piece.sum())
    if total - total == 0:
        return True
    return bool(piece.isfinite().all())


def _first_bad(piece: Tensor) -> float:
    bad = piece[~piece.isfinite()]
    return float(bad[0])


class Lazy(Mapping[str, Tensor]):
    """Tensors by name, each read or made when it is asked for; to look a name up makes none."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = names

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class Fresh(Lazy):
    """Tensors that are copies of their own, checked already."""


class Checked(Fresh):
    """What a file holds under its own names, once it is what was declared; type and shape are checked at once.

    `where` stands in errors.
    """

    def __init__(self, stored: Mapping[str, Tensor], declared: Mapping[str, Declared], where: str) -> None:
        super().__init__(declared)
        for name, expected in declared.items():
            check_form(name, form_of(stored, name), expected, where)
        self._stored, self._declared, self._where = stored, declared, where

    @property
    def stored(self) -> Mapping[str, Tensor]:
        """The tensors of the file, not looked at yet."""
        return self._stored

    def __getitem__(self, name: str) -> Tensor:
        return copied(self._stored, name, self._declared[name], self._where)

    def form(self, name: str) -> Form:
        """Type and shape of a tensor, without reading it."""
        return form_of(self._stored, name)
