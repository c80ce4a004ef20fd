"""A model written in the form of another program: `mixwell.export("runs/mine:moe", "moe.gguf", type="q8_0")`."""

from __future__ import annotations

from pathlib import Path

from mixwell.core.checkpoint import Checkpoint
from mixwell.core.errors import MixwellError
from mixwell.lm import folder as folders
from mixwell.lm.compressed.scheme import METHOD
from mixwell.lm.compressed.writing import write_compressed
from mixwell.lm.gguf.header import SUFFIX
from mixwell.lm.gguf.writing import write_gguf
from mixwell.lm.model import LanguageModel
from mixwell.report.targets import check_file, check_folder
from mixwell.run.paths import find_model


def export(model: LanguageModel | str | Path, out: str | Path, *, type: str = "q8_0") -> Path:
    """Write a model as a GGUF file for llama.cpp, or as a quantised folder for transformers and vLLM; return its path.

    model: a `LanguageModel`, a model folder or file, or a run's stage such as `runs/mine:moe`. type: of a GGUF file's
    matrices, f32, f16, bf16, q8_0, q4_0 or q4_1; vectors and routers stay f32. Or "compressed-tensors": a folder that
    keeps the codes that a method of the room `precision` made, experts apart. Tokenizer and chat template come along. A
    model that the format cannot say raises `MixwellError`, and nothing is written.
    """
    path = Path(out)
    if type == METHOD:
        return _compressed(model, path)
    if path.suffix != SUFFIX:
        raise MixwellError(f"{path}: expected a name that ends in {SUFFIX}, as llama.cpp asks for.")
    check_file(path)
    checkpoint, name = _opened(model)
    return write_gguf(checkpoint, path, type, name)


def _compressed(model: LanguageModel | str | Path, path: Path) -> Path:
    if path.suffix == SUFFIX:
        raise MixwellError(f"{path}: {METHOD} is a folder; expected a name without {SUFFIX}.")
    check_folder(path)
    checkpoint, _ = _opened(model)
    return write_compressed(checkpoint, path)


def _opened(model: LanguageModel | str | Path) -> tuple[Checkpoint, str]:
    """The checkpoint, and what to call it; a model in memory goes by the file's name."""
    if isinstance(model, LanguageModel):
        return model.to_checkpoint(), ""
    written = Path(model)
    name = written.name.removesuffix(SUFFIX)  # without the folders, which are nobody else's business
    return folders.read(find_model(model)), name
