"""The text that models are measured on: whole documents by domain under a budget, or pieces where documents are few."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mixwell.compare.budgets import amounts
from mixwell.core.errors import MixwellError
from mixwell.lm.conversation import Conversation
from mixwell.lm.documents import Document, Reader, size_bytes
from mixwell.lm.splitting import capped, head, place, split_documents
from mixwell.lm.tokenizer import Tokenizer
from mixwell.run import datasets, recipe
from mixwell.run.recipe import Recipe
from mixwell.run.stages import text as stage_text

BYTES = 256_000  # of each domain's text, where no budget is named
STANDARD = "held-out text of the standard library"
STANDARD_BYTES, STANDARD_HELD = 1_500_000, 0.05  # of each domain, as the default recipe has it
FEW = 20  # documents of a domain; fewer are cut into pieces, which can say how sure a difference is
PIECES = 50  # that text is cut into, where there is enough
LEAST_PIECE = 256  # bytes
UNITS = ("bytes", "tokens")  # of a budget, for each domain


@dataclass(frozen=True, kw_only=True)
class Text:
    """What is read: documents by domain, or pieces of them, and what is to be told of how they came about."""

    source: str
    domains: Mapping[str, Sequence[Document]]
    notices: tuple[str, ...] = ()
    pieces: bool = False  # whether some documents are cut


def held_out(chosen: Recipe) -> Text:
    """The text that the recipe holds out, as much of it as its evaluations read."""
    bare = replace(chosen, stages=[])
    data, *_ = recipe.stages(bare)
    standard = data.config.domains == "standard-library"
    source = STANDARD if standard else f"the held-out text of {chosen.name}"
    documents = stage_text.held_out(data)
    return of_documents(source, documents)


def parse_budget(budget: Mapping[str, Any] | str | None) -> dict[str, float]:
    """`bytes=1M` or `tokens=60k` as a number of at least 1 by its name. Raises `MixwellError` for others."""
    if budget is None:
        return {"bytes": BYTES}
    found = amounts(budget, UNITS)
    if len(found) != 1:
        raise MixwellError(f"--budget: expected one of {' and '.join(UNITS)}, such as bytes=1M, got {budget!r}.")
    for name, amount in found.items():
        if amount < 1:
            raise MixwellError(f"--budget {name}: expected at least 1, got {amount:g}.")
    return found


def read(data: str | Path | None, limits: Mapping[str, float]) -> Text:
    """The documents to read, under a cap of bytes where `limits` names one."""
    most = int(limits["bytes"]) if "bytes" in limits else None
    if data is None:
        standard = datasets.load("standard-library", STANDARD_BYTES)
        held = {name: split_documents(found, STANDARD_HELD).held for name, found in standard.items()}
        return of_documents(STANDARD, held, most)
    reader = Reader(data)
    found = list(reader)
    name = Path(data).stem or str(data)
    text = of_documents(str(data), {name: found}, most)
    return replace(text, notices=(*reader.notices, *text.notices))


def of_documents(source: str, documents: Mapping[str, Sequence[Document]], most_bytes: int | None = None) -> Text:
    """Text of these documents by domain, at most so many bytes of each, cut into pieces where they are few."""
    domains: dict[str, Sequence[Document]] = {}
    notices = []
    cut = False
    for name, own in documents.items():
        kept = capped(own, most_bytes)
        pieces = _pieces(kept.documents)
        domains[name] = pieces
        if len(pieces) > len(kept.documents):
            cut = True
            few = "1 document" if len(kept.documents) == 1 else f"{len(kept.documents)} documents"
            notices.append(f"{name}: {few}, cut into {len(pieces)} pieces, which stand for documents in the interval; "
                           "pieces of one document are alike, so that it may be too narrow.")
        size = size_bytes(pieces)
        if size < kept.found_bytes:
            notices.append(f"{name}: {size} of {kept.found_bytes} bytes read (--budget).")
    return Text(source=source, domains=domains, notices=tuple(notices), pieces=cut)


def _pieces(documents: Sequence[Document]) -> list[Document]:
    """The documents themselves, or where there are few, pieces of them that end at lines."""
    if len(documents) >= FEW:
        return list(documents)
    whole = size_bytes(documents)
    size = max(LEAST_PIECE, whole // PIECES)
    found = []
    for document in documents:
        if document.messages:  # stays whole
            found.append(document)
            continue
        rest = document
        while rest.size > 2 * size:
            first = head(rest, size)
            found.append(first)
            rest = Document(rest.path, rest.text[len(first.text) :])
        found.append(rest)
    return found


def as_written(text: Text, tokenizers: Mapping[str, Tokenizer]) -> Text:
    """The text with its conversations as the models' chat templates write them, of which the answers alone count.

    Where a model has no template, conversations are plain text to all of them. Which of the two it is, is told.
    """
    talked = any(document.messages for own in text.domains.values() for document in own)
    if not talked:
        return text
    without = [name for name, tokenizer in tokenizers.items() if tokenizer.chat_template is None]
    if not without:
        told = "conversations are written by each model's chat template; their answers alone count."
        return replace(text, notices=(*text.notices, told))
    told = f"{', '.join(without)}: no chat template, so that conversations are read as plain text, questions as well."
    domains = {name: [replace(document, messages="") for document in own] for name, own in text.domains.items()}
    return replace(text, domains=domains, notices=(*text.notices, told))


def counted_bytes(document: Document) -> int:
    """UTF-8 bytes of what counts in a document: of a conversation its answers, whatever a template puts around them."""
    if not document.messages:
        return document.size
    talk = Conversation.from_json(document.messages)
    said = [talk.messages[place].get("content") or "" for place in talk.answers]
    return sum(len(content.encode()) for content in said)


def within_tokens(text: Text, limits: Mapping[str, float], tokenizers: Sequence[Tokenizer]) -> Text:
    """The first documents of each domain that have so many tokens, by the tokenizer that makes most of them."""
    if "tokens" not in limits:
        return text
    domains = {name: _first(own, limits["tokens"], tokenizers) for name, own in text.domains.items()}
    return replace(text, domains=domains)


def _first(documents: Sequence[Document], most: float, tokenizers: Sequence[Tokenizer]) -> list[Document]:
    kept: list[Document] = []
    spent = dict.fromkeys(range(len(tokenizers)), 0)
    for document in sorted(documents, key=lambda one: place("evaluate", one)):  # an even pick
        if max(spent.values()) >= most:
            break
        kept.append(document)
        for number, tokenizer in enumerate(tokenizers):
            spent[number] += len(tokenizer.encode(document.text)) + 1
    return kept
