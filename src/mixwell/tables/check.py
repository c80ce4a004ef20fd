"""What a model folder must hold, value by value and shape by shape; anything else raises ValueError, in a few words.

Both files of the folder may have been edited or damaged, and numbers out of their range would give wrong labels in
silence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from mixwell.density.mixtures.product import Block
from mixwell.tables.columns import CATEGORY, COUNT, KINDS, Column, used
from mixwell.tables.search import CRITERIA, DISCRETE, FAMILIES, Candidate, Choice

TYPES: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float), "bool": (bool,),
                                      "tuple[str, ...]": (list,)}
SUM_ERROR = 1e-6  # how far from 1 probabilities may add up


def columns_of(records: Any) -> tuple[Column, ...]:
    """The columns of a table from their records."""
    expect(isinstance(records, list) and records, "'columns' is no list of columns")
    columns = tuple(_column(record) for record in records)
    names = [c.name for c in columns]
    expect(len(set(names)) == len(names), "two columns have the same name")
    expect(bool(used(columns)), "no column takes part")
    return columns


def _column(record: Any) -> Column:
    column = Column(**_typed(Column, record, "a column"))
    where = f"column {column.name!r}: "
    expect(column.kind in KINDS, f"{where}unknown kind {column.kind!r}")
    for name in ("center", "scale", "floor"):
        value = getattr(column, name)
        expect(math.isfinite(value) and (value > 0 or name == "center"), f"{where}{name} is {value!r}")
    names = column.categories
    expect(all(isinstance(c, str) for c in names) and len(set(names)) == len(names), f"{where}categories {names!r}")
    expect(column.kind != CATEGORY or bool(names), f"{where}no categories")
    return column


def choice_of(record: Any, n_components: int) -> Choice:
    """The choice from its record; its best candidate must have `n_components`."""
    expect(isinstance(record, dict), "'choice' is no record")
    values = {f.name: record[f.name] for f in fields(Choice)}
    expect(values["criterion"] in CRITERIA, f"unknown criterion {values['criterion']!r}")
    expect(type(values["planned"]) is int, f"'planned' is {values['planned']!r}")
    for name in ("candidates", "notes"):
        expect(isinstance(values[name], list), f"{name!r} is no list")
    expect(all(isinstance(note, str) for note in values["notes"]), "a note is no text")
    best, *others = (_candidate(c) for c in (values["best"], *values["candidates"]))
    expect(best.n_components == n_components, f"the best candidate has {best.n_components} components, the model "
                                              f"{n_components}")
    return Choice(best=best, candidates=tuple(others), criterion=values["criterion"], planned=values["planned"],
                  notes=tuple(values["notes"]))


def _candidate(record: Any) -> Candidate:
    if isinstance(record, dict):  # JSON knows no NaN
        numbers = {f.name for f in fields(Candidate) if f.type == "float"}
        record = {name: math.nan if value is None and name in numbers else value for name, value in record.items()}
    candidate = Candidate(**_typed(Candidate, record, "a candidate"))
    expect(candidate.family in (*FAMILIES, DISCRETE), f"unknown family {candidate.family!r}")
    return candidate


def whole_number(record: Mapping[str, Any], name: str, least: int) -> int:
    """An entry that must be a whole number from `least`."""
    value = record[name]
    if type(value) is not int or value < least:
        raise ValueError(f"{name!r} is {value!r}, expected a whole number from {least}")
    return value


def _typed(kind: type, record: Any, what: str) -> dict[str, Any]:
    """The record's values, each of the type that the dataclass `kind` declares; lists become tuples."""
    expect(isinstance(record, dict), f"{what} is no record")
    types = {f.name: TYPES[str(f.type)] for f in fields(kind)}
    for name, value in record.items():
        expect(name in types, f"{what} has the unknown entry {name!r}")
        expect(type(value) in types[name], f"{what}: {name!r} is {value!r}")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in record.items()}


def shapes_of(block: Block, family: str, n_components: int) -> dict[str, tuple[int, ...]]:
    """Shape of every array of a block."""
    K, D = n_components, len(block.columns)
    if block.kind == COUNT:
        return {"rates_": (K, D)}
    if block.kind == CATEGORY:
        return {"_flat_probabilities": (K, sum(block.sizes))}
    spread = {"tied": (D, D), "diag": (K, D), "spherical": (K,)}.get(family, (K, D, D))
    shapes: dict[str, tuple[int, ...]] = {"means_": (K, D)}
    shapes |= dict.fromkeys(("covariances_", "precisions_cholesky_", "precisions_"), spread)
    return shapes | ({"dofs_": (K,)} if family == "student_t" else {})


def shaped(name: str, found: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """`found`, which must be finite floats of that shape."""
    expect(found.shape == shape, f"{name!r} has the shape {found.shape}, expected {shape}")
    expect(found.dtype == np.float64 and bool(np.isfinite(found).all()), f"{name!r} holds other than finite float64")
    return found


def ranges(block: Block, family: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Refuse numbers of a block that no fit gives."""
    if block.kind == COUNT:
        expect(bool((arrays["rates_"] >= 0).all()), "'rates_' is below 0")
    elif block.kind == CATEGORY:
        for part_KV in np.split(arrays["_flat_probabilities"], np.cumsum(block.sizes)[:-1], axis=1):
            shares("_flat_probabilities", part_KV)
    else:
        matrices = family in ("full", "tied", "student_t")
        for name, array in arrays.items():
            values = np.diagonal(array, axis1=-2, axis2=-1) if matrices and name not in ("means_", "dofs_") else array
            expect(name == "means_" or bool((values > 0).all()), f"{name!r} is not above 0")


def shares(name: str, array: np.ndarray) -> None:
    """Refuse what are no probabilities along the last axis."""
    sums = np.asarray(array.sum(-1))
    expect(bool((array >= 0).all() and (np.abs(sums - 1) <= SUM_ERROR).all()), f"{name!r} are no probabilities")


def expect(true: object, words: str) -> None:
    """Raise ValueError(words) unless `true`."""
    if not true:
        raise ValueError(words)
