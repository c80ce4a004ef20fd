"""Stages that make tokens of text: collect the domains, train or read a tokenizer, lay down the token shards."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixwell.core.errors import MixwellError
from mixwell.core.files import digest, digest_file, read_json, write_json, write_text
from mixwell.lm.data import Document, Split, read_domain, split_documents, write_shards
from mixwell.lm.tokenizer import Tokenizer
from mixwell.run.stages._parts import Job, Stage


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which text, how much of it, and the share that is held out."""

    domains: Mapping[str, str] | str = "standard-library"  # name -> file, folder or glob; or a data set's name
    max_bytes: int | None = 4_000_000  # bytes of text taken from each domain at most; null = all
    held_out: float = 0.05  # share of the documents held out, 0 to 1

    def __post_init__(self) -> None:
        if not self.domains:
            raise ValueError("domains is empty; expected names and paths, such as {wiki: texts/wiki}")
        if self.max_bytes is not None and self.max_bytes < 2:
            raise ValueError(f"max_bytes is {self.max_bytes}; expected at least 2, or null for all")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out is {self.held_out}; expected a share between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """A tokenizer to train (`vocab_size`) or to read (`path`)."""

    vocab_size: int = 2048  # ids, the 256 bytes and the end-of-text token among them
    path: str | None = None  # folder that holds tokenizer.json; vocab_size then says nothing

    def __post_init__(self) -> None:
        if self.path is None and self.vocab_size < 257:
            raise ValueError(f"vocab_size is {self.vocab_size}; 256 bytes and the end-of-text token need 257 or more")


@dataclass(frozen=True, kw_only=True)
class TokensConfig:
    """Token shards have no options."""


@functools.lru_cache(maxsize=1)
def _collect(config: str) -> dict[str, list[Document]]:
    """The documents by domain; kept for a moment, since the key of the stage and the stage itself both ask."""
    options = json.loads(config)
    domains = options["domains"]
    if isinstance(domains, str):
        from mixwell.run import datasets

        return datasets.load(domains, options["max_bytes"])
    return {name: capped(_read(name, spec), options["max_bytes"]) for name, spec in domains.items()}


def _read(name: str, spec: str) -> list[Document]:
    try:
        return read_domain(spec)
    except MixwellError as error:
        raise MixwellError(f"data.domains.{name}: {error}") from error


def capped(documents: list[Document], max_bytes: int | None) -> list[Document]:
    """Documents of at most `max_bytes` together: an even pick by the hash of their content, the last one cut short."""
    if max_bytes is None:
        return documents
    kept, room = set(), max_bytes
    cut: dict[int, str] = {}
    for number in sorted(range(len(documents)), key=lambda i: digest(documents[i].text.encode())):
        data = documents[number].text.encode()
        if room <= 0:
            break
        kept.add(number)
        if len(data) > room:
            cut[number] = data[:room].decode("utf-8", "ignore")
        room -= len(data)
    return [Document(d.path, cut.get(i, d.text)) for i, d in enumerate(documents) if i in kept and cut.get(i, d.text)]


def documents(stage: Stage) -> dict[str, list[Document]]:
    """What the stage's config asks for."""
    return _collect(json.dumps(stage.plain_config(), sort_keys=True))


def data_fingerprint(stage: Stage) -> str:
    """Digest of every document's name and text, read afresh."""
    _collect.cache_clear()
    found = documents(stage)
    return digest({name: [[d.path, digest(d.text.encode())] for d in docs] for name, docs in found.items()})


def run_data(job: Job) -> dict[str, Any]:
    """Split every domain by file and write `<domain number>.json`."""
    summary, names = {}, {}
    found = documents(job.stage)
    for number, (name, docs) in enumerate(found.items()):
        try:
            split = split_documents(docs, job.stage.config.held_out)
        except MixwellError as error:
            raise MixwellError(f"data.domains.{name}: {error}") from error
        names[name] = f"{number:02d}.json"
        rows = {"train": _rows(split.train), "held": _rows(split.held)}
        write_json(job.folder / names[name], {"note": split.note, **rows})
        summary[name] = {"files": len(docs), "train_bytes": _size(split.train), "held_bytes": _size(split.held),
                         "split": split.note}
        job.progress((number + 1) / len(found), name)
    write_json(job.folder / "domains.json", names)
    _collect.cache_clear()
    return {"domains": summary}


def _rows(docs: Iterable[Document]) -> list[list[str]]:
    return [[d.path, d.text] for d in docs]


def _size(docs: Iterable[Document]) -> int:
    return sum(len(d.text.encode()) for d in docs)


def read_splits(folder: Path) -> dict[str, Split]:
    """The splits that a data stage wrote."""
    found = {}
    for name, file in read_json(folder / "domains.json").items():
        data = read_json(folder / file)
        sides = {side: tuple(Document(*row) for row in data[side]) for side in ("train", "held")}
        found[name] = Split(sides["train"], sides["held"], data["note"])
    return found


def tokenizer_fingerprint(stage: Stage) -> str:
    """Digest of the tokenizer file that is read, where one is."""
    path = stage.config.path
    if path is None:
        return ""
    file = Path(path) / "tokenizer.json"
    if not file.is_file():
        raise MixwellError(f"{path} holds no tokenizer.json, and the recipe trains none; give `tokenizer: "
                           "{vocab_size: ...}` no larger than the model's vocabulary, or the folder of its tokenizer.")
    return digest_file(file)


def run_tokenizer(job: Job) -> dict[str, Any]:
    """Train on the training side of every domain, or read the tokenizer; write its files."""
    config, splits = job.stage.config, read_splits(job.inputs["data"])
    texts = (document.text for split in splits.values() for document in split.train)
    tokenizer = Tokenizer.load(config.path) if config.path else Tokenizer.train(texts, config.vocab_size)
    for name, data in tokenizer.save_files().items():
        write_text(job.folder / name, data.decode("utf-8"))
    return {"vocab_size": tokenizer.vocab_size, "bytes_per_token": {n: _ratio(tokenizer, s) for n, s in splits.items()}}


def _ratio(tokenizer: Tokenizer, split: Split) -> float:
    """UTF-8 bytes per token of the held-out text."""
    texts = [document.text for document in split.held]
    return sum(len(t.encode()) for t in texts) / max(1, sum(map(len, tokenizer.encode_batch(texts))))


def run_tokens(job: Job) -> dict[str, Any]:
    """Encode every domain into memory-mapped shards below `shards`."""
    data = write_shards(job.folder / "shards", read_splits(job.inputs["data"]), Tokenizer.load(job.inputs["tokenizer"]))
    counts = {name: {f"{side}_tokens": data.count(name, side) for side in ("train", "held")} for name in data.domains}
    return {"domains": counts, "dtype": str(data.tokens(data.domains[0], "train").dtype)}
