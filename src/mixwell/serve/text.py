"""How single ids are written down, and where their text begins."""

from __future__ import annotations

import codecs
from functools import lru_cache

from tokenizers import pre_tokenizers

from mixwell.lm.tokenizer import Tokenizer, spelt


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
        plain = number not in self._special
        if letters is not None and plain and letters.keys() >= set(token):
            return bytes(letters[letter] for letter in token)
        return spelt(token)

    def text(self, number: int) -> str:
        """The id's text; bytes that are no whole characters are spelt `bytes:\\xe2\\x82`."""
        data = self.bytes_of(number)
        try:
            return data.decode()
        except UnicodeDecodeError:
            spelt = [f"\\x{byte:02x}" for byte in data]
            return "bytes:" + "".join(spelt)


class Places:
    """Where the text of each id begins, in characters, as the ids come; a character that is not whole yet is none."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("ignore")
        self._reached = 0

    def next(self, data: bytes) -> int:
        """The place of the bytes that an id stands for."""
        begin = self._reached
        self._reached += len(self._decoder.decode(data))
        return begin


@lru_cache(1)
def _byte_of_letter() -> dict[str, int]:
    """Which byte each letter of a byte-level vocabulary stands for."""
    plain = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in plain]
    found = {chr(byte): byte for byte in plain}
    found |= {chr(256 + place): byte for place, byte in enumerate(others)}
    assert found.keys() == set(pre_tokenizers.ByteLevel.alphabet())
    return found
