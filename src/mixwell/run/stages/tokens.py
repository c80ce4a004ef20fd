"""Stages that make tokens of text: train or read a tokenizer, lay down the token shards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixwell.core import units
from mixwell.core.errors import MixwellError
from mixwell.core.files import digest, digest_file, write_text
from mixwell.lm.data import SPLITS, write_shards
from mixwell.lm.documents import size_bytes
from mixwell.lm.gguf.header import is_gguf
from mixwell.lm.splitting import Split
from mixwell.lm.template import CHATML, CHATML_TOKENS
from mixwell.lm.tokenizer import END_OF_TEXT, FILES, Tokenizer
from mixwell.run.stages._parts import Job, Stage
from mixwell.run.stages.text import read_splits


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """A tokenizer to train (`vocab_size`) or to read (`path`)."""

    vocab_size: int = 2048  # ids, the 256 bytes and the special tokens among them
    path: str | None = None  # folder that holds tokenizer.json; vocab_size then says nothing
    bos: bool | None = None  # begin texts with the beginning-of-text token; null = as the tokenizer's template says
    chat_template: str | None = None  # file with a Jinja template for conversations, or chatml; null = the tokenizer's

    def __post_init__(self) -> None:
        if self.path is None and self.vocab_size < 257:
            raise ValueError(f"vocab_size is {self.vocab_size}; 256 bytes and the end-of-text token need 257 or more")


@dataclass(frozen=True, kw_only=True)
class TokensConfig:
    """Token shards have no options."""


def tokenizer_fingerprint(stage: Stage) -> str:
    """Digest of the files that the tokenizer is read from, where it is.

    Raises `MixwellError` where there is none to read.
    """
    path, template = stage.config.path, _template(stage.config.chat_template) or ""
    if path is None:
        return template
    if is_gguf(path):
        return digest([template, Tokenizer.load(path).digest])
    file = Path(path) / "tokenizer.json"
    if not file.is_file():
        raise MixwellError(f"{path} holds no tokenizer.json, and the recipe trains none; give `tokenizer: "
                           "{vocab_size: ...}` no larger than the model's vocabulary, or the folder of its tokenizer.")
    beside = [Path(path) / name for name in FILES if (Path(path) / name).is_file()]
    return digest([template, *map(digest_file, beside)])


def run_tokenizer(job: Job) -> dict[str, Any]:
    """Train on the training side of every domain, or read the tokenizer; write its files."""
    splits = read_splits(job.inputs["data"])
    tokenizer = _tokenizer(job.stage.config, splits)
    for name, data in tokenizer.save_files().items():
        write_text(job.folder / name, data.decode("utf-8"))
    return {"vocab_size": tokenizer.vocab_size, "bytes_per_token": {n: _ratio(tokenizer, s) for n, s in splits.items()}}


def _tokenizer(config: TokenizerConfig, splits: Mapping[str, Split]) -> Tokenizer:
    """The tokenizer that the config asks for; one trained on conversations gets a template for them."""
    documents = [document for split in splits.values() for document in split.train]
    source = _template(config.chat_template)
    if config.path:
        found = Tokenizer.load(config.path)
    else:
        talked = source is not None or any(document.messages for document in documents)
        marks = CHATML_TOKENS if talked else ()
        found = Tokenizer.train((d.text for d in documents), config.vocab_size, (END_OF_TEXT, *marks))
        source = source or (CHATML if talked else None)
    if source is not None:
        found = found.with_chat_template(source)
    if source == CHATML and (missing := set(CHATML_TOKENS) - set(found.special)):
        raise MixwellError(f"tokenizer.chat_template: the tokenizer has no special token {min(missing)}, which chatml "
                           "needs; give a template of its own tokens.")
    return found if config.bos is None else found.with_bos(config.bos)


def _template(named: str | None) -> str | None:
    """The template that a recipe names."""
    if named is None or named == "chatml":
        return named and CHATML
    try:
        return Path(named).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MixwellError(f"tokenizer.chat_template: cannot read {named} ({error}); expected a Jinja file, or "
                           "chatml.") from error


def _ratio(tokenizer: Tokenizer, split: Split) -> float:
    """UTF-8 bytes per token of the held-out text."""
    texts = [document.text for document in split.held]
    rows = tokenizer.encode_batch(texts)
    tokens = sum(map(len, rows))
    return size_bytes(split.held) / max(1, tokens)


def run_tokens(job: Job) -> dict[str, Any]:
    """Encode every domain into memory-mapped shards below `shards`."""
    splits, tokenizer = read_splits(job.inputs["data"]), Tokenizer.load(job.inputs["tokenizer"])
    answers_only = job.result("data")["answers_only"]
    data = write_shards(job.folder / "shards", splits, tokenizer, answers_only)
    tokens, counted, lost = {}, {}, {}
    notices: list[str] = []
    for name in data.domains:
        tokens[name] = {f"{side}_tokens": data.count(name, side) for side in SPLITS}
        counted[name] = {side: data.counted(name, side) for side in SPLITS}
        lost[name] = data.lost(name)
        notices += [f"{name}: {text}." for text in _lost(lost[name])]
    first = data.tokens(data.domains[0], "train")
    return {"domains": tokens, "counted": counted, "lost": lost, "dtype": str(first.dtype), "notices": notices}


def _lost(counts: Mapping[str, int]) -> list[str]:
    """A sentence on text that does not come back from its tokens."""
    if not counts["changed"]:
        return []
    unknown = ""
    if counts["unknown_bytes"]:
        share = units.percent(counts["unknown_bytes"] / counts["bytes"])
        unknown = f", {share} of the text became the unknown token"
    return [f"{counts['changed']} of {counts['documents']} documents do not come back from the tokenizer as they were"
            f"{unknown}: bits per byte make it look better than it is"]
