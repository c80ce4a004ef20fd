"""`mixwell mix`: from a table of runs on different mixtures to the weights of least predicted loss."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from mixwell.cli.amounts import number
from mixwell.cli.errors import one_line
from mixwell.core import units
from mixwell.core.errors import MixwellError

if TYPE_CHECKING:
    from mixwell.data.optimum import Optimum
    from mixwell.data.predictor import Mixture

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
        json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all of it as JSON.")] = None) -> None:
    """Choose the mixture of domains to train on, by what small runs on other mixtures came to.

    **Examples**

    `mixwell mix proxies.csv --target code=2 --target docs` · code counts twice

    `mixwell mix proxies.csv --available code=20M --available docs=3M --tokens 40M --epochs 4`
    """
    import numpy as np

    from mixwell.core import registry
    from mixwell.data.optimum import best_weights, caps

    console = Console(highlight=False)
    table = _runs(runs, losses, weight_prefix, loss_prefix)
    importance = _named(target or [], "--target", 1.0) or None
    have = _named(available or [], "--available", None)
    predictor = registry.find(method, FAMILY).load()()
    if importance:
        table = table.of(importance)
    fitted = predictor.fit(table, np.random.default_rng(seed))
    errors_NM = fitted.out_of_fold(np.random.default_rng(seed))
    limits_D = caps(fitted, have or None, number(tokens, "--tokens") if tokens else None, epochs, beyond)
    found = best_weights(fitted, importance, caps_D=limits_D, generator=np.random.default_rng(seed))
    data = show_mixture(console, fitted, errors_NM, found, method)
    if json is not None:
        from mixwell.core.files import write_json

        write_json(json, data)
        console.print(f"written: {json}", soft_wrap=True)


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


def show_mixture(console: Console, fitted: Mixture, errors_NM: Any, found: Optimum, method: str) -> dict[str, Any]:
    """Print how well losses are predicted, the weights, and the losses to expect; returns the same as data."""
    import numpy as np

    from mixwell.data.predictor import rank_correlation

    runs = fitted.runs
    log_NM = np.log(runs.losses_NM)
    ranks = [rank_correlation(log - error, log) for log, error in zip(log_NM.T, errors_NM.T)]
    count = units.counted(len(log_NM), "run")
    console.print(f"{method}: {count}, {units.counted(len(runs.domains), 'domain')}; on runs that it did not see, "
                  f"rank correlation {np.median(ranks):.3f} in the median target, {min(ranks):.3f} at least",
                  soft_wrap=True)
    mean_D = runs.weights_ND.mean(0)
    console.print("weights, and the mean of the runs:")
    for name, weight, mean, cap in zip(runs.domains, found.weights_D, mean_D, found.caps_D):
        at_cap = "   at its cap" if weight > 0.98 * cap else ""
        console.print(f"  {name:<24} {weight:.3f}   {mean:.3f}{at_cap}", markup=False)
    low_NM, high_NM = fitted.interval(found.weights_D, errors_NM)
    console.print("losses to expect, and the least of the runs:")
    rows = zip(runs.targets, found.losses_M, low_NM[0], high_NM[0], runs.losses_NM.min(0))
    for name, loss, low, high, least in rows:
        console.print(f"  {name:<24} {loss:.4f} ({low:.4f} to {high:.4f})   {least:.4f}", markup=False)
    return {
        "method": method, "rank_correlations": dict(zip(runs.targets, ranks)),
        "weights": dict(zip(runs.domains, map(float, found.weights_D))),
        "losses": dict(zip(runs.targets, map(float, found.losses_M))),
        "low": dict(zip(runs.targets, map(float, low_NM[0]))), "high": dict(zip(runs.targets, map(float, high_NM[0])))}
