"""`mixwell search`: a merge whose coefficients are searched on text under a budget of tries."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from mixwell.cli import completion
from mixwell.cli.download import DOWNLOAD
from mixwell.cli.errors import one_line
from mixwell.core.errors import MixwellError


@one_line
def search(method: Annotated[str, typer.Argument(help="Merge, such as merge.ties.",
                                                 autocompletion=completion.applied)],
           options: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...",
                                                               help="Options that stay as they are.")] = None,
           source: Annotated[list[Path], typer.Option("--in", help="Model folder, a stage's folder, or a run's stage; "
                                                      "once a model.")] = ...,  # type: ignore[assignment]
           target: Annotated[Path, typer.Option("--out", help="Folder to write; the report search.html lies in it.")
                             ] = ...,  # type: ignore[assignment]
           text: Annotated[Path, typer.Option("--text", help="Text (a file, a folder), in none of the models' "
                                              "training: half of it is searched on, half checks the choice.")
                           ] = ...,  # type: ignore[assignment]
           base: Annotated[Path | None, typer.Option(help="The model that the others were tuned from.")] = None,
           vary: Annotated[list[str] | None, typer.Option(metavar="KEY=LEAST:MOST", help="Option to search, one value "
                                                          "for each model where the method takes that.")] = None,
           shared: Annotated[list[str] | None, typer.Option(metavar="KEY=LEAST:MOST", help="Option to search, one "
                                                            "value for all models.")] = None,
           tries: Annotated[int, typer.Option(min=2, help="Merges to make and measure, at most.")] = 24,
           tokens: Annotated[int, typer.Option(min=64, help="Tokens of each half, at most.")] = 4096,
           seed: Annotated[int, typer.Option(min=0, help="Of scattered tries and of methods that draw.")] = 0,
           download: Annotated[bool, DOWNLOAD] = False) -> None:
    """Merge models with the coefficients that predict text best, and check the choice on text not searched on.

    **Examples**

    `mixwell search merge.ties --in code --in notes --base base --text texts --vary weight=0:1.5 --shared
    density=0.1:0.9 --out merged`

    `mixwell search merge.linear --in a --in b --text texts --vary weight=0:1 --tries 12 --out merged`
    """
    from mixwell.run.recipe import override
    from mixwell.run.searching import REPORT, verdict
    from mixwell.run.searching import search as found_by

    if not method.startswith("merge."):
        raise MixwellError(f"{method} is no merge; expected a method of `mixwell list merge`, such as merge.ties.")
    values: dict[str, Any] = {}
    for option in options or []:
        override(values, option)
    console = Console(highlight=False)

    def tell(number: int, bits: float) -> None:
        line = f"try {number} of {tries}: {bits:.4f} bits per byte"
        console.print(line, soft_wrap=True)

    found = found_by(method, source, text=text, vary=_ranges(vary, "--vary"), shared=_ranges(shared, "--shared"),
                     tries=tries, tokens=tokens, base=base, out=target, seed=seed, options=values, progress=tell)
    record = found.checkpoint.lineage[-1]["search"]
    for name, chosen in record["chosen"].items():
        console.print(f"{name}={chosen}", markup=False, soft_wrap=True)
    console.print(verdict(record), style=None if record["confirmed"] else "yellow", soft_wrap=True)
    console.print(f"written: {target}, with {REPORT} in it", soft_wrap=True)


def _ranges(words: list[str] | None, where: str) -> dict[str, tuple[float, float]]:
    """Option -> (least, most), of words such as weight=0:1."""
    found = {}
    for word in words or []:
        name, _, ends = word.partition("=")
        least, _, most = ends.partition(":")
        try:
            found[name] = float(least), float(most)
        except ValueError:
            raise MixwellError(f"{where}: expected KEY=LEAST:MOST such as weight=0:1, got {word!r}.") from None
    return found
