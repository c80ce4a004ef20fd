"""The stage that collects the text: what is read of each domain, and what of it is held out."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mixwell.core import units
from mixwell.core.config import from_dict
from mixwell.core.errors import MixwellError, shown
from mixwell.core.files import digest, read_json, write_json
from mixwell.lm.cleaning import Cleaner, Cleaning
from mixwell.lm.documents import Document, Reader, size_bytes
from mixwell.lm.splitting import Capped, Split, capped, split_apart, split_documents
from mixwell.run import facts
from mixwell.run.stages._parts import Job, Stage


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which text, how much of it, and the share that is held out."""

    domains: Mapping[str, str] | str = "standard-library"  # name -> file, folder or glob; or a data set's name
    max_bytes: int | None = 4_000_000  # bytes of text taken from each domain at most; null = all
    held_out: float = 0.05  # share of the bytes held out, 0 to 1
    validation: Mapping[str, str] | None = None  # domain -> file, folder or glob held out in the place of a share of it
    # of rows (JSON lines, CSV, Parquet, Arrow): what holds the text or the messages; null = messages, text, content,
    # document, body, or the only field with text
    text_field: str | None = None
    answers_only: bool = True  # of conversations, learn and weigh the answers alone
    # what is dropped before the cap and the split: {near_copies: 0.8, quality: {}, language: en}
    clean: Cleaning | None = None

    def __post_init__(self) -> None:
        if not self.domains:
            raise ValueError("domains is empty; expected names and paths, such as {wiki: texts/wiki}")
        if self.max_bytes is not None and self.max_bytes < 2:
            raise ValueError(f"max_bytes is {self.max_bytes}; expected at least 2, or null for all")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out is {self.held_out}; expected a share between 0 and 1")
        known = self.domains if isinstance(self.domains, Mapping) else {}
        if strange := sorted(set(self.validation or ()) - set(known)):
            names = ", ".join(known) or "none"
            raise ValueError(f"validation names {shown(strange[0])}; expected names of domains: {names}")


_READ = ("domains", "max_bytes", "text_field", "validation", "clean")  # options that decide what is read


@dataclass(frozen=True)
class Collected:
    """A domain's documents under the cap, and what is to be said of how they were found."""

    documents: list[Document]
    found_bytes: int | None  # of all there is, copies counted once; None where no more was read than the cap lets in
    notices: tuple[str, ...] = ()
    counts: Mapping[str, Any] = field(default_factory=dict)  # of what was read and what was not, and why
    validation: list[Document] | None = None  # held out in the place of a share of `documents`


@functools.lru_cache(maxsize=1)
def _collect(config: str, state: str) -> dict[str, Collected]:
    """The documents by domain; kept for a moment, since the key of the stage and the stage itself both ask.

    state: of the files, so that one which changed is read anew.
    """
    options = json.loads(config)
    domains, most = options["domains"], options["max_bytes"]
    cleaning = from_dict(Cleaning, options["clean"], "data.clean")
    if isinstance(domains, str):
        from mixwell.run import datasets

        loaded = datasets.load(domains, most)
        return {name: _cleaned(found, cleaning) for name, found in loaded.items()}
    wanted, own = options["text_field"], options["validation"] or {}
    found = {name: _read(f"data.domains.{name}", spec, most, wanted, cleaning) for name, spec in domains.items()}
    for name, spec in own.items():
        held = _read(f"data.validation.{name}", spec, most, wanted, Cleaning())
        notices = [f"validation: {text}" for text in (*held.notices, *_cap_notices(held))]
        both = (*found[name].notices, *notices)
        found[name] = replace(found[name], validation=held.documents, notices=both)
    return found


def _read(where: str, spec: str, max_bytes: int | None, text_field: str | None, cleaning: Cleaning) -> Collected:
    cleaner = Cleaner(cleaning)
    with _placed(where):
        reader = Reader(spec, text_field)
        found = capped(cleaner.clean(reader), max_bytes)
        _require_some(found.documents, cleaner)
    counts = {**reader.counts, "copies": found.copies, "dropped": dict(cleaner.dropped)}
    notices = (*reader.notices, *_copies(found), *_dropped(cleaner))
    return Collected(found.documents, found.found_bytes, notices, counts)


