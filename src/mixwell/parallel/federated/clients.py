"""Clients, the rows that they hold, and rows dealt out to them unequally.

Legend: N rows, C clients.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from mixwell.core.errors import MixwellError

Tensors = Mapping[str, Tensor]
ATTEMPTS = 200  # draws of shares until every client has rows


class Rows(Protocol):
    """What a client learns from."""

    def __len__(self) -> int: ...

    def of(self, places_N: Tensor) -> Self:
        """Some of the rows."""


@dataclass(frozen=True, eq=False)
class Table:
    """Inputs x [N, ...] and targets y [N, ...]."""

    x: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        inputs, targets = len(self.x), len(self.y)
        if inputs != targets:
            raise MixwellError(f"{inputs} inputs came with {targets} targets; expected as many.")

    def __len__(self) -> int:
        return len(self.y)

    def of(self, places_N: Tensor) -> Table:
        """Some of the rows."""
        return Table(self.x[places_N], self.y[places_N])


@dataclass(frozen=True, eq=False)
class Client:
    """A client by its number."""

    number: int
    rows: Any  # `Rows`, which never leave it


def clients_of(rows: Any, parts: Sequence[Tensor]) -> list[Client]:
    """A client for each part [n] of the rows."""
    held = [rows.of(part) for part in parts]
    return [Client(number, own) for number, own in enumerate(held)]


def by_dirichlet(labels_N: Tensor, clients: int, alpha: float, generator: torch.Generator,
                 least: int = 1) -> list[Tensor]:
    """Places of each client's rows: those of each label dealt out by shares drawn from Dirichlet(alpha).

    alpha: far above 1 all clients look alike, far below each holds few labels. Shares are drawn anew until each client
    has `least` rows; raises `MixwellError` where they cannot have them.
    """
    if clients < 1 or not alpha > 0:
        raise MixwellError(f"clients={clients}, alpha={alpha}; expected at least 1 and a number above 0.")
    count = len(labels_N)
    if count < clients * least:
        raise MixwellError(f"{count} rows came for {clients} clients with {least} each at least; expected more "
                           "rows, or fewer clients.")
    for _ in range(ATTEMPTS):
        parts = _dealt(labels_N, clients, alpha, generator)
        fewest = min(map(len, parts))
        if fewest >= least:
            return parts
    raise MixwellError(f"no draw of {ATTEMPTS} left each of {clients} clients {least} rows at alpha={alpha}; raise "
                       "alpha, or ask for fewer clients or rows.")


def _dealt(labels_N: Tensor, clients: int, alpha: float, generator: torch.Generator) -> list[Tensor]:
    """One draw."""
    parts: list[list[Tensor]] = [[] for _ in range(clients)]
    for label in labels_N.unique():
        places = (labels_N == label).nonzero().squeeze(1)
        order = torch.randperm(len(places), generator=generator)
        ends = _ends(len(places), clients, alpha, generator)
        pieces = places[order].tensor_split(ends)
        for own, piece in zip(parts, pieces):
            own.append(piece)
    joined = map(torch.cat, parts)
    return [own.sort().values for own in joined]


def _ends(count: int, clients: int, alpha: float, generator: torch.Generator) -> list[int]:
    """Where each client's rows of a label end, but for the last's."""
    alpha_C = torch.full((clients,), alpha, dtype=torch.float64)
    drawn_C = torch._standard_gamma(alpha_C, generator=generator)
    drawn_C = drawn_C.clamp_min(1e-300)
    share_C = drawn_C / drawn_C.sum()
    ends_C = share_C.cumsum(0) * count
    *ends, _ = ends_C.round().tolist()
    return list(map(int, ends))


def batches(rows: Any, size: int, steps: int, generator: torch.Generator) -> Iterator[Any]:
    """`steps` batches of rows drawn with replacement; all rows each time where there are no more than `size`."""
    count = len(rows)
    for _ in range(steps):
        if count <= size:
            yield rows
            continue
        places = torch.randint(count, (size,), generator=generator)
        yield rows.of(places)


def counted(share: float, of: int) -> int:
    """So large a share of a number, rounded up, 1 at least."""
    wanted = math.ceil(share * of - 1e-9)
    return max(1, wanted)


def size_bytes(tensors: Tensors) -> int:
    """Bytes of tensors."""
    sizes = [tensor.numel() * tensor.element_size() for tensor in tensors.values()]
    return sum(sizes)
