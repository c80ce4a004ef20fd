"""`mixwell compare`: variants of a recipe under one budget, from the same seeds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from mixwell.cli.errors import FAILED, one_line, tell
from mixwell.cli.pools import RAY, pool_of
from mixwell.cli.runs import RECIPE, split_words
from mixwell.core.errors import MixwellError, suggest

if TYPE_CHECKING:
    from mixwell.compare import Plan
    from mixwell.compare.searching import Search
    from mixwell.run.recipe import Recipe


@one_line
def compare(words: Annotated[list[str] | None, RECIPE] = None,
            vary: Annotated[list[str] | None, typer.Option(metavar="KEY=A,B,...", help="What to vary: a key of the "
                            "recipe, or of a stage by its id. Given more than once: a grid.")] = None,
            budget: Annotated[str | None, typer.Option(metavar="NAME=AMOUNT", help="What each variant may spend: "
                              "tokens, flops or seconds of training; bytes of weights, with it or alone.  "
                              "[default: as the recipe says]")] = None,
            seeds: Annotated[str, typer.Option(metavar="N or A,B,...", help="How many seeds, or which.")] = "3",
            baseline: Annotated[str | None, typer.Option(metavar="VARIANT", help="What the others are held against.  "
                                                         "[default: the first]")] = None,
            stage: Annotated[str | None, typer.Option(help="Whose model is judged.  [default: the last that trains on "
                                                           "what is varied]")] = None,
            search: Annotated[str | None, typer.Option(metavar="METHOD", help="Train all variants in part and compare "
                              "those that lead: one_rung, rising_bandits or deepening_hyperband.")] = None,
            keep: Annotated[int | None, typer.Option(min=1, help="Variants that go on, with --search.  "
                                                     "[default: 3]")] = None,
            out: Annotated[Path | None, typer.Option(help="Folder.  [default: runs/RECIPE-by-KEY]")] = None,
            ray: Annotated[str | None, RAY] = None,
            dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would run and its cost.")] = False,
            ) -> None:
    """Compare variants of a recipe under the same budget and seeds, in one report.

    Every variant is trained from the same seeds; what variants share is made once. The report says which differences
    the seeds support. A variant that fails is reported and the rest goes on; a comparison that was stopped goes on
    when the same command is given again.

    **Examples**

    `mixwell compare routers --vary model.router=top_k,sinkhorn,expert_choice --budget tokens=500k`

    `mixwell compare my.yaml --vary train.lr=1e-3,2e-3,4e-3,8e-3 --search one_rung --keep 2` · two of four to the end

    `mixwell compare --vary model=path/to/a,path/to/b` · models that exist; nothing is trained

    `mixwell compare my.yaml --vary moe.num_experts=4,8 --vary moe.router.k=1,2 --seeds 5 --baseline 8,2`
    """
    path, overrides = split_words(words or [])
    from mixwell import compare as lab_compare
    from mixwell.cli.progress import Bar
    from mixwell.compare import existing
    from mixwell.compare.variants import parse_vary
    from mixwell.core import machine
    from mixwell.run import recipe

    console, chosen = Console(highlight=False), recipe.read(path, overrides)
    varied = parse_vary(vary or [])
    sought = _sought(search, keep)
    models = existing.only_models(chosen if path else replace(chosen, stages=[]), varied, budget)
    _check_spread(ray, models, sought)
    if models and sought is not None:
        raise MixwellError("--search trains variants in part, and these models exist already; leave it out.")
    if models:
        compare_models(console, models, chosen, baseline, out, dry_run)
        return
    with Bar(console) as bar:
        made = lab_compare.plan(chosen, varied, budget=budget, seeds=parse_seeds(seeds),
                                baseline=baseline, stage=stage, out=out, progress=bar.preparing)
        for name, error in {t.variant: t.error for t in made.trials if t.error}.items():
            console.print(f"{name} cannot run, the rest goes on: {error}", markup=False, soft_wrap=True)
        if not dry_run:
            with pool_of(ray, console, machine.threads(made.base.threads)) as pool:
                page = lab_compare.run(made, bar, sought, pool)
    if dry_run:
        show_plan(console, made)
        return
    missing = show_results(console, made.out)
    console.print(f"report: {page}", soft_wrap=True)
    if missing:
        tell(f"error: {missing} failed; the report says why", FAILED)


def _check_spread(ray: str | None, models: list[str], sought: Search | None) -> None:
    """Refuse `--ray` where there are no trainings beside each other."""
    if ray is not None and models:
        raise MixwellError("--ray spreads trainings, and these models exist already; leave it out.")
    if ray is not None and sought is not None:
        raise MixwellError("--search trains one variant after another, as what it found decides; leave out --ray or "
                           "--search.")


def _sought(method: str | None, keep: int | None) -> Search | None:
    """The search asked for; None for a comparison of all."""
    from mixwell.compare.searching import Search
    from mixwell.core.config import from_dict

    if method is None:
        if keep is not None:
            raise MixwellError("--keep says how many variants a search keeps; add --search METHOD, or leave it out.")
        return None
    asked = {"method": method} if keep is None else {"method": method, "keep": keep}
    return from_dict(Search, asked, "--search")


def compare_models(console: Console, models: list[str], chosen: Recipe, baseline: str | None, out: Path | None,
                   dry_run: bool) -> None:
    """Hold models that exist against each other on the recipe's held-out text; nothing is trained."""
    from mixwell.cli.evaluate import show_found
    from mixwell.cli.progress import Bar
    from mixwell.compare import existing, existing_page, texts

    first = [baseline] if baseline else []
    if baseline and baseline not in models:
        near = suggest(baseline, models)
        raise MixwellError(f"--baseline: no model {baseline!r}.{near} Models: {', '.join(models)}.")
    ordered = list(dict.fromkeys([*first, *models]))
    console.print(f"nothing is trained: {', '.join(ordered)} read the same held-out text", markup=False, soft_wrap=True)
    if dry_run:
        return
    budget = {"tokens": chosen.evaluate.max_tokens}
    with Bar(console) as bar:
        page = existing.evaluate(ordered, texts.held_out(chosen), budget=budget, reading=chosen.evaluate, out=out,
                                 progress=bar.preparing)
    show_found(console, existing_page.read(page.parent))
    console.print(f"report: {page}", soft_wrap=True)