def _cleaned(documents: Iterable[Document], cleaning: Cleaning) -> Collected:
    """Documents that were under the cap already."""
    cleaner = Cleaner(cleaning)
    kept = list(cleaner.clean(documents))
    _require_some(kept, cleaner)
    counts = {"dropped": dict(cleaner.dropped)} if cleaner.dropped else {}
    return Collected(kept, None, tuple(_dropped(cleaner)), counts)


def _require_some(kept: Sequence[Document], cleaner: Cleaner) -> None:
    if not kept:
        reasons = ", ".join(_dropped(cleaner))
        raise MixwellError(f"data.clean leaves no document ({reasons}); ask for less.")


def _dropped(cleaner: Cleaner) -> list[str]:
    """`12 documents dropped: too few words`"""
    lines = []
    for reason, count in cleaner.dropped.items():
        documents = units.counted(count, "document")
        lines.append(f"{documents} dropped: {reason}")
    return lines


@contextmanager
def _placed(where: str) -> Iterator[None]:
    """What is wrong with a domain is told with its place in the recipe."""
    try:
        yield
    except MixwellError as error:
        raise MixwellError(f"{where}: {error}") from error


def _cap_notices(domain: Collected) -> list[str]:
    read = size_bytes(domain.documents)
    if domain.found_bytes is None or read >= domain.found_bytes:
        return []
    return [f"{units.si(read, 'B')} of {units.si(domain.found_bytes, 'B')} read (data.max_bytes)"]


def _copies(found: Capped) -> list[str]:
    return [f"{found.copies} copies of other documents left out"] if found.copies else []


def documents(stage: Stage) -> dict[str, list[Document]]:
    """What the stage's config asks for."""
    collected = _collected(stage)
    return {name: domain.documents for name, domain in collected.items()}


def _collected(stage: Stage) -> dict[str, Collected]:
    config = json.dumps(_wanted(stage), sort_keys=True)
    state = facts.state(_sources(stage.config))
    return _collect(config, state)


def data_fingerprint(stage: Stage) -> str:
    """Digest of every document's name and text."""
    return _facts(stage)["fingerprint"]


def characters(stage: Stage) -> dict[str, int]:
    """Length of the text that the stage's config asks for, by domain, without what only validates."""
    return _facts(stage)["characters"]


def _facts(stage: Stage) -> dict[str, Any]:
    """What is known of the text without reading it, while no file of it changes, nor the source that reads it."""
    files = [*_sources(stage.config), *_readers()]
    what = ["text", _wanted(stage)]
    return facts.kept(what, files, lambda: _found(stage))


def _wanted(stage: Stage) -> dict[str, Any]:
    """The part of the config that decides what is read: another share held out is no other text."""
    config = stage.plain_config()
    return {name: config[name] for name in _READ}


def _found(stage: Stage) -> dict[str, Any]:
    content, sizes = {}, {}
    for name, domain in _collected(stage).items():
        held = domain.validation or ()
        content[name] = [_named(domain.documents), _named(held)]
        sizes[name] = sum(map(_length, domain.documents))
    return {"fingerprint": digest(content), "characters": sizes}


def _length(document: Document) -> int:
    """Characters that are encoded; a chat template writes about as much around messages as JSON does."""
    return len(document.messages or document.text)


def _named(docs: Iterable[Document]) -> list[list[str]]:
    """Name, identity and digest of the text of each document."""
    named = []
    for document in docs:
        content = digest(document.text.encode())
        named.append([document.path, document.identity, content])
    return named


def _sources(config: DataConfig) -> list[Path]:
    """The files that the text is read from."""
    if isinstance(config.domains, str):
        from mixwell.run import datasets

        return datasets.files(config.domains)
    named = {f"data.domains.{name}": spec for name, spec in config.domains.items()}
    named |= {f"data.validation.{name}": spec for name, spec in (config.validation or {}).items()}
    return [path for where, spec in named.items() for path in _files(where, spec)]


def _files(where: str, spec: str) -> list[Path]:
    with _placed(where):
        return Reader(spec).paths


def _readers() -> list[Path]:
    """The source that reads the text."""
    this = Path(__file__)
    package = this.parents[2]
    own = [this, package / "run" / "datasets.py"]
    lm = sorted((package / "lm").glob("*.py"))
    return own + lm


