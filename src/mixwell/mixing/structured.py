"""The contract of matrices that are kept in a structure, in the place of dense linear maps, and their building by name.

Legend: O rows (outputs), I columns (inputs).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from mixwell.core import registry
from mixwell.core.config import from_dict
from mixwell.core.errors import MixwellError
from mixwell.core.registry import Entry
from mixwell.core.routing import Context

FAMILY = "precision.structured"
FACTORISES = "factorises"  # tag of a method that has `from_dense`
Shape = tuple[int, int]


class Structured(nn.Module):
    """A matrix W [O, I] in another form than its entries.

    Built as `Method(rows, columns, config, generator, std)`: `std` is that of the entries of the dense matrix in whose
    place it stands, at the start; None leaves the method's own law, 1 / sqrt(I) where it has none. W is linear in the
    parameter `weight`: who scales that scales W. `flops_per_token` counts two for each multiply-add.
    """

    rows: int
    columns: int
    config: Any
    weight: nn.Parameter
    place: int = 0  # its number among the matrices of its layer
    places: int = 1  # how many these are
    factorises: ClassVar[bool] = False  # whether `from_dense` is there

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """W x: [..., I] -> [..., O]."""
        raise NotImplementedError

    def dense(self) -> Tensor:
        """W [O, I], with its gradient: what `forward` multiplies with where nothing is drawn or left out."""
        raise NotImplementedError

    def flops_per_token(self) -> float:
        """Forward FLOPs of one row of inputs."""
        raise NotImplementedError

    def penalty(self) -> Tensor | None:
        """What training adds to the loss, a scalar, its coefficient included; None where nothing is."""
        return None

    def after_step(self) -> None:
        """Called after each optimiser step."""

    @classmethod
    def build(cls, shapes: Sequence[Shape], config: Any, generator: torch.Generator | None,
              std: float | None) -> list[Self]:
        """The matrices of one layer, which may have numbers in common."""
        made = []
        for rows, columns in shapes:
            matrix = cls(rows, columns, config, generator, std)
            made.append(matrix)
        return made

    def __init__(self, rows: int, columns: int, config: Any, generator: torch.Generator | None = None,
                 std: float | None = None) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns
        self.config = config

    def own_std(self, std: float | None) -> float:
        """The std asked for, else 1 / sqrt(I)."""
        return self.columns**-0.5 if std is None else std

    @classmethod
    def from_dense(cls, weight: Tensor, config: Any, generator: torch.Generator) -> Self:
        """The structure nearest to a matrix [O, I] that the method finds; `generator` draws its start."""
        raise MixwellError(f"{cls.__name__} is trained from its start and factorises no matrix; methods that do: "
                           f"{', '.join(factorising())}.")


def factorising() -> list[str]:
    """Names of the methods with `from_dense`."""
    found = [entry for entry in registry.family(FAMILY) if FACTORISES in entry.tags]
    return [entry.name.rpartition(".")[2] for entry in found]


def structure(spec: Mapping[str, Any]) -> tuple[Entry, Any]:
    """Method and config that `spec` names: {"method": "low_rank", ...its options}.

    An unknown method or option raises `MixwellError`.
    """
    options = dict(spec)
    if not isinstance(options.get("method"), str):
        raise MixwellError(f"structure: expected a method, got {options}; see `mixwell list {FAMILY}`.")
    entry = registry.find(options.pop("method"), FAMILY)
    config = from_dict(entry.module().Config, options, f"structure {entry.name}")
    return entry, config


def build_structured(spec: Mapping[str, Any], shapes: Sequence[Shape], generator: torch.Generator | None,
                     std: float | None = None) -> list[Structured]:
    """The matrices of one layer, each in its place; raises `MixwellError` for what cannot be."""
    entry, config = structure(spec)
    method: type[Structured] = entry.load()
    try:
        made = method.build(shapes, config, generator, std)
    except MixwellError:
        raise
    except ValueError as error:
        raise MixwellError(f"structure {entry.name}: {error}") from error
    for place, matrix in enumerate(made):
        matrix.place, matrix.places = place, len(made)
    return made
