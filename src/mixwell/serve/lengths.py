"""Texts that are too long are refused by their beginning: reading one whole takes a hundred times its own memory."""

from __future__ import annotations

from collections.abc import Sequence

from mixwell.core.errors import MixwellError
from mixwell.lm.tokenizer import Tokenizer

CHARACTERS = 8  # of a token, more than texts have
CUT = 64  # tokens that a word may have more of where it is cut


def check_fits(texts: Sequence[str], tokenizer: Tokenizer, context: int) -> None:
    """Raise `MixwellError` for texts of many more tokens than `context`. A longer beginning is read each time, so that
    texts of long tokens pass."""
    total = sum(map(len, texts))
    begun = context * CHARACTERS
    while begun < total:
        beginning = _beginning(texts, begun)
        ids = tokenizer.encode(beginning)
        if len(ids) > context + CUT:
            raise MixwellError(f"the prompt has {total} characters, which are more tokens than the context of "
                               f"{context}; shorten it.")
        begun *= 2


def _beginning(texts: Sequence[str], characters: int) -> str:
    """The first characters of texts, one behind the other."""
    found, room = [], characters
    for text in texts:
        found.append(text[:room])
        room -= len(found[-1])
        if not room:
            break
    return "".join(found)
