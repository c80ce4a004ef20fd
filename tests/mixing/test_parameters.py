"""The checks of configs: what they let through, what they refuse, and in which words."""

from types import SimpleNamespace

import pytest

from mixwell.mixing import check_above, check_below, check_least, check_most, check_one_of

NAN = float("nan")


@pytest.mark.parametrize(("check", "right", "wrong", "message"), [
    (check_least, (2, 3), (1, NAN), "expected at least 2"),
    (check_most, (2, 1), (3, NAN), "expected at most 2"),
    (check_above, (3,), (2, 1, NAN), "expected a number above 2"),
    (check_below, (1,), (2, 3, NAN), "expected a number below 2")])
def test_a_bound_is_kept_and_names_the_field(check, right, wrong, message):
    for value in (*right, None):
        check(SimpleNamespace(size=value), size=2)
    for value in wrong:
        with pytest.raises(ValueError, match=f"^size is {value}; {message}$"):
            check(SimpleNamespace(size=value), size=2)


def test_a_choice_is_one_of_those_known():
    check_one_of(SimpleNamespace(order="hard"), order=("easy", "hard"))
    with pytest.raises(ValueError, match=r"^order is 'odd'; expected one of easy, hard$"):
        check_one_of(SimpleNamespace(order="odd"), order=("easy", "hard"))


def test_every_field_is_checked():
    with pytest.raises(ValueError, match=r"^depth is 0"):
        check_least(SimpleNamespace(size=5, depth=0), size=2, depth=1)
