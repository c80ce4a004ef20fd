"""The commands that read the catalogue: `list`, `show`, `version`. They import no method and no torch."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console

from mixwell import __version__
from mixwell.cli import completion, usage
from mixwell.cli.errors import one_line
from mixwell.core import registry
from mixwell.core.errors import MixwellError, suggest


@one_line
def list_methods(prefix: Annotated[str, typer.Argument(help="Room or family, such as experts.routers.",
                                                            autocompletion=completion.places)] = "",
                 as_json: Annotated[bool, typer.Option("--json", help="One JSON list, for programs.")] = False) -> None:
    """List the methods, all or those of a room or family.

    **Examples**

    `mixwell list` · `mixwell list experts.routers` · `mixwell list --json`
    """
    found = _below(prefix)
    if as_json:
        records = [_record(entry) for entry in found]
        print(json.dumps(records, ensure_ascii=False))
        return
    width = max(len(entry.name) for entry in found)
    console = Console()
    for entry in found:
        console.print(f"{entry.name:<{width}}  {entry.year}  {entry.title}", highlight=False, soft_wrap=True)


def _below(prefix: str) -> list[registry.Entry]:
    """The methods of a room or family, all for an empty prefix; raises `MixwellError` where there is none."""
    place = prefix.rstrip(".") + "." if prefix else ""
    found = [entry for entry in registry.entries() if f"{entry.name}.".startswith(place)]
    if not found:
        places = completion.known_places()
        names = [entry.name for entry in registry.entries()]
        near = suggest(prefix, [*places, *names])
        raise MixwellError(f"no method below {prefix!r}.{near} Known: {', '.join(places)}.")
    return found


def _record(entry: registry.Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "title": entry.title,
        "papers": list(entry.papers),
        "year": entry.year,
        "tags": sorted(entry.tags),
        "path": str(entry.path)}


def look_up(name: str) -> registry.Entry:
    """A method by its full name, or by its last part where only one has it; raises `MixwellError` for others."""
    short = [entry for entry in registry.entries() if entry.name.rpartition(".")[2] == name]
    if not short:
        return registry.find(name)
    names = [entry.name for entry in short]
    if len(names) > 1:
        raise MixwellError(f"{name!r} is the name of {' and '.join(names)}; write one of these.")
    return short[0]


@one_line
def show(method: Annotated[str, typer.Argument(help="Name of a method, in full or its last part.",
                                                autocompletion=completion.methods)]) -> None:
    """Show a method's card, its options with defaults, how to use it, its papers and its file.

    **Example**

    `mixwell show experts.routers.top_k`
    """
    entry, console = look_up(method), Console(highlight=False)
    console.print(f"[bold]{entry.name}[/bold]  {entry.year}", soft_wrap=True)
    console.print(entry.card_text(), markup=False, soft_wrap=True)
    parts = {"Options": usage.options(entry) or ["none"], entry.object_name: usage.about(entry).splitlines(),
             "Use": [f"{where:<8} {line}" for where, line in usage.usage(entry)],
             "Papers": list(entry.papers or ("textbook matter",))}
    for head, lines in parts.items():
        if lines:
            console.print(f"\n[bold]{head}[/bold]")
        for line in lines:
            console.print(f"  {line}".rstrip(), markup=False, soft_wrap=True)
    console.print(f"\n{entry.path}", markup=False, soft_wrap=True)


@one_line
def version() -> None:
    """Print the versions of mixwell, torch and Python."""
    print(versions())


def versions() -> str:
    """What decides the numbers of a run, in a line."""
    import platform
    from importlib import metadata

    return f"mixwell {__version__}, torch {metadata.version('torch')}, Python {platform.python_version()}"
