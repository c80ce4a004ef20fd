"""Tokenizers without a tokenizer.json (SentencePiece, tiktoken, vocab.json with merges.txt), as transformers turns them
into one: how text is cut around such files stands in its code alone, one class for each model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from mixwell.core.errors import MixwellError
from mixwell.core.files import write_bytes
from mixwell.formats.places import held
from mixwell.formats.plain import read_object
from mixwell.lm.tokenizer_files import CONFIG, MAIN, TEMPLATE, keys, text

PIECES, WORDS, MERGES = "tokenizer.model", "vocab.json", "merges.txt"
NEEDED = "transformers sentencepiece tiktoken protobuf"
_MODEL = "config.json"  # whose model_type names the class where the tokenizer's own files do not


def is_older(files: Mapping[str, bytes]) -> bool:
    """Whether files, by name, hold a tokenizer in an older form, and none in the form that is read here."""
    if MAIN in files:
        return False
    return PIECES in files or {WORDS, MERGES} <= files.keys()


def completed(folder: Path, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The tokenizer's `files` and the tokenizer.json that transformers makes of them.

    Without transformers, or where it cannot, `MixwellError` says what to do. No code of the folder is run.
    """
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        for name, data in files.items():
            write_bytes(place / name, data)
        kind = _model_type(folder)
        if kind and "tokenizer_class" not in keys(files.get(CONFIG, b"{}"), CONFIG):
            write_bytes(place / _MODEL, text({"model_type": kind}))
        made = _made(place, folder)
    return {**files, **made}


def _model_type(folder: Path) -> str | None:
    """The decoder that the folder's config.json names, None where there is none."""
    if held(folder, _MODEL) is None:
        return None
    return read_object(folder / _MODEL, {}).get("model_type")


def _made(place: Path, folder: Path) -> dict[str, bytes]:
    """What transformers writes of the tokenizer at `place`."""
    old = PIECES if (place / PIECES).exists() else f"{WORDS} with {MERGES}"
    try:
        from transformers import AutoTokenizer

        found = AutoTokenizer.from_pretrained(place, local_files_only=True, trust_remote_code=False)
        found.save_pretrained(place / "written")
        paths = [place / "written" / name for name in (MAIN, CONFIG, TEMPLATE)]
        return {path.name: path.read_bytes() for path in paths if path.exists()}
    except Exception as error:  # it raises many kinds: a package that is not there, a class that it does not know
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise MixwellError(f"{folder} has its tokenizer as {old}, without {MAIN}, which transformers makes of it; "
                           f"pip install {NEEDED}, or hand in a folder that has one. It said: {said}") from error
