"""What stands for a missing value, and what a caller says of how a file is written.

Signs such as `?` and `-` mark a missing value everywhere. `NA` and `none` do so among numbers; among words they are
words (a country, a grade), unless the file uses them among numbers too, or quotes its words and not these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SIGNS = frozenset(("", "?", "-", "–", "—", ".", "..", "…", "#n/a", "#n/a n/a", "n/a", "n.a.", "<na>", "nan", "-nan",
                   "+nan", "null", "\\n", "1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan", "#value!", "#ref!", "#div/0!",
                   "#null!", "#num!", "nat"))
WORDS = frozenset(("na", "none", "nil"))
AMONG_NUMBERS = SIGNS | WORDS


@dataclass(frozen=True, kw_only=True)
class Form:
    """How a table is written, where a caller knows; None and empty where it is to be found out."""

    delimiter: str = ""
    decimal: str = ""  # . or ,
    thousands: str = ""  # , or . and so on; it settles the decimal sign where that is not named
    encoding: str = ""
    missing: tuple[str, ...] = ()  # what marks a missing value, beside the usual marks
    header: bool | None = None
    skip_rows: int | None = None


def is_mark(text: str) -> bool:
    """Whether a text marks a missing value among numbers."""
    return text.strip().lower() in AMONG_NUMBERS


def marks_words(seen: Sequence[str], among_numbers: frozenset[str], bare: frozenset[str]) -> set[str]:
    """Those of a column's words that mark missing values: signs, and words which the file uses as marks elsewhere.

    among_numbers: marks found among numbers of the file, as they are written. bare: marks that the file leaves without
    quotes where it quotes its words.
    """
    found = set()
    for text in seen:
        low = text.strip().lower()
        elsewhere = text.strip() in among_numbers or text.strip() in bare
        if low in SIGNS or (low in WORDS and elsewhere):
            found.add(text)
    return found
