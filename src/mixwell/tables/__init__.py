"""Mixture models for tables: which columns, which family, how many components, a model folder and a report.

    fitted = fit("data.csv", out="runs/fit-data")     # mixture.json, model.safetensors, labels.parquet, report.html
    load("runs/fit-data").predict("new.csv")          # component, probabilities, log density of every row
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from mixwell.core.errors import MixwellError
from mixwell.core.files import whole_folder, write_json, write_text
from mixwell.core.interrupts import postponed
from mixwell.formats.tensors import SINGLE
from mixwell.report.targets import check_file, check_folder, refusals
from mixwell.tables import reading as tables
from mixwell.tables.candidates import AS_MEASURED, CRITERIA, Progress, families_of
from mixwell.tables.columns import encode, in_one_scale
from mixwell.tables.missing import Form
from mixwell.tables.model import FILE, FittedMixture, load
from mixwell.tables.preparing import Prepared, default_table, prepare
from mixwell.tables.search import SEARCHED, choose_mixture

__all__ = ["FittedMixture", "Form", "default_table", "fit", "load", "predict_file", "prepare"]

WRITTEN = {FILE, SINGLE, "labels.parquet", "report.html", "report.json"}
WRITING = "write the report; Ctrl-C again ends without it"


def fit(table: Any = None, *, components: Iterable[int] | None = None, family: str = "auto", criterion: str = "bic",
        columns: Mapping[str, str] | None = None, only: Sequence[str] | None = None, against: str | None = None,
        weights: str | None = None, form: Form | None = None, starts: int = 4, folds: int = 5, seed: int = 0,
        search_rows: int | None = SEARCHED, out: str | Path | None = None, progress: Progress | None = None,
        pool: Executor | None = None) -> FittedMixture:
    """Fit mixtures to a table and keep the best.

    table: a path (CSV, Parquet, a folder of them), a DataFrame, a mapping of columns or an array, what `prepare`
    returned; None for the wine data that scikit-learn ships. components: numbers to try; None: 1 to 8, and more as long
    as the largest is the best. family: auto, some of full, tied, diag, spherical, student_t and mclust's EII to VVV
    with commas between, or mclust for all fourteen of these. With those that mean another thing in other units (EII,
    VII, EVE, VVE, EEV, VEV) columns stay as they were measured, else they are in their own standard deviations.
    criterion: bic, icl, aic or cv (over `folds`). columns: overrules by name how a column is taken (numeric, count,
    category, skip). only: the columns that take part. against: a column that is left out and set against the components
    in the report. weights: a column of weights; whole numbers are frequencies, others survey weights. form: how the
    file is written, where it is to be told. search_rows: how many rows, drawn at random, candidates are fitted to; the
    best is then fitted to all rows; None: all. out: folder for model, labels and report; it appears whole or not at
    all. progress: called before every fit with fits done, fits in all, and what comes next. pool: where candidates are
    fitted (`parallel.pools.ray_pool`); without one here, one after the other, to the same numbers.

    Ctrl-C ends the search and keeps the best so far (`choice.stopped`); while the folder is written, only the
    second one interrupts. What is wrong with the table raises `MixwellError`, which names column and row.
    """
    began, started = time.perf_counter(), datetime.now(UTC)
    components = None if components is None else list(components)
    if criterion not in CRITERIA:
        raise MixwellError(f"unknown criterion {criterion!r}; expected one of {', '.join(CRITERIA)}.")
    if search_rows is not None and search_rows < 2:
        raise MixwellError(f"search_rows is {search_rows}; expected at least 2 rows, or None for all of them.")
    if out is not None:
        check_target(out)
    ready = table if isinstance(table, Prepared) else prepare(table, columns, against, only=only, weights=weights,
                                                              form=form)
    families = families_of(family, ready.columns)
    if set(families) & set(AS_MEASURED):
        ready = replace(ready, columns=in_one_scale(ready.columns))
    x_ND = encode(ready.table, ready.columns)
    taken_N, each_N = _weighted(ready)
    model, choice = choose_mixture(x_ND[taken_N], ready.columns, components=components, families=families,
                                   criterion=criterion, folds=folds, starts=starts, seed=seed, weights_N=each_N,
                                   search_rows=search_rows, progress=progress, pool=pool)
    total = float(len(x_ND)) if each_N is None else float(each_N.sum())
    words = f"{ready.weights.column}: {ready.weights.note}" if ready.weights else ""
    fitted = FittedMixture(columns=tuple(ready.columns), estimator=model, choice=choice, source=ready.table.name,
                           rows=len(x_ND), seed=seed, total=total, weights=words)
    options = {"components": components, "family": family, "criterion": criterion, "starts": starts, "folds": folds,
               "seed": seed, "search_rows": search_rows}
    ready = replace(ready, asked={**ready.asked, **options})
    if out is not None:
        # a search of hours is not lost in the seconds of its report
        if progress:
            progress(choice.planned, choice.planned, "write labels and report")
        with postponed(lambda: progress and progress(choice.planned, choice.planned, WRITING)):
            write(fitted, ready, x_ND, out, started=started, seconds=time.perf_counter() - began)
    return fitted


def _weighted(ready: Prepared) -> tuple[np.ndarray | slice, np.ndarray | None]:
    """Which rows take part, and their weights; a row of weight zero does not."""
    if ready.weights is None:
        return slice(None), None
    taken_N = ready.weights.each_N > 0
    return taken_N, ready.weights.each_N[taken_N]


def write(fitted: FittedMixture, ready: Prepared, x_ND: np.ndarray, out: str | Path, *, started: datetime,
          seconds: float) -> Path:
    """Model, labels and report of a fit, as one folder; returns it."""
    from mixwell.report.page import render
    from mixwell.tables.record import record
    from mixwell.tables.sureness import sureness
    from mixwell.tables.view import contents

    labels = fitted.label(x_ND)
    each_N = ready.weights.each_N if ready.weights else None
    intervals = sureness(fitted, x_ND, each_N)
    shown = contents(fitted, ready, x_ND, labels, intervals, started=started, seconds=seconds)
    page = render("fit.html", **shown)
    check_target(out)
    with refusals(out), whole_folder(out) as folder:
        fitted.save(folder)
        tables.write_parquet(folder / "labels.parquet", labels)
        write_json(folder / "report.json", record(fitted, ready, x_ND, labels, intervals))
        write_text(folder / "report.html", page)
    return Path(out)


def check_target(out: str | Path) -> None:
    """Refuse a folder that cannot be written, or holds something else: what is written takes its place as a whole."""
    path = Path(out)
    check_folder(path, own=(FILE,))
    if path.resolve() == Path.cwd():
        raise MixwellError(f"{path.resolve()} is the folder you are in; name another with --out.")
    entries = path.iterdir() if path.is_dir() else ()
    inside = {entry.name for entry in entries}
    others = sorted(inside - WRITTEN)
    foreign = [name for name in others if not name.startswith(".")]
    if foreign:
        raise MixwellError(f"{path} holds {foreign[0]!r} beside a fit, which would be lost; move it, or name another "
                           "folder with --out.")


def check_labels(out: str | Path, model: str | Path, table: Any = None) -> None:
    """Refuse a file that is there already, cannot be written, or lies in the folder of the model or of the table."""
    path = Path(out)
    check_file(path)
    source = Path(table).resolve() if isinstance(table, (str, Path)) else None
    real = path.resolve()
    if real == source:
        raise MixwellError(f"{path} is the table to label; name another file with --out.")
    in_model = real.is_relative_to(Path(model).resolve())
    in_table = real.parent == source and source.is_dir()
    if in_model or in_table:
        raise MixwellError(f"{path} lies in the folder of the model or of the table; name a file elsewhere with --out.")
    if path.exists() or path.is_symlink():
        raise MixwellError(f"{path} is there already; remove it, or name another file with --out.")


def predict_file(model: str | Path, table: Any, out: str | Path, *, unknown: str = "error",
                 form: Form | None = None) -> int:
    """Label a table's rows with the model of a folder into a new Parquet file; returns the number of rows."""
    fitted = load(model)
    check_labels(out, model, table)
    labels = fitted.predict(table, unknown=unknown, form=form)
    with refusals(out):
        tables.write_parquet(out, labels)
    return len(labels)
