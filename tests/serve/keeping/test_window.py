"""The window keeps its first and its last positions."""

import pytest

from mixwell.core.rng import generator
from mixwell.serve.keeping.window import Config, Window, example
from tests.contracts._keeping import prompt
from tests.serve.keeping.conftest import places_of


def test_the_first_and_the_last_stay():
    weights, whole = prompt(10)
    rule = Window(Config(first=2, last=3))
    kept = rule.prompt(weights, whole)
    assert places_of(kept, whole) == [[0, 1, 7, 8, 9]] * 2
    _, longer = prompt(11)
    assert places_of(rule.token(weights[:, :, -1], longer), longer) == [[0, 1, 8, 9, 10]] * 2
    assert places_of(Window(Config(first=0, last=4)).prompt(weights, whole), whole) == [[6, 7, 8, 9]] * 2
    assert example(generator(0))["config"].last == 4
    with pytest.raises(ValueError, match="last is 0"):
        Config(last=0)
