"""Which documents are read, which of them are held out, and in which order they stand: three independent draws.

Each draw hashes a document's text under a name of its own (`place`). Were one hash to serve two of them, a cap that
keeps the smallest hashes would leave the split little but held-out documents.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from mixwell.core.errors import MixwellError
from mixwell.core.files import digest
from mixwell.lm.documents import Document, size_bytes

SLACK = 0.25  # how far the smaller side's bytes may lie off before a document leaves the side of its hash
MARKS = (b"\n", b" ")  # where a text is cut, the best place first


@dataclass(frozen=True)
class Split:
    """A domain's documents to train on and those held out, and in words how they were told apart.

    `cut` is the path of the document whose end alone is held out; empty where all documents are whole.
    """

    train: tuple[Document, ...]
    held: tuple[Document, ...]
    note: str
    cut: str = ""

    @property
    def held_share(self) -> float:
        """Share of the bytes that is held out."""
        held = size_bytes(self.held)
        return held / (held + size_bytes(self.train))


@dataclass(frozen=True)
class Capped:
    """The documents that a cap let through, and what there was: documents, UTF-8 bytes, copies of another's text."""

    documents: list[Document]
    found: int
    found_bytes: int
    copies: int


def place(purpose: str, document: Document) -> float:
    """Where a document stands in the order of a purpose, 0 up to 1: evenly spread, independent between purposes."""
    return int(digest(f"{purpose}\n{document.identity}".encode())[:13], 16) / 16**13


def capped(documents: Iterable[Document], max_bytes: int | None) -> Capped:
    """An even pick of documents of at most `max_bytes` together, each text once, in the order in which they came.

    The last one in the order of the pick is cut short. A higher cap keeps all that a lower one kept. No more than the
    pick and one document are in memory at a time.
    """
    seen: set[str] = set()
    pick: list[tuple[float, int, Document]] = []  # a heap, the first to go on top
    size, found_bytes, copies = 0, 0, 0
    for number, document in enumerate(documents):
        if document.identity in seen:
            copies += 1
            continue
        seen.add(document.identity)
        heapq.heappush(pick, (-place("cap", document), number, document))
        size += document.size
        found_bytes += document.size
        while max_bytes is not None and size - pick[0][2].size >= max_bytes:
            size -= heapq.heappop(pick)[2].size
    if max_bytes is not None and size > max_bytes:
        minus, number, last = heapq.heappop(pick)
        part = head(last, last.size - (size - max_bytes))
        pick += [(minus, number, part)] if part.text.strip() else []
    kept = [document for _, _, document in sorted(pick, key=lambda entry: entry[1])]
    return Capped(kept, len(seen), found_bytes, copies)


def head(document: Document, size: int) -> Document:
    """The beginning of a document, of at most `size` bytes: up to a line where that leaves half of them or more."""
    data = document.text.encode()[:size]
    line = data.rfind(b"\n") + 1
    data = data[:line] if 2 * line >= size else data
    return Document(document.path, data.decode("utf-8", "ignore"), document.identity)


def split_documents(documents: Sequence[Document], held_fraction: float = 0.1) -> Split:
    """Hold out about `held_fraction` of the bytes, whole documents where that is possible; copies count once.

    A document is held out where the hash of its text lies below `held_fraction`. It then stays on its side whatever
    else comes or goes, and whatever a cap let through. Only where that misses the share asked for by more than a
    quarter of the smaller side, as it may with a few hundred documents or very large ones, the documents next in the
    order of the hashes make up for it, and what does not fit is trained on; those few may change sides when others
    come or go. Where whole documents leave more than half missing (a lone one, say), one is cut near its end, at a
    line where it has lines.

    Both sides hold text, each in an order that hangs on nothing but the texts. No document, a single character or a
    share that is not between 0 and 1 raises `MixwellError`.
    """
    if not 0 < held_fraction < 1:
        raise MixwellError(f"held_fraction {held_fraction}: expected a share between 0 and 1.")
    unique = list({document.identity: document for document in reversed(documents)}.values())
    if not unique:
        raise MixwellError("no documents to split; expected at least one.")
    total = size_bytes(unique)
    target = held_fraction * total
    slack = SLACK * min(target, total - target)
    held, train, missing = _whole(unique, held_fraction, target, slack)
    if missing <= 2 * slack:
        return _in_order(train, held, f"by document: {len(train)} to train on, {len(held)} held out")
    first, second, where = _ends(train[0], missing, 2 * slack)
    note = f"by document: {len(train)} to train on, {len(held)} held out, and {first.path} from {where} on"
    if len(unique) == 1:
        note = f"one document: held out from {where} on"
    return _in_order([first, *train[1:]], [*held, second], note, first.path)


def split_apart(documents: Sequence[Document], held: Sequence[Document]) -> Split:
    """Train on `documents` and hold out `held`, each text once; what is held out is not trained on.

    Where nothing is left on a side, `MixwellError` says so.
    """
    kept_out = {document.identity: document for document in reversed(held)}
    train = {d.identity: d for d in reversed(documents) if d.identity not in kept_out}
    if not train or not kept_out:
        raise MixwellError(f"{len(train)} documents to train on and {len(kept_out)} held out, copies apart; expected "
                           "some of both.")
    note = f"by its own files: {len(train)} documents to train on, {len(kept_out)} held out"
    return _in_order(train.values(), kept_out.values(), note)


def _whole(documents: Iterable[Document], fraction: float, target: float,
           slack: float) -> tuple[list[Document], list[Document], float]:
    """(held out, trained on, bytes that are missing to the target); where many are missing, no more would fit."""
    held, train, size = [], [], 0
    for at, document in sorted(((place("hold out", d), d) for d in documents), key=lambda pair: pair[0]):
        wanted = at < fraction or size < target - slack
        if wanted and size + document.size <= target + slack:
            held.append(document)
            size += document.size
        else:
            train.append(document)
    return held, train, target - size


def _in_order(train: Iterable[Document], held: Iterable[Document], note: str, cut: str = "") -> Split:
    def shuffled(side: Iterable[Document]) -> tuple[Document, ...]:
        return tuple(sorted(side, key=lambda document: place("order", document)))

    return Split(shuffled(train), shuffled(held), note, cut)


def _ends(document: Document, size: float, slack: float) -> tuple[Document, Document, str]:
    """A document without its last `size` bytes; those; and where they begin, in words.

    They are more or fewer by up to `slack`, so that the cut falls between lines or words.
    """
    data = document.text.encode()
    target = min(max(round(len(data) - size), 1), len(data) - 1)
    cut = next(_cuts(data, target, slack), None)
    if cut is None:
        raise MixwellError(f"{document.path} holds one character; a domain needs text to train on and text to hold "
                           "out.")
    first, second = (data[:cut].decode(), data[cut:].decode())
    where = f"line {first.count(chr(10)) + 1}" if first.endswith("\n") else f"character {len(first) + 1}"
    return (Document(document.path, first, document.identity), Document(document.path, second, document.identity),
            where)


def _cuts(data: bytes, target: int, slack: float) -> Iterator[int]:
    """Places to cut at that leave text on both sides, the best first: a line, a word, a character."""
    for mark in MARKS:
        near = (data.rfind(mark, 0, target) + 1, data.find(mark, target) + 1)
        good = [cut for cut in near if 0 < cut < len(data) and abs(cut - target) <= slack]
        yield from sorted(good, key=lambda cut: abs(cut - target))
    begins = [i for i in range(max(target - 3, 1), min(target + 4, len(data))) if data[i] & 0xC0 != 0x80]
    yield from sorted(begins, key=lambda cut: abs(cut - target))
