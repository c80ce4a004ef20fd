"""`mixwell evaluate`: models that exist, measured on the same held-out text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from mixwell.cli.download import DOWNLOAD
from mixwell.cli.errors import one_line

if TYPE_CHECKING:
    from rich.table import Table

    from mixwell.compare.existing_page import Found

MODELS = typer.Argument(help="Model folders, files or ids, a stage's folder, or a run's stage such as runs/mine:moe. "
                             "The others are held against the first.", metavar="MODEL...")

ADAPTER = typer.Option(metavar="[NAME=]FOLDER", help="Adapter to hold the one model against itself with: a folder, or "
                                                     "the stage that made it; may be said again.")


@one_line
def evaluate(models: Annotated[list[str], MODELS],
             data: Annotated[str | None, typer.Option(help="Text (a file, folder or glob), all of which is read.  "
                                                      "[default: held-out text of the standard library]")] = None,
             budget: Annotated[str | None, typer.Option(metavar="NAME=AMOUNT", help="How much of each domain is read: "
                               "bytes or tokens.  [default: bytes=256k]")] = None,
             seq_len: Annotated[int, typer.Option(help="Tokens that a model sees at once.")] = 256,
             batch_size: Annotated[int, typer.Option(help="Windows read together.")] = 16,
             adapter: Annotated[list[str] | None, ADAPTER] = None,
             out: Annotated[Path | None, typer.Option(help="Folder.  [default: runs/evaluate-MODELS]")] = None,
             download: Annotated[bool, DOWNLOAD] = False) -> None:
    """Measure models that exist on the same text: bits per byte, differences with intervals, sizes and speed.

    Nothing is trained. Every model reads the same documents with its own tokenizer; differences are paired by document.

    **Examples**

    `mixwell evaluate runs/mine:dense runs/mine:moe --data notes` · two stages of a run on text of your own

    `mixwell evaluate path/to/base --adapter path/to/adapter --data notes` · the base beside itself with an adapter

    `mixwell evaluate SmolLM2-135M --data book.txt --budget bytes=1M --seq-len 1024`
    """
    from mixwell.cli.progress import Bar
    from mixwell.compare import existing, existing_page
    from mixwell.core.config import from_dict
    from mixwell.run.adapting import named
    from mixwell.run.stages import EvaluateConfig

    console = Console(highlight=False)
    reading = from_dict(EvaluateConfig, {"seq_len": seq_len, "batch_size": batch_size}, "evaluate")
    with Bar(console) as bar:
        page = existing.evaluate(models, data, budget=budget, reading=reading, out=out, adapters=named(adapter or []),
                                 progress=bar.preparing)
    show_found(console, existing_page.read(page.parent))
    console.print(f"report: {page}", soft_wrap=True)


def show_found(console: Console, found: Found) -> None:
    """Print quality, sizes and speed, the answer, and how it was measured."""
    from mixwell.compare import existing_page as pages

    several = len(found.models) > 1
    quality = _table("bits per byte", *(["difference", "95 % interval"] if several else []))
    for row in pages.table(found):
        apart = [row["gap"], row["range"]] if several else []
        quality.add_row(row["name"], f"{row['mean']} {row['half']}", *apart)
    console.print(quality)
    cost = _table("tokens/s", "parameters", "active", "weights", "active")
    for name, cells in pages.cost(found):
        (every, active), (weights, bytes_active), _, (rate, _) = cells
        cost.add_row(name, rate, every, _before(active), weights, _before(bytes_active))
    console.print(cost)
    for line in (pages.lead(found), *pages.notes(found)):
        console.print(line, markup=False, soft_wrap=True)


def _table(*heads: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("model")
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    return table


def _before(words: str) -> str:
    """`6.3 M` of `6.3 M active, ...`."""
    return words.partition(" active")[0]
