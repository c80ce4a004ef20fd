"""`mixwell scale`: a scaling law fitted to a table of runs, and the best model under a budget."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from mixwell.cli.amounts import amounts, columns, numbers
from mixwell.cli.errors import one_line
from mixwell.cli.written import check_writable, written
from mixwell.core import units
from mixwell.core.errors import MixwellError

if TYPE_CHECKING:
    from mixwell.scaling.budget import Best, Budget
    from mixwell.scaling.law import Curve, Fit

FAMILY = "scaling.laws"
LIMITS = {"flops": "flops", "memory": "memory_bytes"}  # as written -> field of the budget
SIZES = 40  # of candidates for the next run


@one_line
def scale(table: Annotated[Path | None, typer.Argument(help="CSV or Parquet file, one row a run. Left out: the law as "
                                                            "its paper gives it.")] = None,
          law: Annotated[str, typer.Option(help="Law of scaling.laws, such as chinchilla, joint_moe, granularity, "
                                                "sparsity.")] = "chinchilla",
          rename: Annotated[str, typer.Option(metavar="COLUMN=NAME,...", help="Names that the table has for the law's "
                                              "columns and the loss, such as n=params,loss=val_loss.")] = "",
          budget: Annotated[str, typer.Option(metavar="NAME=AMOUNT,...", help="flops of training, memory in bytes, "
                                              "such as flops=1e21,memory=80G.")] = "",
          choose: Annotated[list[str] | None, typer.Option(metavar="COLUMN=A,B,...", help="What another column of the "
                                                           "law may be, such as e=1,2,4,8.")] = None,
          at: Annotated[list[str] | None, typer.Option(metavar="COLUMN=A,B,...", help="Models whose loss is predicted, "
                                                       "such as --at n=7G --at d=1T.")] = None,
          coordinates: Annotated[str, typer.Option(metavar="WIDTHS", help="Instead of a law, the coordinate check: how "
                                                   "activations move with width, such as 64,128,256,512.")] = "",
          draws: Annotated[int, typer.Option(min=20, help="Bootstrap draws for the intervals.")] = 200,
          seed: Annotated[int, typer.Option(min=0, help="Of starts and draws.")] = 0,
          report: Annotated[Path | None, typer.Option(metavar="FILE", help="Write an HTML report: the law's lines with "
                                                    "bands, residuals, and all of what is printed.")] = None,
        json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all of it as JSON.")] = None) -> None:
    """Fit a scaling law, say how well it extrapolates, and choose the best model under a budget, with intervals.

    **Examples**

    `mixwell scale runs.csv --law chinchilla --budget flops=1e21` · size and tokens for that budget

    `mixwell scale --coordinates 64,128,256,512 --report check.html` · does a learning rate carry over to wider models?

    `mixwell scale --law joint_moe --budget flops=1e22,memory=80G --choose e=1,2,4,8,16` · by the published law
    """
    import numpy as np

    check_writable(report, json)
    if coordinates:
        if table is not None or rename or budget or choose or at:
            raise MixwellError("--coordinates trains models of its own; leave out the table, --rename, --budget, "
                               "--choose and --at, which a law has.")
        check_coordinates(Console(highlight=False), coordinates, report, json)
        return
    if report is not None and table is None:
        raise MixwellError("--report: a published law has no runs to show; give a table of runs.")
    console = Console(highlight=False)
    found: dict[str, Any] = {"law": law}
    own = _law(law)
    free = [name for name in own.columns if name not in ("n", "d")]
    choices = columns(choose or [], free, "--choose")
    asked = columns(at or [], own.columns, "--at")
    limits = _budget(budget)
    if choices and limits is None:
        raise MixwellError("--choose says what the best model under a budget may be; add --budget, or leave it out.")
    if table is None:
        curve, sample = _published(own, law), []
    else:
        fit = _fitted(own, table, rename, np.random.default_rng(seed))
        sample = fit.bootstrap(draws, np.random.default_rng(seed))
        found["fit"] = show_fit(console, law, fit, sample)
        curve = fit
    if asked:
        found["predicted"] = show_predictions(console, curve, sample, asked)
    if limits is not None:
        found["best"] = show_best(console, curve, sample, limits, choices)
    if report is not None:
        from mixwell.report import scale_page

        written(console, report, scale_page.page(found, table.name if table else law))
    if json is not None:
        written(console, json, found)


def check_coordinates(console: Console, widths: str, report: Path | None, json: Path | None) -> None:
    """Train small models of several widths for a few steps, and say whose activations grow."""
    from mixwell.core.config import from_dict
    from mixwell.lm.widths import MAXIMAL, STANDARD, Check
    from mixwell.lm.widths import coordinates as checked
    from mixwell.report import coordinates_page

    asked = numbers(widths, "--coordinates")
    whole = [int(width) if width.is_integer() else width for width in asked]
    check = from_dict(Check, {"widths": whole}, "--coordinates")
    found = checked(check)
    console.print("exponents of width at the start and once trained:")
    for name, cells in coordinates_page.exponents(found):
        texts = [text for text, _ in cells]
        console.print(f"  {name:<24} {texts[0]:>6} {texts[1]:>6}   {texts[2]:>6} {texts[3]:>6}")
    for parametrisation in (STANDARD, MAXIMAL):
        console.print(coordinates_page.verdict(found, parametrisation), soft_wrap=True)
    if report is not None:
        written(console, report, coordinates_page.page(found))
    if json is not None:
        written(console, json, found)


def _law(name: str) -> Any:
    from mixwell.core import registry

    entry = registry.find(name, FAMILY)
    if "law" not in entry.tags:
        raise MixwellError(f"{entry.name} is no law of the loss that a table is fitted with; see "
                           f"`mixwell list {FAMILY}`.")
    return entry.load()()


def _published(law: Any, name: str) -> Curve:
    if not law.published:
        raise MixwellError(f"the paper's parameters of {name} are not known here; give a table of runs.")
    return law.curve(law.published)


def _fitted(law: Any, table: Path, rename: str, generator: Any) -> Fit:
    from mixwell.tables import reading

    frame = reading.read(table).frame
    names = {written: column for column, written in _pairs(rename).items()}
    return law.fit(frame.rename(columns=names), generator=generator)


def _pairs(text: str) -> dict[str, str]:
    found = {}
    for part in filter(None, text.split(",")):
        column, separator, written = part.partition("=")
        if not separator:
            raise MixwellError(f"--rename: expected COLUMN=NAME, such as n=params, got {part!r}.")
        found[column.strip()] = written.strip()
    return found


def _budget(text: str) -> Budget | None:
    from mixwell.core.config import from_dict
    from mixwell.scaling.budget import Budget

    given = amounts(text, LIMITS, "--budget")
    if not given:
        return None
    if "flops" not in given:
        raise MixwellError("--budget: flops is missing; expected flops=1e21, say, and memory=80G beside it where it "
                           "counts.")
    fields = {LIMITS[name]: value for name, value in given.items()}
    return from_dict(Budget, fields, "--budget")


def show_fit(console: Console, name: str, fit: Fit, sample: list[Fit]) -> dict[str, Any]:
    """Print how well the law fits and reaches, and its parameters with intervals; returns the same as data."""
    from mixwell.report import scale_page

    found = scale_page.record(fit, sample, name)
    runs = units.counted(len(fit.losses_N), "run")
    console.print(f"{name}: {runs}, {units.percent(found['spread'], 2)} of the loss off")
    console.print(_reached(found), soft_wrap=True)
    for parameter, one in found["parameters"].items():
        reach = f"{units.number(one['low'])} to {units.number(one['high'])}"
        console.print(f"  {parameter:<8} {units.number(one['value'], 4):>10}   {reach}")
    return found


def _reached(found: Mapping[str, Any]) -> str:
    error = found["largest_left_out"]
    if error is None:
        return f"how far it reaches cannot be told: without its largest fifth, {found['why_not']}"
    held = f"{found['inside']} of {found['left_out']}"
    missed = units.percent(error, 2)
    return f"fitted without the largest fifth of the runs, it misses these by {missed}; its intervals hold {held}"


def show_predictions(console: Console, curve: Curve, sample: list[Fit],
                     asked: Mapping[str, list[float]]) -> list[dict[str, float]]:
    """Print the predicted loss of each model, with its interval where the law was fitted."""
    found = [{"loss": float(loss)} for loss in curve.predict(asked)]
    if sample:
        ends = curve.interval(asked, sample)  # type: ignore[attr-defined]
        for row, low, high in zip(found, *ends):
            row |= {"low": float(low), "high": float(high)}
    for place, row in enumerate(found):
        model = {name: values[min(place, len(values) - 1)] for name, values in asked.items()}
        reach = f" ({row['low']:.4f} to {row['high']:.4f})" if sample else ""
        console.print(f"{_words(model)}: loss {row['loss']:.4f}{reach}")
        row |= model
    return found


def _words(model: Mapping[str, float]) -> str:
    words = [f"{name} {units.si(value)}" for name, value in model.items()]
    return ", ".join(words)


def show_best(console: Console, curve: Curve, sample: list[Fit], limits: Budget,
              choices: Mapping[str, list[float]]) -> dict[str, Any]:
    """Print the best model under the budget with intervals, and which run would tell most about it."""
    from mixwell.scaling.budget import best, best_interval

    found = best(curve, limits, choices)
    reach = best_interval(sample, limits, choices) if sample else {}
    console.print("best under the budget:")
    for name, value in {**found.columns, "loss": found.loss}.items():
        form = "{:.4f}".format if name == "loss" else units.si
        between = f"   {form(reach[name][0])} to {form(reach[name][1])}" if name in reach else ""
        console.print(f"  {name:<8} {form(value):>10}{between}")
    console.print(f"  {units.si(found.total_parameters)} parameters in all")
    if found.at_edge:
        console.print("  that size is an end of the range that was tried: the range decides, not the law")
    data = {"columns": found.columns, "loss": found.loss, "total_parameters": found.total_parameters,
            "at_edge": found.at_edge, "interval": reach}
    return data | (_next(console, sample[0].law, curve, found, choices) if sample else {})


def _next(console: Console, law: Any, fit: Any, found: Best, choices: Mapping[str, list[float]]) -> dict[str, Any]:
    """The run, no dearer than the dearest so far, that tells most about the loss of the best model."""
    import itertools

    import numpy as np

    from mixwell.scaling.budget import next_run

    dearest = float(fit.cost_N.max())
    sizes = np.geomspace(fit.runs["n"].min(), fit.runs["n"].max(), SIZES)
    ratios = np.geomspace(*_ends(fit.runs["d"] / fit.runs["n"]), SIZES)
    grid = itertools.product(sizes, ratios, *choices.values())
    rows = np.array(list(grid))
    candidates = {"n": rows[:, 0], "d": rows[:, 0] * rows[:, 1]} | dict(zip(choices, rows[:, 2:].T))
    cost = law.flops_per_token(candidates) * candidates["d"]
    affordable = {name: values[cost <= dearest] for name, values in candidates.items()}
    if not len(affordable["n"]):
        return {}
    gains = next_run(fit, affordable, found.columns)
    place = int(gains.argmax())
    chosen = {name: float(values[place]) for name, values in affordable.items()}
    console.print(f"next run worth making, no dearer than the dearest so far: {_words(chosen)} (takes "
                  f"{units.percent(gains[place], 0)} off the variance of that loss)", soft_wrap=True)
    return {"next_run": chosen, "next_run_gain": float(gains[place])}


def _ends(values: Any) -> tuple[float, float]:
    return float(values.min()), float(values.max())
