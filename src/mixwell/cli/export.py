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
           out: Annotated[Path, typer.Option(help="NAME.gguf, or a folder.")] = ...,  # type: ignore[assignment]
           kind: Annotated[str, typer.Option("--type", help="Of a file's matrices: f32, f16, bf16, q8_0, q4_0, q4_1; "
                                             "or compressed-tensors.")] = "q8_0",
           download: Annotated[bool, DOWNLOAD] = False) -> None:
    """Write a model as a GGUF file, which llama.cpp runs, or as a quantised folder for transformers and vLLM.

    GGUF: Llama, Mixtral, Qwen2, Qwen2-MoE, Qwen3, Qwen3-MoE and OLMoE, and what mixwell built that computes as one of
    them; with tokenizer and chat template.

    compressed-tensors: any Hugging Face decoder whose weights precision.int8, integers, gptq or another method of whole
    numbers has quantised; its codes are kept, a matrix a module, experts apart. Such folders are read, too.

    **Examples**

    `mixwell export runs/mine:moe --out moe.gguf`

    `mixwell export smollm2 --out smollm2.gguf --type q4_0`

    `mixwell export small --out small-w4a16 --type compressed-tensors`
    """
    from mixwell.core.units import si
    from mixwell.run.export import export as write

    path = write(model, out, type=kind)
    files = path.iterdir() if path.is_dir() else [path]
    size = si(sum(file.stat().st_size for file in files), "B")
    Console().print(f"written: {path}, {size}", highlight=False, soft_wrap=True)
