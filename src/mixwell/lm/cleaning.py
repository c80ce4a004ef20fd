"""Documents that are not worth learning from: near copies of others, text that reads like none, other languages.

A document goes through one after the other, so that a corpus of any size passes; of those kept, the search for near
copies remembers a signature of about a kilobyte each. What is dropped is counted by reason.

References: the rules of quality are those of Gopher (Rae et al. 2021, 2112.11446, table A1) with its thresholds;
near copies are found by MinHash with locality-sensitive hashing (Broder 1997) as datasketch has it.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mixwell.core.errors import MixwellError, suggest
from mixwell.lm.documents import Document
from mixwell.mixing import check_not_negative

SIGNATURE = 128  # hashes of a signature: an estimated likeness is off by 0.04 (one deviation)
SHINGLE = 5  # words that are compared together
NEAR, LANGUAGE = "near copies of other documents", "in another language"
_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")
SYMBOLS = ("#", "...", "…")
_BULLETS = ("•", "‣", "-", "*", "\u2013")


def _words(row: str) -> frozenset[str]:
    return frozenset(row.split())


# the commonest words, by which languages that share a script are told apart
COMMON: Mapping[str, frozenset[str]] = {
    "en": _words("the of and to in is that it was for on are with as be this have from or had by not but"),
    "de": _words("der die und das ist nicht ein eine zu den von mit sich auf für im dem des auch es an wird"),
    "fr": _words("le la les et des est une un du que dans pour qui pas sur au avec ce par plus il elle sont"),
    "es": _words("el la los las de que y en un una es por con para no se su del como más pero este"),
    "it": _words("il la di che e un una per non sono è con del della nel alla come più anche gli dei si"),
    "pt": _words("o a os as de que e em um uma para com não se do da dos por mais como mas são ao"),
    "nl": _words("de het een en van is dat in te niet op voor met zijn aan er maar ook als bij om dit"),
    "pl": _words("i w na z się nie do to że jest jak o a po za od ale przez być co tak już dla są"),
    "sv": _words("och att det i en som på är av för med den till inte om ett har de var men sig från")}
SCRIPTS: Mapping[str, str] = {  # of a letter's name in Unicode -> language that it is taken for
    "CYRILLIC": "ru", "GREEK": "el", "HIRAGANA": "ja", "KATAKANA": "ja", "HANGUL": "ko", "CJK": "zh", "ARABIC": "ar",
    "HEBREW": "he", "DEVANAGARI": "hi", "THAI": "th"}
LANGUAGES = tuple(sorted({*COMMON, *SCRIPTS.values()}))
LOOKED_AT = 4000  # characters by which a language is told


@dataclass(frozen=True, kw_only=True)
class Quality:
    """What a text must be like; `ValueError` for a range that is none. Made for prose: code fails some of it."""

    min_words: int = 50
    max_words: int = 100_000
    min_word_length: float = 3.0  # mean
    max_word_length: float = 10.0
    max_symbols: float = 0.1  # `#` and dots of omission, for each word
    min_alphabetic: float = 0.8  # share of the words, told by spaces, that hold a letter
    max_bullets: float = 0.9  # share of the lines that begin with a bullet
    max_omissions: float = 0.3  # share of the lines that end with dots of omission
    max_repeated_lines: float = 0.3  # share of the lines that stood in the text before

    def __post_init__(self) -> None:
        for low, high in (("min_words", "max_words"), ("min_word_length", "max_word_length")):
            least, most = getattr(self, low), getattr(self, high)
            if not 0 <= least < most:
                raise ValueError(f"{low} is {least}, {high} {most}; expected 0 or more, the first below the second")
        for name in ("min_alphabetic", "max_bullets", "max_omissions", "max_repeated_lines"):
            share = getattr(self, name)
            if not 0 <= share <= 1:
                raise ValueError(f"{name} is {share}; expected a share from 0 to 1")
        check_not_negative(self, "max_symbols")


@dataclass(frozen=True, kw_only=True)
class Cleaning:
    """What is dropped; `ValueError` for a value out of range. Nothing by default."""

    near_copies: float | None = None  # likeness (Jaccard, of five words in a row) from which a text is a copy, 0 to 1
    quality: Quality | None = None
    language: str | None = None  # the one that is kept, such as en

    def __post_init__(self) -> None:
        if self.near_copies is not None and not 0 < self.near_copies <= 1:
            raise ValueError(f"near_copies is {self.near_copies}; expected above 0, up to 1")
        if self.language is not None and self.language not in LANGUAGES:
            near = suggest(self.language, LANGUAGES)
            raise ValueError(f"language is {self.language!r};{near} expected one of {', '.join(LANGUAGES)}")


@dataclass
class Cleaner:
    """Goes through documents and keeps some; `dropped` then says how many were left out, by reason."""

    config: Cleaning
    dropped: Counter[str] = field(default_factory=Counter)

    def clean(self, documents: Iterable[Document]) -> Iterator[Document]:
        """The documents that stay, in the order in which they come."""
        likeness = self.config.near_copies
        copies = None if likeness is None else NearCopies(likeness)
        for document in documents:
            reason = self._fault(document.text)
            if not reason and copies is not None and copies.seen(document.text):
                reason = NEAR
            if reason:
                self.dropped[reason] += 1
            else:
                yield document

    def _fault(self, text: str) -> str:
        wanted = self.config.language
        if wanted is not None and language(text) != wanted:
            return LANGUAGE
        return "" if self.config.quality is None else fault(text, self.config.quality)


class NearCopies:
    """Texts that came before, by their signatures."""

    def __init__(self, likeness: float) -> None:
        try:
            import datasketch
        except ImportError:
            raise MixwellError("near_copies needs the package datasketch: pip install 'mixwell[clean]', or leave it "
                               "out.") from None
        self._datasketch: Any = datasketch
        self.likeness = likeness
        self._index = datasketch.MinHashLSH(threshold=likeness, num_perm=SIGNATURE)
        self._kept: list[Any] = []

    def seen(self, text: str) -> bool:
        """Whether a text before this one was as like it; if none was, this one is remembered."""
        own = self._datasketch.MinHash(num_perm=SIGNATURE)
        own.update_batch(shingles(text))
        for place in self._index.query(own):
            if own.jaccard(self._kept[place]) >= self.likeness:
                return True
        self._index.insert(len(self._kept), own)
        self._kept.append(own)
        return False


def shingles(text: str) -> list[bytes]:
    """Every five words in a row, once, without case and marks; of a shorter text all its words together."""
    words = plain_words(text)
    last = max(0, len(words) - SHINGLE)
    rows = set()
    for start in range(last + 1):
        row = words[start : start + SHINGLE]
        rows.add(" ".join(row))
    return [row.encode() for row in sorted(rows)]


def plain_words(text: str) -> list[str]:
    """Words without case and marks."""
    lower = text.lower()
    return _WORD.findall(lower)


def fault(text: str, config: Quality) -> str:
    """The first rule of quality that a text breaks, in words; nothing for one that keeps them all."""
    return _fault_of_words(text, config) or _fault_of_lines(text, config)


def _fault_of_words(text: str, config: Quality) -> str:
    words = text.split()
    count = len(words)
    if count < config.min_words:
        return "too few words"
    if count > config.max_words:
        return "too many words"
    lengths = map(len, words)
    mean = sum(lengths) / max(1, count)
    if mean < config.min_word_length:
        return "words too short"
    if mean > config.max_word_length:
        return "words too long"
    symbols = sum(map(text.count, SYMBOLS))
    if symbols > config.max_symbols * count:
        return "too many symbols"
    lettered = sum(map(_has_letter, words))
    if lettered < config.min_alphabetic * count:
        return "too few words with letters"
    return ""


def _has_letter(word: str) -> bool:
    return any(map(str.isalpha, word))


def _fault_of_lines(text: str, config: Quality) -> str:
    stripped = map(str.strip, text.splitlines())
    lines = [line for line in stripped if line]
    count = len(lines)
    bullets = sum(line.startswith(_BULLETS) for line in lines)
    if bullets > config.max_bullets * count:
        return "too many bullets"
    omissions = sum(line.endswith(SYMBOLS[1:]) for line in lines)
    if omissions > config.max_omissions * count:
        return "too many lines that break off"
    repeated = count - len(set(lines))
    return "too many repeated lines" if repeated > config.max_repeated_lines * count else ""


def language(text: str) -> str:
    """The language of a text as far as its script and commonest words tell it; empty where they do not.

    Looks at the first letters alone. Of languages in one script whose words are not in `COMMON`, none is told.
    """
    head = text[:LOOKED_AT]
    letters = [letter for letter in head if letter.isalpha()]
    scripts = Counter(map(_script, letters))
    if not scripts:
        return ""
    if scripts["HIRAGANA"] + scripts["KATAKANA"] > 0.1 * len(letters):
        return "ja"  # beside its own letters Japanese has many that Chinese has
    first, often = scripts.most_common(1)[0]
    if often < 0.5 * len(letters):
        return ""
    return _by_words(head) if first == "LATIN" else SCRIPTS.get(first, "")


def _script(letter: str) -> str:
    name = unicodedata.name(letter, "")
    return name.partition(" ")[0]


def _by_words(text: str) -> str:
    """The language whose commonest words make up most of the text, if they do so at all and more than others'."""
    words = plain_words(text)
    known: Counter[str] = Counter()
    for name, common in COMMON.items():
        known[name] = sum(word in common for word in words)
    (first, often), (_, next_often) = known.most_common(2)
    least = max(next_often, 0.08 * len(words))
    return first if often > least else ""
