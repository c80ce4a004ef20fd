"""The option `--download`, which several commands share."""

from __future__ import annotations

import typer

from mixwell.lm.hub import allow_downloads


def allowed(given: bool) -> bool:
    """Say what was asked for to whoever looks for a model."""
    allow_downloads(given)
    return given


DOWNLOAD = typer.Option("--download", callback=allowed,
                        help="Fetch a model that is named by its id, such as Qwen/Qwen3-0.6B, and that the local "
                             "Hugging Face cache lacks.")
