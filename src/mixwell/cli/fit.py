"""`mixwell fit`: a mixture model for a table, and labels for new rows."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from mixwell.cli.errors import STOPPED, one_line, tell
from mixwell.cli.pools import RAY, pool_of
from mixwell.core.errors import MixwellError, on_one_line

if TYPE_CHECKING:
    from mixwell.tables import FittedMixture
    from mixwell.tables.columns import Column
    from mixwell.tables.missing import Form
    from mixwell.tables.preparing import Prepared
    from mixwell.tables.reading import Table

SHOWN = 40  # columns that the terminal describes
LONGEST = 24  # letters of a name in it
DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "bar": "|", "space": " "}
SEARCHED = typer.Option(metavar="N|all", help="Random rows that the search looks at; the best is then fitted to all.")


@one_line(stopped="stopped; the same command begins anew")
def fit(data: Annotated[Path | None, typer.Argument(help="A table: CSV and other text, .xlsx, .parquet, .feather, "
                                                         ".jsonl, packed or not; a folder of them; - for standard "
                                                         "input. Left out: the wine data that scikit-learn "
                                                         "ships.")] = None,
        components: Annotated[str | None, typer.Option(metavar="N, A-B or A,B,...", help="Numbers of components to "
                                                       "try.  [default: 1-8, and more while the largest is the "
                                                       "best]")] = None,
        family: Annotated[str, typer.Option(help="Of the numeric columns: auto, mclust (all of its "
                                                 "fourteen), or some of full, tied, diag, spherical, student_t, EII to "
                                                 "VVV, with commas between.")] = "auto",
        criterion: Annotated[str, typer.Option(help="What chooses: bic, icl, aic or cv.")] = "bic",
        column: Annotated[list[str] | None, typer.Option(metavar="NAME=KIND", help="How a column is taken: numeric, "
                                                         "count, category or skip.")] = None,
        columns: Annotated[str | None, typer.Option(metavar="NAME,NAME,...", help="The columns to use; all others "
                                                    "are left out.")] = None,
        against: Annotated[str | None, typer.Option(metavar="NAME", help="Leave this column out, and set it against "
                                                    "the components in the report.")] = None,
        weights: Annotated[str | None, typer.Option(metavar="NAME", help="Column of weights of the rows: whole numbers "
                                                    "are frequencies, others survey weights.")] = None,
        delimiter: Annotated[str, typer.Option(help="What separates fields: a sign, or comma, semicolon, tab, bar, "
                                                    "space.  [default: found out]")] = "",
        decimal: Annotated[str, typer.Option(help="Decimal sign: . or ,  [default: found out]")] = "",
        thousands: Annotated[str, typer.Option(help="Sign between thousands: , or .  [default: found out]")] = "",
        encoding: Annotated[str, typer.Option(help="Encoding of the text.  [default: found out]")] = "",
        missing: Annotated[str, typer.Option(metavar="MARK,MARK,...", help="What else stands for a missing value, such "
                                             "as -999.")] = "",
        header: Annotated[str, typer.Option(help="Whether a line names the columns: yes or no.  [default: found "
                                                 "out]")] = "",
        skip_rows: Annotated[int | None, typer.Option(min=0, help="Lines above the table to leave out.  [default: "
                                                      "found out]")] = None,
        starts: Annotated[int, typer.Option(min=1, help="Starts of every fit; the best is kept.")] = 4,
        folds: Annotated[int, typer.Option(min=2, help="Folds of cv.")] = 5,
        seed: Annotated[int, typer.Option(min=0, help="Seed of starts and samples.")] = 0,
        search_rows: Annotated[str, SEARCHED] = "50000",
        predict: Annotated[Path | None, typer.Option(metavar="MODEL_DIR", help="Label the rows of DATA with this "
                                                     "model instead.")] = None,
        unknown: Annotated[str, typer.Option(help="With --predict, what a category that the model does not know is "
                                                  "taken for: error or missing.")] = "error",
        ray: Annotated[str | None, RAY] = None,
        json: Annotated[bool, typer.Option("--json", help="Print what the report says as JSON, and nothing "
                                           "else.")] = False,
        out: Annotated[Path | None, typer.Option(help="Folder to write; with --predict a new Parquet file.  [default: "
                                                      "runs/fit-NAME; NAME-labels.parquet]")] = None) -> None:
    """Fit a mixture model to a table, choose its size and form, and write a model folder with a report.

    Numbers, counts and categories are told apart; missing values stay missing. Ctrl-C keeps the best model so far.

    **Examples**

    `mixwell fit` · the wine data that scikit-learn ships

    `mixwell fit data.csv --components 1-12 --column rooms=count --against city`

    `mixwell fit daten.csv --decimal , --missing -999 --weights anzahl`

    `mixwell fit --predict runs/fit-data new.csv --out labels.parquet`
    """
    console = Console(highlight=False, stderr=json)
    form = parse_form(delimiter, decimal, thousands, encoding, missing, header, skip_rows)
    searched = parse_rows(search_rows)
    if predict is not None:
        _refuse_ray(ray)
        label(console, predict, data, out, unknown, form)
        return
    from mixwell import tables as lab_fit

    with console.status(f"read {data or 'the wine data'}"):
        ready = lab_fit.prepare(data, parse_columns(column or []), against, only=_names(columns), weights=weights,
                                form=form)
    target = out or Path("runs") / ("fit-" + re.sub(r"[^\w.-]+", "-", ready.table.name))
    show_columns(console, ready)
    numbers = None if components is None else parse_components(components)
    with pool_of(ray, console, threads=None) as pool, progress(console) as show:
        fitted = lab_fit.fit(ready, components=numbers, family=family, criterion=criterion, starts=starts, folds=folds,
                             seed=seed, search_rows=searched, out=target, progress=show, pool=pool)
    if json:
        sys.stdout.write((target / "report.json").read_text(encoding="utf-8"))
    show_result(console, fitted)
    console.print(f"report: {target / 'report.html'}", soft_wrap=True)
    _tell_stopped(fitted)


def _refuse_ray(ray: str | None) -> None:
    if ray is not None:
        raise MixwellError("--predict fits nothing; leave --ray out.")


def _tell_stopped(fitted: FittedMixture) -> None:
    found = fitted.choice
    if found.stopped:
        tell(f"stopped after {found.done} of {found.planned} fits; the best so far is kept", STOPPED)


def label(console: Console, model: Path, data: Path | None, out: Path | None, unknown: str, form: Form) -> None:
    """`--predict`."""
    if data is None:
        raise MixwellError("--predict needs a table to label: mixwell fit --predict MODEL_DIR rows.csv")
    from mixwell.core.units import counted
    from mixwell.tables import predict_file

    target = out or Path(f"{data.name.split('.')[0]}-labels.parquet")
    rows = predict_file(model, data, target, unknown=unknown, form=form)
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


def parse_rows(text: str) -> int | None:
    """A number of rows, or `all` (None). Raises `MixwellError` for others."""
    if text == "all":
        return None
    if not text.isascii() or not text.isdigit():
        raise MixwellError(f"--search-rows: expected a number of rows, or all, got {text!r}.")
    return int(text)


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


def parse_form(delimiter: str, decimal: str, thousands: str, encoding: str, missing: str, header: str,
               skip_rows: int | None) -> Form:
    """What the options say of how the table is written."""
    from mixwell.tables.missing import Form

    headers = {"": None, "yes": True, "no": False}
    if header not in headers:
        raise MixwellError(f"--header: expected yes or no, got {header!r}.")
    sign = DELIMITERS.get(delimiter, delimiter)
    if len(sign) > 1:
        raise MixwellError(f"--delimiter: expected one sign or {', '.join(DELIMITERS)}, got {delimiter!r}.")
    for name, value in (("decimal", decimal), ("thousands", thousands)):
        if value not in ("", ".", ","):
            raise MixwellError(f"--{name}: expected . or , and got {value!r}.")
    if decimal and decimal == thousands:
        raise MixwellError(f"--decimal and --thousands are both {decimal!r}; one of them is another sign.")
    marks = tuple(_names(missing) or ())
    return Form(delimiter=sign, decimal=decimal, thousands=thousands, encoding=encoding, missing=marks,
                header=headers[header], skip_rows=skip_rows)


def _names(text: str | None) -> list[str] | None:
    """`a,b`"""
    if not text:
        return None
    names = [name.strip() for name in text.split(",")]
    return [name for name in names if name]


def show_columns(console: Console, ready: Prepared) -> None:
    """How the file was read; every column with its kind, why, what is missing and how it is written."""
    from mixwell.core.units import counted

    table = ready.table
    _print(console, f"{table.name}: {counted(len(table.frame), 'row')}, {counted(len(ready.columns), 'column')}")
    for note in table.notes:
        _print(console, f"  {note}")
    rows: list[tuple[str, ...]] = [("column", "used as", "missing", "as written", "why")]
    rows += [_column_row(column, table) for column in ready.columns[:SHOWN]]
    widths = [max(map(len, cells)) for cells in zip(*rows)]
    for row in rows:
        padded = [cell.ljust(width) for cell, width in zip(row, widths)]
        _print(console, f"  {'  '.join(padded)}".rstrip())
    more = len(ready.columns) - SHOWN
    if more > 0:
        _print(console, f"  and {counted(more, 'more column')}; the report has all of them")


def _print(console: Console, line: str) -> None:
    console.print(on_one_line(line), markup=False, soft_wrap=True)


def _column_row(column: Column, table: Table) -> tuple[str, ...]:
    from mixwell.tables.view import KIND_WORDS, as_written, reasons, shortened

    kind, _ = KIND_WORDS[column.kind]
    examples, missing = as_written(column, table)
    return shortened(column.name, LONGEST), kind, missing, examples, reasons(column)


def show_result(console: Console, fitted: FittedMixture) -> None:
    """The choice in a few lines."""
    from mixwell.tables.view import lead, verdict

    for line in (lead(fitted), verdict(fitted, fitted.choice.usable), *fitted.choice.notes):
        if line:
            console.print(line, markup=False, soft_wrap=True)