def parse_seeds(text: str) -> int | list[int]:
    """`3` is how many, `0,7,9` is which (`7,` one of them). Raises `MixwellError` for others."""
    try:
        return [int(part) for part in text.split(",") if part.strip()] if "," in text else max(int(text), 0)
    except ValueError:
        raise MixwellError(f"--seeds: expected a number such as 3, or seeds such as 0,1,2, got {text!r}.") from None


def show_plan(console: Console, made: Plan) -> None:
    """What would run, and what is compared."""
    from mixwell.cli.runs import show_plan as show_stages

    show_stages(console, made.stages())
    names = []
    for variant in made.variants:
        mark = " (baseline)" if variant.name == made.baseline else ""
        names.append(variant.name + mark)
    line = f"compared after {made.stage}, {len(made.seeds)} seeds: {', '.join(names)}"
    console.print(line, markup=False, soft_wrap=True)


def show_results(console: Console, folder: Path) -> str:
    """Print the table and the answer; returns the variants without any result, as text."""
    from rich.table import Table

    from mixwell.compare import searching
    from mixwell.compare import view as views
    from mixwell.compare.results import read

    found = read(folder)
    searched = searching.statement(found.record.get("search", {}))
    if searched:
        console.print(searched, markup=False, soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    table.add_column("variant")
    for name in ("bits per byte", "difference", views.p_label(found)):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("supported", no_wrap=True)
    for row in views.table(found):
        table.add_row(row["name"], f"{row['mean']} {row['half']}", row["gap"], row["p"], row["verdict"])
    console.print(table)
    console.print(views.lead(found), markup=False, soft_wrap=True)
    return ", ".join(r.name for r in found.results if not r.trials)
