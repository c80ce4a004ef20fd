"""`mixwell claims`: the papers' claims, tried on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from mixwell.cli.errors import FAILED, one_line, tell
from mixwell.report.targets import check_file

STYLES = {"held": "green", "did not hold": "red", "not testable here": "yellow"}
EVIDENCE = Path("docs") / "evidence"


@one_line
def claims(prefix: Annotated[str, typer.Argument(help="Room or claim, such as experts or experts.hash.  "
                                                      "[default: all]")] = "",
           seeds: Annotated[int, typer.Option(help="Number of seeds, 3 or more.", min=3)] = 3,
           save: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the evidence.")] = EVIDENCE,
           only_list: Annotated[bool, typer.Option("--list", help="Only list the claims.")] = False) -> None:
    """Run papers' claims: held, did not hold, or not testable here, with effect and spread over seeds.

    Outcomes are saved in DIR/ROOM.json, where a claim that is run again replaces its own entry alone, and DIR/ROOM.md
    is made from it. What was finished is kept when the command is stopped.

    **Examples**

    `mixwell claims experts` · all claims of a room

    `mixwell claims experts.hash --seeds 5` · one claim, five seeds
    """
    from mixwell import claims as lab_claims

    chosen, console = lab_claims.claims(prefix), Console(highlight=False)
    if only_list:
        for one in chosen:
            console.print(one.name, soft_wrap=True)
        return
    check_file(save / "x.json")
    import torch

    from mixwell.claims import evidence
    from mixwell.claims.bench import Bench
    from mixwell.core import machine

    threads = machine.threads()
    torch.set_num_threads(threads)
    width, broken, written = max(len(one.name) for one in chosen), [], {}

    def failed(one: Any, error: Exception) -> None:
        broken.append(one.name)
        kind = type(error).__name__
        console.print(f"{one.name:<{width}}  [red]broken[/red]", end="  ", soft_wrap=True)
        console.print(f"{kind}: {' '.join(str(error).split())}", markup=False, soft_wrap=True)

    for one, found in lab_claims.run(chosen, Bench(tuple(range(seeds))), failed):
        show(console, one.name, found, width)
        path = evidence.add(save, one.name, found, threads)
        written[path] = evidence.tally(evidence.read(save, path.stem))
    for path, words in written.items():
        console.print(f"saved: {path} · {words}", markup=False, soft_wrap=True)
    if broken:
        tell(f"error: {len(broken)} of {len(chosen)} claims broke: {', '.join(broken)}", FAILED)


def show(console: Console, name: str, found: dict[str, Any], width: int) -> None:
    """One outcome: a line with the effect, one with the claim, one with the note where there is one."""
    from mixwell.claims import evidence
    from mixwell.core import units

    style = STYLES[found["outcome"]]
    measured = f"{evidence.effect(found)} {found['metric']}".strip()
    console.print(f"{name:<{width}}  [{style}]{found['outcome']:<17}[/{style}]", end="  ", soft_wrap=True)
    console.print(f"{measured}  ({units.seconds(found['seconds'])})", markup=False, soft_wrap=True)
    for text in (found["claim"], found["note"]):
        if text:
            console.print(f"{'':<{width}}  {text}", markup=False, style="dim", soft_wrap=True)
