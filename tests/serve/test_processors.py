"""The split of experts between two processors is the best of all prefixes, and better than a choice for the layer."""

import itertools

import pytest

from mixwell.core.rng import generator
from mixwell.serve.processors import Config, Unit, crossover, example, processors, seconds

CONFIG = Config(many=Unit(flops=1000.0, bandwidth=1.0), near=Unit(flops=40.0, bandwidth=4.0), number_bytes=2.0)


def time_of(unit, rows, size):
    """A roofline in plain words."""
    if not rows:
        return 0.0
    return max(2 * rows * size / unit.flops, 2.0 * size / unit.bandwidth)


def test_no_split_of_the_experts_is_faster():
    """Against every subset, not the prefixes alone: with the busy ones on the strong unit none is left better."""
    for counts in ([50, 1, 1, 1, 30, 2], [1, 1, 1, 1], [9, 0, 0, 200], [0, 0, 0]):
        found = processors(counts, 10, CONFIG)
        best = min(max(sum(time_of(CONFIG.many, counts[e], 10) for e in many),
                       sum(time_of(CONFIG.near, counts[e], 10) for e in range(len(counts)) if e not in many))
                   for size in range(len(counts) + 1) for many in itertools.combinations(range(len(counts)), size))
        assert found.seconds == pytest.approx(best), counts
        assert sorted(found.many + found.near) == list(range(len(counts)))
        assert min((counts[e] for e in found.many), default=10**9) >= max((counts[e] for e in found.near), default=0)


def test_units_are_equally_fast_at_the_crossover():
    rows = crossover(CONFIG)
    assert rows == 40.0
    assert seconds(CONFIG.near, int(rows), 10, 2.0) == pytest.approx(seconds(CONFIG.many, int(rows), 10, 2.0))
    assert seconds(CONFIG.near, 4, 10, 2.0) < seconds(CONFIG.many, 4, 10, 2.0)


def test_uneven_experts_gain_over_a_choice_for_the_layer_and_memory_bounds_both():
    counts = [400, 300] + [2] * 30
    alone = [sum(seconds(unit, count, 10, 2.0) for count in counts) for unit in (CONFIG.many, CONFIG.near)]
    found = processors(counts, 10, CONFIG)
    assert found.seconds < 0.5 * min(alone) and found.many[:2] == [0, 1]
    bound = processors(counts, 10, Config(many=CONFIG.many, near=CONFIG.near, shared=5.0))
    assert bound.seconds == pytest.approx(max(found.seconds, 32 * 10 * 2.0 / 5.0))
    values = example(generator(0))
    assert processors(**values) == processors(**values)


def test_bad_numbers_are_refused():
    with pytest.raises(ValueError, match="none below zero"):
        processors([1, -1], 10, CONFIG)
    with pytest.raises(ValueError, match="bandwidth is 0"):
        Unit(flops=1.0, bandwidth=0)
    with pytest.raises(ValueError, match="shared is 0"):
        Config(shared=0)
