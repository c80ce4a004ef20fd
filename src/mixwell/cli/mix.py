"""`mixwell mix`: from a table of runs on different mixtures to the weights of least predicted loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from rich.console import Console

from mixwell.cli.amounts import check_known
from mixwell.cli.errors import one_line
from mixwell.cli.pools import RAY, pool_of
from mixwell.cli.written import check_writable, written
from mixwell.core import units
from mixwell.core.errors import MixwellError
from mixwell.formats.amounts import number

FAMILY, DEFAULT = "data.mixing", "law_and_trees"


@one_line
def mix(runs: Annotated[Path, typer.Argument(help="CSV or Parquet file, one row a run: weights of the domains, and "
                                                  "losses.")],
        losses: Annotated[Path | None, typer.Argument(help="The losses, where they stand in a file of their "
                                                           "own.")] = None,
        method: Annotated[str, typer.Option(help="How losses are predicted: a method of data.mixing.")] = DEFAULT,
        weight_prefix: Annotated[str, typer.Option(help="What the columns of weights begin with.")] = "weight.",
        loss_prefix: Annotated[str, typer.Option(help="What the columns of losses begin with.")] = "loss.",
        target: Annotated[list[str] | None, typer.Option(metavar="NAME[=IMPORTANCE]", help="Losses that count.  "
                                                         "[default: all alike]")] = None,
        available: Annotated[list[str] | None, typer.Option(metavar="DOMAIN=TOKENS", help="Tokens that a domain "
                                                            "has.")] = None,
        tokens: Annotated[str, typer.Option(help="Tokens that will be trained on, with --available.")] = "",
        epochs: Annotated[float, typer.Option(min=0.0, help="How often a domain may be gone through.")] = 4.0,
        beyond: Annotated[bool, typer.Option("--beyond", help="Allow weights above all that were tried.")] = False,
        seed: Annotated[int, typer.Option(min=0, help="Of fits, folds and simulated mixtures.")] = 42,
        report: Annotated[Path | None, typer.Option(metavar="FILE", help="Write an HTML report, with intervals of the "
                                                    "weights, coverage and the other predictors.")] = None,
        json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all of it as JSON.")] = None,
        ray: Annotated[str | None, RAY] = None) -> None:
    """Choose the mixture of domains to train on, by what small runs on other mixtures came to.

    **Examples**

    `mixwell mix proxies.csv --target code=2 --target docs` · code counts twice

    `mixwell mix proxies.csv --available code=20M --available docs=3M --tokens 40M --epochs 4`

    `mixwell mix proxies.csv --report mix.html` · how sure the weights are, and which predictor does best
    """
    import numpy as np

    from mixwell.core import registry
    from mixwell.data.optimum import best_weights, caps
    from mixwell.report import mix_page

    check_writable(report, json)
    if ray is not None and report is None:
        raise MixwellError("--ray spreads the many fits of --report; name a file for it, or leave --ray out.")
    console = Console(highlight=False)
    table = _runs(runs, losses, weight_prefix, loss_prefix)
    importance = _named(target or [], "--target", 1.0) or None
    have = _available(available or [], table.domains)
    if tokens and not have:
        raise MixwellError("--tokens counts beside --available alone; say what each domain has, or leave it out.")
    predictor = registry.find(method, FAMILY).load()()
    if importance:
        table = table.of(importance)
    fitted = predictor.fit(table, np.random.default_rng(seed))
    errors_NM = fitted.out_of_fold(np.random.default_rng(seed))
    limits_D = caps(fitted, have or None, number(tokens, "--tokens") if tokens else None, epochs, beyond)
    found = best_weights(fitted, importance, caps_D=limits_D, generator=np.random.default_rng(seed))
    data = mix_page.record(fitted, errors_NM, found, importance, method)
    show_mixture(console, data)
    if report is not None:
        with pool_of(ray, console, threads=None) as pool:
            data |= mix_page.trusted(fitted, errors_NM, found, importance, method, seed, pool)
        written(console, report, mix_page.page(data, runs.name))
    if json is not None:
        written(console, json, data)


def _runs(weights: Path, losses: Path | None, weight_prefix: str, loss_prefix: str) -> Any:
    from mixwell.data.runs import read_runs
    from mixwell.tables import reading

    first = reading.read(weights).frame
    second = None if losses is None else reading.read(losses).frame
    return read_runs(first, second, weight_prefix=weight_prefix, loss_prefix=loss_prefix)


def _named(words: list[str], where: str, default: float | None) -> dict[str, float]:
    found = {}
    for word in words:
        name, separator, value = word.partition("=")
        if not separator and default is None:
            raise MixwellError(f"{where}: expected NAME=NUMBER, got {word!r}.")
        found[name] = number(value, f"{where} {name}") if separator else float(default or 0.0)
    return found


def _available(words: list[str], domains: Sequence[str]) -> dict[str, float]:
    """Tokens by domain; one that the runs have not raises `MixwellError`."""
    found = _named(words, "--available", None)
    for name in found:
        check_known(name, domains, "--available")
    return found


def show_mixture(console: Console, data: Mapping[str, Any]) -> None:
    """Print how well losses are predicted, the weights, and the losses to expect."""
    from mixwell.report.mix_page import AT_CAP, MEAN

    ranks = sorted(data["rank_correlations"].values())
    middle = median(ranks)
    count = units.counted(data["runs"], "run")
    console.print(f"{data['method']}: {count}, {units.counted(len(data['weights']), 'domain')}; on runs that it did "
                  f"not see, rank correlation {middle:.3f} in the median target, {ranks[0]:.3f} at least",
                  soft_wrap=True)
    mean = data["mixtures"][MEAN]["weights"]
    console.print("weights, and the mean of the runs:")
    for name, weight in data["weights"].items():
        at_cap = "   at its cap" if weight > AT_CAP * data["caps"][name] else ""
        console.print(f"  {name:<24} {weight:.3f}   {mean[name]:.3f}{at_cap}", markup=False)
    console.print("losses to expect, and the least of the runs:")
    for name, loss in data["losses"].items():
        low, high, least = (data[key][name] for key in ("low", "high", "least"))
        console.print(f"  {name:<24} {loss:.4f} ({low:.4f} to {high:.4f})   {least:.4f}", markup=False)
