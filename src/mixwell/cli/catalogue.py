"""The commands that read the catalogue: `list`, `show`, `version`. They import no method and no torch."""

from __future__ import annotations

import ast
import json
from typing import Annotated

import typer
from rich.console import Console

from mixwell import __version__
from mixwell.cli.errors import one_line
from mixwell.core import registry
from mixwell.core.errors import MixwellError


@one_line
def list_methods(prefix: Annotated[str, typer.Argument(help="Room or family, such as experts.routers.")] = "",
                 as_json: Annotated[bool, typer.Option("--json", help="One JSON list, for programs.")] = False) -> None:
    """List the methods, all or those of a room or family.

    **Examples**

    `mixwell list` · `mixwell list experts.routers` · `mixwell list --json`
    """
    found = [e for e in registry.entries() if not prefix or f"{e.name}.".startswith(prefix.rstrip(".") + ".")]
    if not found:
        rooms = sorted({e.family for e in registry.entries()} | {e.room for e in registry.entries()})
        raise MixwellError(f"no method below {prefix!r}. Known: {', '.join(rooms)}.")
    if as_json:
        print(json.dumps([{"name": e.name, "title": e.title, "papers": list(e.papers), "year": e.year,
                           "tags": sorted(e.tags), "path": str(e.path)} for e in found], ensure_ascii=False))
        return
    width = max(len(e.name) for e in found)
    console = Console()
    for e in found:
        console.print(f"{e.name:<{width}}  {e.year}  {e.title}", highlight=False, soft_wrap=True)


def look_up(name: str) -> registry.Entry:
    """A method by its full name, or by its last part where only one has it."""
    short = [e for e in registry.entries() if e.name.rpartition(".")[2] == name]
    if len(short) > 1:
        raise MixwellError(f"{name!r} is the name of {' and '.join(e.name for e in short)}; write one of these.")
    return short[0] if short else registry.find(name)


@one_line
def show(method: Annotated[str, typer.Argument(help="Name of a method, in full or its last part.")]) -> None:
    """Show a method's card, its options with defaults, its papers and its file.

    **Example**

    `mixwell show experts.routers.top_k`
    """
    entry, console = look_up(method), Console(highlight=False)
    console.print(f"[bold]{entry.name}[/bold]  {entry.year}", soft_wrap=True)
    console.print(entry.card_text(), markup=False, soft_wrap=True)
    console.print("\n[bold]Options[/bold]")
    for line in options(entry) or ["none"]:
        console.print(f"  {line}", markup=False, soft_wrap=True)
    console.print("\n[bold]Papers[/bold]")
    for paper in entry.papers or ("textbook matter",):
        console.print(f"  {paper}", markup=False, soft_wrap=True)
    console.print(f"\n{entry.path}", markup=False, soft_wrap=True)


def options(entry: registry.Entry) -> list[str]:
    """The fields of a method's `Config` as they stand in its file: name, type, default, comment."""
    source = entry.path.read_text(encoding="utf-8")
    lines = source.splitlines()
    bodies = [n.body for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == "Config"]
    fields = [n for body in bodies for n in body if isinstance(n, ast.AnnAssign)]
    return [" ".join(line.strip() for line in lines[f.lineno - 1 : f.end_lineno]) for f in fields]


@one_line
def version() -> None:
    """Print the versions of mixwell, torch and Python."""
    import platform
    from importlib import metadata

    print(f"mixwell {__version__}, torch {metadata.version('torch')}, Python {platform.python_version()}")