def run_data(job: Job) -> dict[str, Any]:
    """Split every domain by document and write `<domain number>.json`."""
    config, found = job.stage.config, _collected(job.stage)
    held = read_splits(job.inputs["data"]) if "data" in job.inputs else {}
    summary, names = {}, {}
    notices: list[str] = []
    for number, (name, domain) in enumerate(found.items()):
        try:
            split, left = kept_apart(_split(domain, config), held)
        except MixwellError as error:
            raise MixwellError(f"data.domains.{name}: {error}") from error
        names[name] = f"{number:02d}.json"
        rows = {"train": _rows(split.train), "held": _rows(split.held)}
        write_json(job.folder / names[name], {"note": split.note, **rows})
        train_bytes, held_bytes = size_bytes(split.train), size_bytes(split.held)
        summary[name] = {"documents": len(domain.documents), "found_bytes": domain.found_bytes,
                         "train_bytes": train_bytes, "held_bytes": held_bytes, "held_share": split.held_share,
                         "split": split.note, "read": dict(domain.counts)}
        notices += [f"{name}: {text}." for text in _notices(domain, split, config)]
        if left:
            notices.append(f"{name}: {units.counted(left, 'document')} not trained on, since the run holds them out.")
        job.progress((number + 1) / len(found), name)
    write_json(job.folder / "domains.json", names)
    _collect.cache_clear()
    return {"domains": summary, "notices": notices, "answers_only": config.answers_only}


def held_out(stage: Stage) -> dict[str, Sequence[Document]]:
    """The documents that the stage's config holds out, by domain."""
    found: dict[str, Sequence[Document]] = {}
    for name, domain in _collected(stage).items():
        split = _split(domain, stage.config)
        found[name] = split.held
    return found


def _split(domain: Collected, config: DataConfig) -> Split:
    if domain.validation is None:
        return split_documents(domain.documents, config.held_out)
    return split_apart(domain.documents, domain.validation)


def kept_apart(split: Split, others: Mapping[str, Split]) -> tuple[Split, int]:
    """The split without what `others` hold out of their domains on its side to train on, and how many those were.

    Raises `MixwellError` where nothing is left to train on.
    """
    held = {document.identity for other in others.values() for document in other.held}
    trained = {document.text for other in others.values() for document in other.train}  # the rest of one that is cut
    train = [one for one in split.train if one.identity not in held or one.text in trained]
    if not train:
        raise MixwellError("all of it is held out by the run's own data; expected text to train on.")
    return replace(split, train=tuple(train)), len(split.train) - len(train)


def _notices(domain: Collected, split: Split, config: DataConfig) -> list[str]:
    """What a reader of the results must know of a domain: what was left out, and a split that is not as asked."""
    notices = [*domain.notices, *_cap_notices(domain)]
    if domain.validation is not None:
        return notices + _both_notices(domain, split)
    if split.cut:
        alone = len(domain.documents) == 1
        few = "one document alone" if alone else "too few documents of like size"
        notices.append(f"{few}, so the end of {split.cut} is held out; whole documents would tell more")
    asked = config.held_out
    off = abs(split.held_share - asked)
    if off > asked / 2:
        found = units.percent(split.held_share)
        notices.append(f"{found} of the text is held out, {units.percent(asked)} was asked for (data.held_out)")
    return notices


def _both_notices(domain: Collected, split: Split) -> list[str]:
    both = len(domain.documents) - len(split.train)
    if not both:
        return []
    return [f"{both} documents are held out and not trained on, since data.validation holds them, too"]


def _rows(docs: Iterable[Document]) -> list[list[str]]:
    """What `read_splits` makes documents of again."""
    rows = []
    for document in docs:
        row = [document.path, document.text, document.whole, document.messages]
        rows.append(row)
    return rows


def read_splits(folder: Path) -> dict[str, Split]:
    """The splits that a data stage wrote."""
    found = {}
    for name, file in read_json(folder / "domains.json").items():
        data = read_json(folder / file)
        sides = {side: tuple(Document(*row) for row in data[side]) for side in ("train", "held")}
        found[name] = Split(sides["train"], sides["held"], data["note"])
    return found
