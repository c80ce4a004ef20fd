"""Which documents are read, which of them are held out, and in which order they stand: three independent draws.

Each draw hashes a document's text under a name of its own (`place`). Were one hash to serve two of them, a cap that
keeps the smallest hashes would leave the split little but held-out documents.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from mixwell.core.errors import MixwellError
from mixwell.core.files import digest
from mixwell.lm.documents import Document, size_bytes

SLACK = 0.25  # how far the smaller side's bytes may lie off before a document leaves the side of its hash
MARKS = (b"\n", b" ")  # where a text is cut, the best place first
DIGITS = 13  # hexadecimal ones of a hash that a place is made of: as many as a float holds


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
    name = f"{purpose}\n{document.identity}"
    digits = digest(name.encode())[:DIGITS]
    return int(digits, 16) / 16**DIGITS


def capped(documents: Iterable[Document], max_bytes: int | None) -> Capped:
    """An even pick of documents of at most `max_bytes` together, each text once, in the order in which they came.

    The last one in the order of the pick is cut short. A higher cap keeps all that a lower one kept. No more than the
    pick and one document are in memory at a time.
    """
    seen: set[str] = set()
    pick = _Pick(max_bytes)
    found_bytes, copies = 0, 0
    for document in documents:
        if document.identity in seen:
            copies += 1
            continue
        seen.add(document.identity)
        found_bytes += document.size
        pick.add(document)
    return Capped(pick.documents(), len(seen), found_bytes, copies)


class _Pick:
    """The documents that come first in the order of the cap, one more than fits at most."""

    def __init__(self, max_bytes: int | None) -> None:
        self.room = math.inf if max_bytes is None else max_bytes
        self.size = 0
        self.added = 0
        self.heap: list[tuple[float, int, Document]] = []  # (minus its place, when it came, document), the last on top

    def add(self, document: Document) -> None:
        """Take a document in, and let those go without which the room is still filled."""
        entry = (-place("cap", document), self.added, document)
        heapq.heappush(self.heap, entry)
        self.added += 1
        self.size += document.size
        while self.size - self._last.size >= self.room:
            self.size -= self._last.size
            heapq.heappop(self.heap)

    @property
    def _last(self) -> Document:
        return self.heap[0][2]

    def documents(self) -> list[Document]:
        """The pick in the order in which it came, the last one in the order of the cap cut to what fits."""
        kept = {number: document for _, number, document in self.heap}
        beyond = self.size - self.room
        if beyond > 0:
            _, number, last = self.heap[0]
            part = head(last, last.size - int(beyond))
            kept[number] = part
            if not part.text.strip():
                del kept[number]
        return [kept[number] for number in sorted(kept)]


def head(document: Document, size: int) -> Document:
    """The beginning of a document, of at most `size` bytes: up to a line where that leaves half of them or more.

    A conversation is whole or not there.
    """
    if document.messages:
        return document if document.size <= size else Document(document.path, "", document.identity)
    data = document.text.encode()[:size]
    line = data.rfind(b"\n") + 1
    if 2 * line >= size:
        data = data[:line]
    text = data.decode("utf-8", "ignore")
    return Document(document.path, text, document.identity)


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
    unique = _each_once(documents)
    if not unique:
        raise MixwellError("no documents to split; expected at least one.")
    total = size_bytes(unique)
    target = held_fraction * total
    slack = SLACK * min(target, total - target)
    held, train, missing = _whole(unique, held_fraction, target, slack)
    note = f"by document: {len(train)} to train on, {len(held)} held out"
    if missing <= 2 * slack:
        return _in_order(train, held, note)
    next_one, *others = train
    first, second, where = _ends(next_one, missing, 2 * slack)
    note = f"{note}, and {first.path} from {where} on"
    if len(unique) == 1:
        note = f"one document: held out from {where} on"
    return _in_order([first, *others], [*held, second], note, first.path)


def split_apart(documents: Sequence[Document], held: Sequence[Document]) -> Split:
    """Train on `documents` and hold out `held`, each text once; what is held out is not trained on.

    Where nothing is left on a side, `MixwellError` says so.
    """
    kept_out = _each_once(held)
    identities = {document.identity for document in kept_out}
    train = [document for document in _each_once(documents) if document.identity not in identities]
    if not train or not kept_out:
        raise MixwellError(f"{len(train)} documents to train on and {len(kept_out)} held out, copies apart; expected "
                           "some of both.")
    note = f"by its own files: {len(train)} documents to train on, {len(kept_out)} held out"
    return _in_order(train, kept_out, note)


def _each_once(documents: Sequence[Document]) -> list[Document]:
    """Of documents with the same text the first."""
    last_first = reversed(documents)
    return list({document.identity: document for document in last_first}.values())


def _whole(documents: Iterable[Document], fraction: float, target: float,
           slack: float) -> tuple[list[Document], list[Document], float]:
    """(held out, trained on, bytes that are missing to the target); where many are missing, no more would fit."""
    held, train, size = [], [], 0
    placed = [(place("hold out", document), document) for document in documents]
    for at, document in sorted(placed, key=lambda pair: pair[0]):
        wanted = at < fraction or size < target - slack
        fits = size + document.size <= target + slack
        if wanted and fits:
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
    if document.messages:
        raise MixwellError("conversations are held out whole, and there are too few of like size to hold out the share "
                           "asked for; give more of them, or another share (data.held_out).")
    data = document.text.encode()
    wanted = round(len(data) - size)
    target = min(max(wanted, 1), len(data) - 1)
    cut = next(_cuts(data, target, slack), None)
    if cut is None:
        raise MixwellError(f"{document.path} holds one character; a domain needs text to train on and text to hold "
                           "out.")
    first, second = data[:cut].decode(), data[cut:].decode()
    where = f"character {len(first) + 1}"
    if first.endswith("\n"):
        where = f"line {first.count(chr(10)) + 1}"
    begun = Document(document.path, first, document.identity)
    ended = Document(document.path, second, document.identity)
    return begun, ended, where


def _cuts(data: bytes, target: int, slack: float) -> Iterator[int]:
    """Places to cut at that leave text on both sides, the best first: a line, a word, a character."""
    def distance(cut: int) -> int:
        return abs(cut - target)

    for mark in MARKS:
        before = data.rfind(mark, 0, target) + 1
        after = data.find(mark, target) + 1
        inside = [cut for cut in (before, after) if 0 < cut < len(data)]
        near = [cut for cut in inside if distance(cut) <= slack]
        yield from sorted(near, key=distance)
    low, high = max(target - 3, 1), min(target + 4, len(data))
    begins = [i for i in range(low, high) if data[i] & 0xC0 != 0x80]
    yield from sorted(begins, key=distance)
