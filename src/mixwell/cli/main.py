"""The `mixwell` command. Torch is imported by the commands that compute, and by no other."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from mixwell.cli import (
    catalogue,
    chat,
    claims,
    compare,
    doctor,
    evaluate,
    export,
    fit,
    frontier,
    mix,
    plan,
    runs,
    scale,
    search,
    serve,
    skeleton,
)

app = typer.Typer(
    name="mixwell", no_args_is_help=True, rich_markup_mode="markdown",
    pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]},
    help="Mixtures in machine learning: components, weights over them, and a rule that combines them.\n\n"
         "Start with `mixwell run`: it trains a small mixture of experts on text that every machine has and writes a "
         "report.")
for command in (
    runs.run, compare.compare, evaluate.evaluate,
    chat.chat, serve.serve,
    fit.fit,
    mix.mix, scale.scale,
    plan.plan,
    runs.apply, runs.merge, search.search, frontier.frontier, export.export,
    runs.report, runs.verify,
    catalogue.list_methods, catalogue.show, claims.claims, skeleton.new,
    doctor.doctor, catalogue.version,
):
    app.command(name="list" if command is catalogue.list_methods else None)(command)


def _version(asked: bool) -> None:
    if asked:
        print(catalogue.versions())
        raise typer.Exit


@app.callback()
def options(version: Annotated[bool, typer.Option("--version", is_eager=True, callback=_version,
                                                  help="Print the versions of mixwell, torch and Python.")] = False,
            ) -> None:
    """What stands before a command; the help text is the application's."""


def main() -> None:
    """Entry point of the `mixwell` script."""
    # Threads that spin long while they wait make a step several times slower as soon as another program wants a core;
    # threads that never spin lose a third on an idle machine. OpenMP reads this when torch is first imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    app()


if __name__ == "__main__":
    main()
