"""What a message says, whatever is put into it."""

import pytest

from mixwell.core.errors import LONGEST, MixwellError


@pytest.mark.parametrize("value", ["7" * 20_000, "ab " * 7_000, "\x1b[2J" * 5_000, "é\n" * 9_000])
def test_a_message_is_one_line_of_bounded_length_and_keeps_both_ends(value):
    line = str(MixwellError(f"a.yaml: seed is {value}; expected a whole number."))
    assert line.isprintable() and len(line) <= LONGEST + 5
    assert line.startswith("a.yaml: seed is ") and line.endswith("; expected a whole number.") and " ... " in line
    assert str(MixwellError(f"stage dense: {line}")).endswith("; expected a whole number.")


def test_a_message_that_fits_stays_as_it_is():
    assert str(MixwellError("x" * LONGEST)) == "x" * LONGEST
