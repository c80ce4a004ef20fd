"""What a model folder must hold, value by value and shape by shape; anything else raises ValueError, in a few words.

Both files of the folder may have been edited or damaged, and numbers out of their range would give wrong labels in
silence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from mixwell.core.errors import shown
from mixwell.density.mixtures.product import Block
from mixwell.tables.candidates import COUNTS, CRITERIA, DISCRETE, FAMILIES, MCLUST, Candidate, Choice
from mixwell.tables.columns import Column, used
from mixwell.tables.kinds import CATEGORY, COUNT, KINDS

TYPES: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float), "bool": (bool,),
                                      "tuple[str, ...]": (list,)}
SUM_ERROR = 1e-6  # how far from 1 probabilities may add up


def columns_of(records: Any) -> tuple[Column, ...]:
    """The columns of a table from their records."""
    expect(isinstance(records, list) and records, "'columns' is no list of columns")
    columns = tuple(_column(record) for record in records)
    names = [column.name for column in columns]
    expect(_all_differ(names), "two columns have the same name")
    expect(used(columns), "no column takes part")
    return columns


def _all_differ(names: Sequence[str]) -> bool:
    return len(set(names)) == len(names)


def _column(record: Any) -> Column:
    column = Column(**_typed(Column, record, "a column"))
    where = f"column {shown(column.name)}: "
    expect(column.kind in KINDS, f"{where}unknown kind {shown(column.kind)}")
    expect(math.isfinite(column.center), f"{where}center is {shown(column.center)}")
    for name in ("scale", "floor"):
        value = getattr(column, name)
        expect(math.isfinite(value) and value > 0, f"{where}{name} is {shown(value)}")
    names = column.categories
    texts = all(isinstance(name, str) for name in names)
    expect(texts and _all_differ(names), f"{where}categories {shown(names)}")
    expect(names or column.kind != CATEGORY, f"{where}no categories")
    return column


def choice_of(record: Any, n_components: int) -> Choice:
    """The choice from its record; its best candidate must have `n_components`."""
    expect(isinstance(record, dict), "'choice' is no record")
    best, candidates = record["best"], record["candidates"]
    criterion, planned, notes = record["criterion"], record["planned"], record["notes"]
    expect(criterion in CRITERIA, f"unknown criterion {shown(criterion)}")
    expect(type(planned) is int, f"'planned' is {shown(planned)}")
    expect(isinstance(candidates, list), "'candidates' is no list")
    expect(isinstance(notes, list), "'notes' is no list")
    expect(all(isinstance(note, str) for note in notes), "a note is no text")
    chosen = _candidate(best)
    expect(chosen.n_components == n_components,
           f"the best candidate has {chosen.n_components} components, the model {n_components}")
    others = [_candidate(candidate) for candidate in candidates]
    searched, final = record.get("searched", 0), record.get("final")  # which folders of older versions lack
    expect(type(searched) is int and searched >= 0, f"'searched' is {shown(searched)}")
    last = None if final is None else _candidate(final)
    expect(last is None or last.n_components == n_components, "'final' has another number of components")
    return Choice(best=chosen, candidates=tuple(others), criterion=criterion, planned=planned, notes=tuple(notes),
                  searched=searched, final=last)


def _candidate(record: Any) -> Candidate:
    expect(isinstance(record, dict), "a candidate is no record")
    values = dict(record)
    for field in fields(Candidate):
        absent = values.get(field.name, 0) is None
        if absent and field.type == "float":
            values[field.name] = math.nan  # which JSON does not know
    candidate = Candidate(**_typed(Candidate, values, "a candidate"))
    known = {*FAMILIES, *MCLUST, DISCRETE}
    expect(candidate.family in known, f"unknown family {shown(candidate.family)}")
    expect(candidate.counts in {"", *COUNTS}, f"unknown family of counts {shown(candidate.counts)}")
    return candidate


def positive(record: Mapping[str, Any], name: str) -> float:
    """An entry that must be a number above 0."""
    value = record[name]
    if type(value) not in (int, float) or not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name!r} is {shown(value)}, expected a number above 0")
    return float(value)


def whole_number(record: Mapping[str, Any], name: str, least: int) -> int:
    """An entry that must be a whole number from `least`."""
    value = record[name]
    if type(value) is not int or value < least:
        raise ValueError(f"{name!r} is {shown(value)}, expected a whole number from {least}")
    return value


def _typed(kind: type, record: Any, what: str) -> dict[str, Any]:
    """The record's values, each of the type that the dataclass `kind` declares; lists become tuples."""
    expect(isinstance(record, dict), f"{what} is no record")
    types = {field.name: TYPES[str(field.type)] for field in fields(kind)}
    values = {}
    for name, value in record.items():
        expect(name in types, f"{what} has the unknown entry {shown(name)}")
        expect(type(value) in types[name], f"{what}: {name!r} is {shown(value)}")
        values[name] = tuple(value) if isinstance(value, list) else value
    return values


def shapes_of(block: Block, family: str, n_components: int) -> dict[str, tuple[int, ...]]:
    """Shape of every array of a block."""
    K = n_components
    D = len(block.columns)
    if block.kind == COUNT:
        return dict.fromkeys(block.estimator._attributes.values(), (K, D))
    if block.kind == CATEGORY:
        categories = sum(block.sizes)
        return {"_flat_probabilities": (K, categories)}
    shapes: dict[str, tuple[int, ...]] = {"means_": (K, D)}
    matrices: dict[str, tuple[int, ...]] = {"tied": (D, D), "diag": (K, D), "spherical": (K,)}
    own = matrices.get(block.estimator._layout, (K, D, D))
    for name in ("covariances_", "precisions_cholesky_", "precisions_"):
        shapes[name] = own
    if family == "student_t":
        shapes["dofs_"] = (K,)
    return shapes


def shaped(name: str, found: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """`found`, which must be finite floats of that shape."""
    expect(found.shape == shape, f"{name!r} has the shape {found.shape}, expected {shape}")
    words = f"{name!r} holds other than finite float64"
    expect(found.dtype == np.float64, words)
    expect(np.isfinite(found).all(), words)
    return found


def ranges(block: Block, family: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Refuse numbers of a block that no fit gives."""
    if block.kind == COUNT:
        for name, array in arrays.items():
            expect((array >= 0).all(), f"{name!r} is below 0")
    elif block.kind == CATEGORY:
        for part_KV in by_column(arrays["_flat_probabilities"], block):
            shares("_flat_probabilities", part_KV)
    else:
        _spreads(block.estimator._layout, arrays)


def by_column(flat: np.ndarray, block: Block) -> list[np.ndarray]:
    """Probabilities of a block's categories [K, all of them], an array for each column."""
    bounds = np.cumsum(block.sizes)
    return np.split(flat, bounds[:-1], axis=1)


def _spreads(layout: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Refuse variances, precisions and degrees of freedom that are not above 0."""
    matrices = layout in ("full", "tied")
    for name, array in arrays.items():
        if name == "means_":
            continue
        values = array
        if matrices and name != "dofs_":
            values = np.diagonal(array, axis1=-2, axis2=-1)
        expect((values > 0).all(), f"{name!r} is not above 0")


def shares(name: str, array: np.ndarray) -> None:
    """Refuse what are no probabilities along the last axis."""
    words = f"{name!r} are no probabilities"
    expect((array >= 0).all(), words)
    error = np.abs(array.sum(-1) - 1)
    expect(np.all(error <= SUM_ERROR), words)


def expect(true: object, words: str) -> None:
    """Raise ValueError(words) unless `true`."""
    if not true:
        raise ValueError(words)
