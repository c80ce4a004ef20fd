"""Numbers as people write them: decimal commas, thousands, currencies, percent, brackets for minus, Fortran exponents.

    tally(["1.234,5", "950"])      # what a column's values say of its decimal sign
    value("1.234,5", COMMA)        # 1234.5
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

POINT, COMMA = ".", ","
DECIMALS = (POINT, COMMA)
SPACES = "\u00a0\u2007\u2009\u202f "  # which set thousands apart
MINUSES = dict.fromkeys(map(ord, "\u2212\u2012\u2013\ufe63\uff0d"), "-")
MONEY = r"[$€£¥₹₽¢₩₪₺]|\b(?:USD|EUR|GBP|CHF|JPY|CNY|INR|SEK|NOK|DKK|PLN|CZK|AUD|CAD)\b"
MARK = re.compile(rf"\s*(?:{MONEY}|%)\s*")
EXPONENT = r"(?:[eEdD][+-]?\d+)?"
_GROUPED = r"(?:[1-9]\d{{0,2}}(?:{0}\d{{3}})+|\d+)"
_FORM = r"[+-]?(?:{whole}(?:{decimal}\d*)?|{decimal}\d+){exponent}"
_POINT_FORM = _FORM.format(whole=_GROUPED.format(","), decimal=r"\.", exponent=EXPONENT)
_COMMA_FORM = _FORM.format(whole=_GROUPED.format(r"\."), decimal=",", exponent=EXPONENT)
FORMS = {POINT: re.compile(_POINT_FORM), COMMA: re.compile(_COMMA_FORM)}
ENDLESS = re.compile(r"[+-]?inf(?:inity)?", re.I)
APART = re.compile(r"(?<=\d)(?:['’]|[" + SPACES + r"])(?=\d{3}(?!\d))")  # between groups of three digits
CODE = re.compile(r"0\d+")  # leading zeros, as names that consist of digits have them
BARE_POWER = re.compile(r"\d+[eE]\d+")  # a number, or a name such as 12E5


@dataclass(frozen=True)
class Tally:
    """How many values are numbers with a decimal point alone, with a comma alone, with either in two meanings."""

    point: int = 0
    comma: int = 0
    either: tuple[str, ...] = ()  # 1.234 and 1,234: one to ten, or thousands
    plain: int = 0  # without any sign in them
    long: int = 0  # plain ones of four digits or more
    other: int = 0  # no numbers

    @property
    def numbers(self) -> int:
        """Values that are numbers in some way."""
        settled = self.point + self.comma
        return settled + len(self.either) + self.plain


def core(text: str) -> str:
    """The digits and signs of a number: without currency, percent, brackets, spaces between thousands."""
    bare = MARK.sub("", text.strip()).translate(MINUSES)
    if bare[:1] == "(" and bare[-1:] == ")":
        bare = f"-{bare[1:-1]}"
    return APART.sub("", bare.strip())


def tally(texts: Iterable[str]) -> Tally:
    """What values say of their decimal sign."""
    found = dict.fromkeys(("point", "comma", "plain", "long", "other"), 0)
    either = []
    for text in texts:
        bare = core(text)
        kind = _kind(bare)
        if kind == "either":
            either.append(text)
            continue
        found[kind] += 1
        found["long"] += kind == "plain" and len(bare) > 3
    return Tally(either=tuple(either), **found)


def _kind(bare: str) -> str:
    point = FORMS[POINT].fullmatch(bare) is not None
    comma = FORMS[COMMA].fullmatch(bare) is not None
    if point and comma:
        return "either" if POINT in bare or COMMA in bare else "plain"
    if point or comma:
        return "point" if point else "comma"
    return "plain" if ENDLESS.fullmatch(bare) else "other"


def decided(found: Tally) -> str:
    """The decimal sign that a column's own values settle; "" where they do not."""
    if found.point == found.comma:
        return ""
    return POINT if found.point > found.comma else COMMA


def value(text: str, decimal: str) -> float:
    """The number that a text is, NaN where it is none."""
    bare = core(text)
    if ENDLESS.fullmatch(bare):
        return float(bare)
    if not FORMS[decimal].fullmatch(bare):
        return math.nan
    thousands = COMMA if decimal == POINT else POINT
    digits = bare.replace(thousands, "").replace(decimal, ".")
    return float(digits.translate({ord("D"): "e", ord("d"): "e"}))


def marks(texts: Iterable[str]) -> list[str]:
    """The currencies and the percent sign that stand beside numbers, each once."""
    found: dict[str, None] = {}
    for text in texts:
        for mark in MARK.findall(text):
            found[mark.strip()] = None
    return list(found)
