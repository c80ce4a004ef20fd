"""The command `export`: a model in the form of another program."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mixwell.cli.download import DOWNLOAD
from mixwell.cli.errors import one_line


@one_line
def export(model: Annotated[str, typer.Argument(help="Model folder or file, or a run's stage such as runs/mine:moe.")],
           out: Annotated[Path, typer.Option(help="File to write, NAME.gguf.")] = ...,  # type: ignore[assignment]
           kind: Annotated[str, typer.Option("--type", help="Of the matrices: f32, f16, bf16, q8_0, q4_0 or q4_1."
                                             )] = "q8_0",
           download: Annotated[bool, DOWNLOAD] = False) -> None:
    """Write a model as a GGUF file, which llama.cpp and the programs built on it run.

    Llama, Mixtral, Qwen2, Qwen2-MoE, Qwen3, Qwen3-MoE and OLMoE, and what mixwell built that computes as one of them;
    with tokenizer and chat template.

    **Examples**

    `mixwell export runs/mine:moe --out moe.gguf`

    `mixwell export smollm2 --out smollm2.gguf --type q4_0`
    """
    from mixwell.core.units import si
    from mixwell.run.export import export as write

    path = write(model, out, type=kind)
    size = si(path.stat().st_size, "B")
    Console().print(f"written: {path}, {size}", highlight=False, soft_wrap=True)
