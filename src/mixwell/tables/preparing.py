"""A table made ready for a fit: read, its columns judged, weights and known groups set apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mixwell.core.errors import MixwellError, suggest
from mixwell.tables import reading
from mixwell.tables.columns import Column, choose
from mixwell.tables.kinds import CATEGORY, SKIP
from mixwell.tables.missing import Form
from mixwell.tables.reading import Table
from mixwell.tables.weights import Weights, weights_of


@dataclass(frozen=True, eq=False)
class Prepared:
    """A table read, and what becomes of its columns."""

    table: Table
    columns: list[Column]
    against: str | None = None  # the column to compare with
    weights: Weights | None = None
    asked: Mapping[str, Any] = field(default_factory=dict)  # of `fit`, as a caller would ask again


def default_table() -> Table:
    """The wine data that scikit-learn ships: 13 measurements of 178 wines, and the cultivar of each."""
    reading.require()
    from sklearn.datasets import load_wine

    loaded = load_wine(as_frame=True)
    frame = loaded.data.rename(columns={"od280/od315_of_diluted_wines": "od280/od315"})
    return Table(frame.assign(cultivar=loaded.target_names[loaded.target]), "wine")


def prepare(table: Any, wanted: Mapping[str, str] | None = None, against: str | None = None, *,
            only: Sequence[str] | None = None, weights: str | None = None, form: Form | None = None) -> Prepared:
    """The table read, what becomes of each column, known groups and weights apart (`fit` says what they are)."""
    kinds = dict(wanted or {})
    written = [name for name, kind in kinds.items() if kind == CATEGORY]
    source = default_table() if table is None else reading.of(table, form=form, written=written)
    if table is None:
        against = against or "cultivar"
    remarks = {}
    for name in _left_out(source, only):
        kinds[name], remarks[name] = SKIP, "not among the columns asked for"
    if against:
        kinds[against], remarks[against] = SKIP, "compared with the components afterwards"
    found = weights_of(source, weights) if weights else None
    if found:
        kinds[found.column], remarks[found.column] = SKIP, found.note
    chosen = choose(source, kinds)
    columns = [replace(column, note=remarks.get(column.name, column.note)) for column in chosen]
    asked = {"table": _named(table), "columns": dict(wanted or {}), "only": list(only or []), "against": against,
             "weights": weights, "form": form or Form()}
    return Prepared(source, columns, against, found, asked)


def _named(table: Any) -> str:
    """How a caller names the table again: its path, or "" for one in memory."""
    return str(table) if isinstance(table, (str, Path)) else ""


def _left_out(table: Table, only: Sequence[str] | None) -> list[str]:
    """The columns that are not among those asked for."""
    if only is None:
        return []
    names = list(table.frame.columns)
    for name in only:
        if name not in names:
            raise MixwellError(f"there is no column {name!r}.{suggest(name, names)} The table has {', '.join(names)}.")
    return [name for name in names if name not in only]
