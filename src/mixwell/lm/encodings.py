"""Which encoding a file's text has, by its first bytes; and in words what a file may be that says nothing of it."""

from __future__ import annotations

import codecs

UTF_8 = "utf-8-sig"
MARKED = ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"),
          (codecs.BOM_UTF16_BE, "utf-16"))  # the longer marks first: one begins like another
OF_PAIRS = ("SHIFT_JIS", "EUC-JP", "GB18030", "EUC-KR", "BIG5")  # encodings of scripts with thousands of signs
MANY = 0.3  # share of bytes beyond ASCII above which a text is hardly of Latin letters
HALF = 0.4  # share of zeros at every second place from which on they are halves of ASCII letters


def marked(start: bytes) -> str:
    """The encoding that the first bytes name, or nothing."""
    for mark, name in MARKED:
        if start.startswith(mark):
            return name
    return ""


def unmarked_utf_16(start: bytes) -> str:
    """The kind of UTF-16 that bytes without a mark look like, or nothing."""
    first, second = start[::2], start[1::2]
    if _are_halves(second, first):
        return "UTF-16LE"
    return "UTF-16BE" if _are_halves(first, second) else ""


def _are_halves(high: bytes, low: bytes) -> bool:
    """Whether the bytes are high and low halves of signs, many of them ASCII letters."""
    zeros = high.count(0)
    enough = zeros > HALF * len(high)
    return len(low) > 1 and enough and not low.count(0)


def candidates(data: bytes) -> list[str]:
    """Names, as iconv knows them, of encodings that bytes which are no UTF-8 may be in, the likeliest first."""
    beyond = sum(byte >= 0x80 for byte in data)
    if beyond <= MANY * len(data):
        return ["WINDOWS-1252", "LATIN1"]
    fitting = [name for name in OF_PAIRS if _fits(data, name)]
    return [*fitting, "WINDOWS-1251"]


def _fits(data: bytes, name: str) -> bool:
    decoder = codecs.getincrementaldecoder(name)()
    try:
        decoder.decode(data)  # the last sign may be cut
    except UnicodeDecodeError:
        return False
    return True
