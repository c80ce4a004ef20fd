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
from mixwell.lab import tables
from mixwell.lab.fit.columns import SKIP, Column, choose, encode
from mixwell.lab.fit.model import FILE, FittedMixture, load
from mixwell.lab.fit.search import CRITERIA, Told, choose_mixture, families_of

__all__ = ["FittedMixture", "default_table", "fit", "load", "predict_file", "prepare"]


def default_table() -> tables.Table:
    """The wine data that scikit-learn ships: 13 measurements of 178 wines, and the cultivar of each."""
    tables.require()
    from sklearn.datasets import load_wine

    loaded = load_wine(as_frame=True)
    frame = loaded.data.rename(columns={"od280/od315_of_diluted_wines": "od280/od315"})
    return tables.Table(frame.assign(cultivar=loaded.target_names[loaded.target]), "wine")


def fit(table: Any = None, *, components: Iterable[int] = range(1, 9), family: str = "auto", criterion: str = "bic",
        columns: Mapping[str, str] | None = None, against: str | None = None, starts: int = 4, folds: int = 5,
        seed: int = 0, out: str | Path | None = None, told: Told | None = None) -> FittedMixture:
    """Fit mixtures to a table and keep the best.

    table: a path (CSV, Parquet, a folder of them), a DataFrame, a mapping of columns or an array; None for the wine
    data that scikit-learn ships. components: numbers to try. family: auto, or some of full, tied, diag, spherical,
    student_t with commas between. criterion: bic, icl, aic or cv (over `folds`). columns: overrules by name how a
    column is taken (numeric, count, category, skip). against: a column that is left out and set against the components
    in the report. out: folder for model, labels and report; it appears whole or not at all. told: called before every
    fit with fits done, fits in all, and what comes next.

    Ctrl-C ends the search and keeps the best so far (`choice.stopped`). What is wrong with the table raises
    `MixwellError`, which names column and row.
    """
    began, started = time.perf_counter(), datetime.now(UTC)
    if criterion not in CRITERIA:
        raise MixwellError(f"unknown criterion {criterion!r}; expected one of {', '.join(CRITERIA)}.")
    if out is not None:
        check_target(out)
    source, chosen, against = prepare(table, columns, against)
    x_ND = encode(source, chosen)
    model, choice = choose_mixture(x_ND, chosen, components=components, families=families_of(family, chosen),
                                   criterion=criterion, folds=folds, starts=starts, seed=seed, told=told)
    fitted = FittedMixture(columns=tuple(chosen), estimator=model, choice=choice, source=source.name, rows=len(x_ND),
                           seed=seed)
    if out is not None:
        write(fitted, source, x_ND, out, against=against, started=started, seconds=time.perf_counter() - began)
    return fitted


def prepare(table: Any, wanted: Mapping[str, str] | None = None,
            against: str | None = None) -> tuple[tables.Table, list[Column], str | None]:
    """The table read, what becomes of each column, and the column to compare with (`fit` says what they are)."""
    source = default_table() if table is None else tables.of(table)
    against = against or ("cultivar" if table is None else None)
    chosen = choose(source, {**(wanted or {}), **({against: SKIP} if against else {})})
    note = "compared with the components afterwards"
    return source, [replace(c, note=note) if c.name == against else c for c in chosen], against


def write(fitted: FittedMixture, table: tables.Table, x_ND: Any, out: str | Path, *, against: str | None,
          started: datetime, seconds: float) -> Path:
    """Model, labels and report of a fit, as one folder; returns it."""
    from mixwell.lab.report import render
    from mixwell.lab.views.fit import contents

    labels = fitted.label(x_ND)
    page = render("fit.html", **contents(fitted, table, x_ND, labels, against=against, started=started,
                                         seconds=seconds))
    check_target(out)
    with whole_folder(out) as folder:
        fitted.save(folder)
        tables.write_parquet(folder / "labels.parquet", labels)
        write_text(folder / "report.html", page)
    return Path(out)


def check_target(out: str | Path) -> None:
    """Refuse a folder that holds something else: what is written takes the whole folder's place."""
    path = Path(out)
    if path.is_file() or (path.is_dir() and any(path.iterdir()) and not (path / FILE).is_file()):
        raise MixwellError(f"{path} is there and is no fit of mixwell's; name another folder with --out.")


def predict_file(model: str | Path, table: Any, out: str | Path, *, unknown: str = "error") -> int:
    """Label a table's rows with the model of a folder into a Parquet file; returns the number of rows."""
    fitted = load(model)
    labels = fitted.predict(table, unknown=unknown)
    if Path(out).is_dir():
        raise MixwellError(f"{out} is a folder; expected a file to write, such as labels.parquet.")
    tables.write_parquet(out, labels)
    return len(labels)
