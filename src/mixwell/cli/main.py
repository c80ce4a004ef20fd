"""The `mixwell` command. Torch is imported by the commands that compute, and by no other."""

from __future__ import annotations

import typer

from mixwell.cli import catalogue, runs, skeleton

app = typer.Typer(
    name="mixwell", no_args_is_help=True, add_completion=False, rich_markup_mode="markdown",
    pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]},
    help="Mixtures in machine learning: components, weights over them, and a rule that combines them.\n\n"
         "Start with `mixwell run`: it trains a small mixture of experts on text that every machine has and writes a "
         "report.")
for command in (runs.run, runs.apply, runs.report, catalogue.list_methods, catalogue.show, skeleton.new,
                catalogue.version):
    app.command(name="list" if command is catalogue.list_methods else None)(command)


def main() -> None:
    """Entry point of the `mixwell` script."""
    app()


if __name__ == "__main__":
    main()
