"""The text of ids as they come: whole characters only, and nothing that may turn out to begin a stop text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from tokenizers import pre_tokenizers

from mixwell.lm.answering import UNFINISHED
from mixwell.lm.tokenizer import Tokenizer

BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")


class Text:
    """What an answer says so far. `stopped` is True once one of the `stops` stood in it."""

    def __init__(self, tokenizer: Tokenizer, stops: Iterable[str] = ()) -> None:
        self.tokenizer, self.stops = tokenizer, tuple(stops)
        self.stopped = False
        self._ids: list[int] = []
        self._from, self._upto = 0, 0  # ids whose text gives those behind them their context, and those told
        self._held = ""

    def push(self, number: int) -> str:
        """What can be told now that the id `number` came."""
        self._ids.append(number)
        return self._told(self._decoded())

    def close(self) -> str:
        """What was held back; no id will come."""
        if self.stopped:
            return ""
        rest = self._told(self._decoded(last=True))
        held, self._held = self._held, ""
        return rest if self.stopped else rest + held

    def _decoded(self, last: bool = False) -> str:
        """Text of the ids that were not told yet, once it ends in a whole character."""
        before = self._decode(self._ids[self._from : self._upto])
        both = self._decode(self._ids[self._from :])
        if not last and (both.endswith(UNFINISHED) or len(both) <= len(before)):
            return ""
        self._from, self._upto = self._upto, len(self._ids)
        return both[len(before) :]

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special=True)

    def _told(self, new: str) -> str:
        """`new` and what was held back, up to a stop, or to what may become one."""
        text = self._held + new
        places = [text.find(stop) for stop in self.stops]
        found = [place for place in places if place >= 0]
        if found:
            end = min(found)
            self.stopped, self._held = True, ""
            return text[:end]
        overlaps = [_overlap(text, stop) for stop in self.stops]
        sure = len(text) - max(overlaps, default=0)
        self._held = text[sure:]
        return text[:sure]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop` begins."""
    most = min(len(text), len(stop) - 1)
    for length in range(most, 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


class Spelling:
    """How single ids are written down."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokens = {number: token for token, number in tokenizer.vocabulary.items()}
        self._special = tokenizer.special_ids
        self._letters = _byte_of_letter() if tokenizer.byte_level else None
        self.bytes_of = lru_cache(1 << 16)(self._bytes_of)

    def _bytes_of(self, number: int) -> bytes:
        """The UTF-8 bytes that an id stands for; none for an id without a token."""
        token = self._tokens.get(number, "")
        letters = self._letters
        plain = letters is not None and number not in self._special
        if letters is not None and plain and letters.keys() >= set(token):
            return bytes(letters[letter] for letter in token)
        if BYTE.fullmatch(token):
            value = int(token[3:5], 16)
            return bytes([value])
        return token.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode()

    def text(self, number: int) -> str:
        """The id's text; bytes that are no whole characters are spelt `bytes:\\xe2\\x82`."""
        data = self.bytes_of(number)
        try:
            return data.decode()
        except UnicodeDecodeError:
            spelt = [f"\\x{byte:02x}" for byte in data]
            return "bytes:" + "".join(spelt)


@lru_cache(1)
def _byte_of_letter() -> dict[str, int]:
    """Which byte each letter of a byte-level vocabulary stands for."""
    plain = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in plain]
    found = {chr(byte): byte for byte in plain}
    found |= {chr(256 + place): byte for place, byte in enumerate(others)}
    assert found.keys() == set(pre_tokenizers.ByteLevel.alphabet())
    return found
