"""Mixture models for tables: which columns, which family, how many components, a model folder and a report.

    fitted = fit("data.csv", out="runs/fit-data")     # mixture.json, model.safetensors, labels.parquet, report.html
    load("runs/fit-data").predict("new.csv")          # component, probabilities, log density of every row
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mixwell.core.errors import MixwellError
from mixwell.core.files import whole_folder, write_text
from mixwell.core.interrupts import postponed
from mixwell.formats.tensors import SINGLE
from mixwell.report.targets import check_file, check_folder, refusals
from mixwell.tables import reading as tables
from mixwell.tables.columns import SKIP, Column, choose, encode
from mixwell.tables.model import FILE, FittedMixture, load
from mixwell.tables.search import CRITERIA, Progress, choose_mixture, families_of

__all__ = ["FittedMixture", "default_table", "fit", "load", "predict_file", "prepare"]

WRITTEN = {FILE, SINGLE, "labels.parquet", "report.html"}
WRITING = "write the report; Ctrl-C again ends without it"


def default_table() -> tables.Table:
    """The wine data that scikit-learn ships: 13 measurements of 178 wines, and the cultivar of each."""
    tables.require()
    from sklearn.datasets import load_wine

    loaded = load_wine(as_frame=True)
    frame = loaded.data.rename(columns={"od280/od315_of_diluted_wines": "od280/od315"})
    return tables.Table(frame.assign(cultivar=loaded.target_names[loaded.target]), "wine")


def fit(table: Any = None, *, components: Iterable[int] = range(1, 9), family: str = "auto", criterion: str = "bic",
        columns: Mapping[str, str] | None = None, against: str | None = None, starts: int = 4, folds: int = 5,
        seed: int = 0, out: str | Path | None = None, progress: Progress | None = None) -> FittedMixture:
    """Fit mixtures to a table and keep the best.

    table: a path (CSV, Parquet, a folder of them), a DataFrame, a mapping of columns or an array; None for the wine
    data that scikit-learn ships. components: numbers to try. family: auto, or some of full, tied, diag, spherical,
    student_t with commas between. criterion: bic, icl, aic or cv (over `folds`). columns: overrules by name how a
    column is taken (numeric, count, category, skip). against: a column that is left out and set against the components
    in the report. out: folder for model, labels and report; it appears whole or not at all. progress: called before
    every fit with fits done, fits in all, and what comes next.

    Ctrl-C ends the search and keeps the best so far (`choice.stopped`); while the folder is written, only the
    second one interrupts. What is wrong with the table raises `MixwellError`, which names column and row.
    """
    began, started = time.perf_counter(), datetime.now(UTC)
    if criterion not in CRITERIA:
        raise MixwellError(f"unknown criterion {criterion!r}; expected one of {', '.join(CRITERIA)}.")
    if out is not None:
        check_target(out)
    source, chosen, against = prepare(table, columns, against)
    x_ND = encode(source, chosen)
    model, choice = choose_mixture(x_ND, chosen, components=components, families=families_of(family, chosen),
                                   criterion=criterion, folds=folds, starts=starts, seed=seed, progress=progress)
    fitted = FittedMixture(columns=tuple(chosen), estimator=model, choice=choice, source=source.name, rows=len(x_ND),
                           seed=seed)
    if out is not None:
        # a search of hours is not lost in the seconds of its report
        with postponed(lambda: progress and progress(choice.planned, choice.planned, WRITING)):
            write(fitted, source, x_ND, out, against=against, started=started, seconds=time.perf_counter() - began)
    return fitted


def prepare(table: Any, wanted: Mapping[str, str] | None = None,
            against: str | None = None) -> tuple[tables.Table, list[Column], str | None]:
    """The table read, what becomes of each column, and the column to compare with (`fit` says what they are)."""
    source = default_table() if table is None else tables.of(table)
    if table is None:
        against = against or "cultivar"
    kinds = dict(wanted or {})
    if against:
        kinds[against] = SKIP
    chosen = choose(source, kinds)
    for place, column in enumerate(chosen):
        if column.name == against:
            chosen[place] = replace(column, note="compared with the components afterwards")
    return source, chosen, against


def write(fitted: FittedMixture, table: tables.Table, x_ND: Any, out: str | Path, *, against: str | None,
          started: datetime, seconds: float) -> Path:
    """Model, labels and report of a fit, as one folder; returns it."""
    from mixwell.report.page import render
    from mixwell.tables.view import contents

    labels = fitted.label(x_ND)
    page = render("fit.html", **contents(fitted, table, x_ND, labels, against=against, started=started,
                                         seconds=seconds))
    check_target(out)
    with refusals(out), whole_folder(out) as folder:
        fitted.save(folder)
        tables.write_parquet(folder / "labels.parquet", labels)
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


def predict_file(model: str | Path, table: Any, out: str | Path, *, unknown: str = "error") -> int:
    """Label a table's rows with the model of a folder into a new Parquet file; returns the number of rows."""
    fitted = load(model)
    check_labels(out, model, table)
    labels = fitted.predict(table, unknown=unknown)
    with refusals(out):
        tables.write_parquet(out, labels)
    return len(labels)
