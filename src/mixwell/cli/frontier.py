"""`mixwell frontier`: one model in many sizes, bytes against held-out bits per byte."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from mixwell.cli import completion
from mixwell.cli.amounts import numbers
from mixwell.cli.download import DOWNLOAD
from mixwell.cli.errors import one_line


@one_line
def frontier(words: Annotated[list[str] | None, typer.Argument(
                 metavar="[METHOD]... [KEY=VALUE]...", autocompletion=completion.applied,
                 help="Methods of precision, and options for those that have them. [default: precision.integers "
                      "precision.expert_bits]")] = None,
             source: Annotated[Path, typer.Option("--in", help="Model folder, a stage's folder, or a run's stage.")
                               ] = ...,  # type: ignore[assignment]
             target: Annotated[Path, typer.Option("--out", help="Folder for frontier.html and frontier.json.")
                               ] = ...,  # type: ignore[assignment]
             text: Annotated[Path, typer.Option("--text", help="Text (a file, a folder): the methods look at half of "
                                                "it, sizes are weighed on the other half.")
                             ] = ...,  # type: ignore[assignment]
             bits: Annotated[str, typer.Option(metavar="N,N,...", help="Bits a weight, on average where a method "
                                               "chooses.")] = "2,2.5,3,3.5,4,5,6,8",
             tokens: Annotated[int, typer.Option(min=64, help="Tokens of each half, at most.")] = 4096,
             seed: Annotated[int, typer.Option(min=0, help="Of the halves and of methods that draw.")] = 0,
             download: Annotated[bool, DOWNLOAD] = False) -> None:
    """Weigh a model in many sizes: bytes against bits per byte of text that nobody looked at, and what none beats.

    **Examples**

    `mixwell frontier --in runs/mine:moe --text texts --out sizes`

    `mixwell frontier precision.integers precision.hawq precision.expert_bits group_size=32 --bits 2,3,4 --in moe
    --text texts --out sizes`
    """
    from mixwell.core import units
    from mixwell.run.frontier import METHODS, REPORT, Point, lead, title
    from mixwell.run.frontier import frontier as weigh
    from mixwell.run.recipe import override

    given = words or []
    methods = [word for word in given if "=" not in word]
    values: dict[str, Any] = {}
    for word in given:
        if "=" in word:
            override(values, word)
    console = Console(highlight=False)

    def tell(point: Point) -> None:
        size = units.si(point.bytes, "B")
        loss = units.fixed(point.bits_per_byte, 4)
        console.print(f"{title(point)}: {size}, {loss} bits per byte", soft_wrap=True)

    wanted = numbers(bits, "--bits", "2 or 2.5")
    found = weigh(methods or METHODS, source, text=text, bits=wanted, tokens=tokens, out=target, seed=seed,
                  options=values, progress=tell)
    console.print(lead(found), soft_wrap=True)
    console.print(f"written: {target / REPORT}", soft_wrap=True)
