"""Where a tensor of a model lies, and its numbers in float32 or better: whole or by the piece, checked as they come."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.core.errors import MixwellError
from mixwell.formats.declared import Form, changed, form_of
from mixwell.formats.streams import Ranged
from mixwell.formats.sums import PIECE_BYTES, Sum


@dataclass(frozen=True)
class Place:
    """A tensor among a model's."""

    tensors: Mapping[str, Tensor]
    name: str
    where: str  # the model, in errors
    prepared: Callable[[Tensor], Tensor] | None = None  # what is done to the whole tensor first
    shape: tuple[int, ...] = ()  # that it has after `prepared`, where another

    @property
    def form(self) -> Form:
        """Type and shape, without reading it."""
        stored = form_of(self.tensors, self.name)
        return Form(stored.dtype, self.shape) if self.shape else stored

    @property
    def entries(self) -> int:
        """Of a piece: as many as a checksum takes."""
        return piece_entries(self._stored())

    def whole(self) -> Tensor:
        """The tensor, not to be written into; what is wrong with it raises `MixwellError`."""
        stored = self._stored()
        room = torch.empty(stored.shape, dtype=_wide(stored.dtype))
        targets = room.view(-1).split(piece_entries(stored))
        for piece, target in zip(self._read(), targets, strict=True):
            target.copy_(piece)
        return room if self.prepared is None else self.prepared(room)

    def pieces(self) -> Iterator[Tensor]:
        """The tensor's entries in order, as many at a time as a checksum takes; each piece is lost to the next."""
        if self.prepared is None:
            for piece in self._read():
                yield piece.to(_wide(piece.dtype))
            return
        whole = self.whole().reshape(-1)
        yield from whole.split(piece_entries(self._stored()))

    def _stored(self) -> Form:
        return form_of(self.tensors, self.name)

    def _read(self) -> Iterator[Tensor]:
        """Pieces as they are stored, each looked at; the checksum is compared behind the last."""
        stored = self._stored()
        total, written = Sum(torch.empty(stored.shape, dtype=stored.dtype, device="meta")), self._written()
        for piece in self._raw_pieces(stored):
            if written is not None:
                total.add(piece)
            self._check(piece)
            yield piece
        if written is not None and total.value != written:
            raise changed(self.name, self.where)

    def _raw_pieces(self, stored: Form) -> Iterator[Tensor]:
        """From the file without a look at the rest of it, where it lies in one."""
        size = piece_entries(stored)
        if not isinstance(self.tensors, Ranged):
            tensor = self.tensors[self.name].detach()
            yield from tensor.reshape(-1).split(size)
            return
        count = math.prod(stored.shape)
        room = torch.empty(min(size, count), dtype=stored.dtype)
        for start in range(0, count, size):
            piece = room[: min(size, count - start)]
            self.tensors.read_range(self.name, start, piece)
            yield piece

    def _written(self) -> int | None:
        """The checksum in the file, where pieces come from there; other mappings look at it themselves."""
        if not isinstance(self.tensors, Ranged):
            return None
        return self.tensors.sum(self.name)

    def _check(self, piece: Tensor) -> None:
        """A sum is finite where every number is; where it is not for its size alone, each number is looked at."""
        total = piece.sum().item()
        if total - total == 0:
            return
        finite = piece.isfinite()
        if bool(finite.all()):
            return
        bad = piece[~finite]
        raise MixwellError(f"{self.where}: {self.name} holds {float(bad[0])}; expected finite numbers. The file is "
                           "damaged, or the training that made it had failed.")


class Wholes(Sequence[Tensor]):
    """Whole tensors in float32 or better, each read when it is looked at."""

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [place.whole() for place in self._places[index]]
        return self._places[index].whole()

    def pieces(self, index: int) -> Iterator[Tensor]:
        """The entries of one in order; each piece is lost to the next."""
        return self._places[index].pieces()


def pieces_of(tensors: Sequence[Tensor], index: int) -> Iterator[Tensor]:
    """The entries of one of the tensors in order, in pieces, without making it whole where it is read."""
    if isinstance(tensors, Wholes):
        return tensors.pieces(index)
    return iter([tensors[index].reshape(-1)])


def _wide(dtype: torch.dtype | None) -> torch.dtype:
    """float32, or float64 where it is that."""
    assert dtype is not None
    return torch.promote_types(dtype, torch.float32)


def piece_entries(form: Form) -> int:
    """Of a piece: what checksums of a tensor of that type are taken of in one go."""
    assert form.dtype is not None
    return PIECE_BYTES // form.dtype.itemsize
