"""`mixwell fit`: a mixture model for a table, and labels for new rows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from mixwell.cli.errors import STOPPED, one_line, tell
from mixwell.core.errors import MixwellError

if TYPE_CHECKING:
    from mixwell.tables import FittedMixture
    from mixwell.tables.columns import Column

SHOWN = 8  # columns of one kind that the terminal names


@one_line(stopped="stopped; the same command begins anew")
def fit(data: Annotated[Path | None, typer.Argument(help="CSV or Parquet file, or a folder of them. Left out: the wine "
                                                         "data that scikit-learn ships.")] = None,
        components: Annotated[str, typer.Option(metavar="N, A-B or A,B,...", help="Numbers of components to "
                                                "try.")] = "1-8",
        family: Annotated[str, typer.Option(help="Of the numeric columns: auto, or some of full, tied, diag, "
                                                 "spherical, student_t, with commas between.")] = "auto",
        criterion: Annotated[str, typer.Option(help="What chooses: bic, icl, aic or cv.")] = "bic",
        column: Annotated[list[str] | None, typer.Option(metavar="NAME=KIND", help="How a column is taken: numeric, "
                                                         "count, category or skip.")] = None,
        against: Annotated[str | None, typer.Option(metavar="NAME", help="Leave this column out, and set it against "
                                                    "the components in the report.")] = None,
        starts: Annotated[int, typer.Option(min=1, help="Starts of every fit; the best is kept.")] = 4,
        folds: Annotated[int, typer.Option(min=2, help="Folds of cv.")] = 5,
        seed: Annotated[int, typer.Option(min=0, help="Seed of starts and samples.")] = 0,
        predict: Annotated[Path | None, typer.Option(metavar="MODEL_DIR", help="Label the rows of DATA with this "
                                                     "model instead.")] = None,
        unknown: Annotated[str, typer.Option(help="With --predict, what a category that the model does not know is "
                                                  "taken for: error or missing.")] = "error",
        out: Annotated[Path | None, typer.Option(help="Folder to write; with --predict a new Parquet file.  [default: "
                                                      "runs/fit-NAME; NAME-labels.parquet]")] = None) -> None:
    """Fit a mixture model to a table, choose its size and form, and write a model folder with a report.

    Numbers, counts and categories are told apart; missing values stay missing. Ctrl-C keeps the best model so far.

    **Examples**

    `mixwell fit` · the wine data that scikit-learn ships

    `mixwell fit data.csv --components 1-12 --column rooms=count --against city`

    `mixwell fit --predict runs/fit-data new.csv --out labels.parquet`
    """
    console = Console(highlight=False)
    if predict is not None:
        label(console, predict, data, out, unknown)
        return
    from mixwell import tables as lab_fit

    table, columns, against = lab_fit.prepare(data, parse_columns(column or []), against)
    target = out or Path("runs") / ("fit-" + re.sub(r"[^\w.-]+", "-", table.name))
    show_columns(console, table.name, len(table.frame), columns)
    with progress(console) as show:
        fitted = lab_fit.fit(table, components=parse_components(components), family=family, criterion=criterion,
                             columns=parse_columns(column or []), against=against, starts=starts, folds=folds,
                             seed=seed, out=target, progress=show)
    show_result(console, fitted)
    console.print(f"report: {target / 'report.html'}", soft_wrap=True)
    if fitted.choice.stopped:
        tell(f"stopped after {len(fitted.choice.candidates)} of {fitted.choice.planned} fits; the best so far is kept",
             STOPPED)


def label(console: Console, model: Path, data: Path | None, out: Path | None, unknown: str) -> None:
    """`--predict`."""
    if data is None:
        raise MixwellError("--predict needs a table to label: mixwell fit --predict MODEL_DIR rows.csv")
    from mixwell.core.units import counted
    from mixwell.tables import predict_file

    target = out or Path(f"{data.name.split('.')[0]}-labels.parquet")
    rows = predict_file(model, data, target, unknown=unknown)
    console.print(f"written: {target} ({counted(rows, 'row')})", soft_wrap=True)


def parse_components(text: str) -> list[int]:
    """`1-8`, `3` or `2,4,8`. Raises `MixwellError` for others, and beyond 1 to 1000."""
    numbers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        low = int(match[1]) if match else 0
        high = int(match[2] or low) if match else 0
        if not 1 <= low <= high <= 1000:
            raise MixwellError(f"--components: expected 1-8, 3 or 2,4,8 (from 1 to 1000), got {text!r}.")
        numbers += range(low, high + 1)
    return numbers


def parse_columns(words: Sequence[str]) -> dict[str, str]:
    """`NAME=KIND` each; the last `=` separates, names may hold others. Raises `MixwellError` for a word without `=`."""
    for word in words:
        if "=" not in word:
            raise MixwellError(f"--column: expected NAME=KIND, such as rooms=count, got {word!r}.")
    return {name: kind for name, _, kind in (word.rpartition("=") for word in words)}


@contextmanager
def progress(console: Console) -> Iterator[Any]:
    """A bar over the fits with the time left."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                  console=console, transient=True) as bar:
        task = bar.add_task("get ready", total=None)
        yield lambda done, total, words: bar.update(task, description=words, completed=done, total=total)


def show_columns(console: Console, name: str, rows: int, columns: Sequence[Column]) -> None:
    """What is used and how, and what is left out and why."""
    from mixwell.core.units import counted
    from mixwell.tables.view import KIND_WORDS

    console.print(f"{name}: {counted(rows, 'row')}", markup=False, soft_wrap=True)
    for kind, words in KIND_WORDS.items():
        own = [_with_note(column) for column in columns if column.kind == kind]
        if own:
            word = words[len(own) > 1]
            more = f" and {len(own) - SHOWN} more" if len(own) > SHOWN else ""
            console.print(f"  {word:<10} {', '.join(own[:SHOWN])}{more}", markup=False, soft_wrap=True)
    missing = {c.name: c.missing for c in columns if c.missing and c.kind != "skip"}
    if missing:
        values, places = counted(sum(missing.values()), "value"), counted(len(missing), "column")
        console.print(f"  missing    {values} in {places}, kept as missing", markup=False, soft_wrap=True)


def _with_note(column: Column) -> str:
    if not column.note:
        return column.name
    return f"{column.name} ({column.note})"


def show_result(console: Console, fitted: FittedMixture) -> None:
    """The choice in a few lines."""
    from mixwell.tables.view import lead, verdict

    usable = [c for c in fitted.choice.candidates if not c.refused]
    for line in (lead(fitted), verdict(fitted, usable), *fitted.choice.notes):
        if line:
            console.print(line, markup=False, soft_wrap=True)
