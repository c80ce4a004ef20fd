"""Texts that are too long are refused by their beginning, and no others."""

import pytest

from mixwell.core.errors import MixwellError
from mixwell.serve.lengths import check_fits


class Words:
    """A token for each so many characters; tells how many it was given."""

    def __init__(self, length):
        self.length, self.read = length, 0

    def encode(self, text):
        self.read += len(text)
        return [0] * (len(text) // self.length)


def test_long_texts_are_refused_by_their_beginning():
    few = Words(4)
    with pytest.raises(MixwellError, match="1500000 characters, which are more tokens than the context of 512"):
        check_fits(["word " * 100_000] * 3, few, 512)
    assert few.read == 512 * 8
    parts = Words(4)
    with pytest.raises(MixwellError, match="shorten it"):
        check_fits(["a" * 1500, "b" * 1500, "c" * 9000], parts, 512)


def test_what_may_fit_passes():
    short = Words(1)
    check_fits(["a" * 4096], short, 512)
    assert short.read == 0  # as many characters as short texts of so many tokens have
    spaces = Words(100)
    check_fits([" " * 50_000], spaces, 512)
    assert spaces.read < 100_000
