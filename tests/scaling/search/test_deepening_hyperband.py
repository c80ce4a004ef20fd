"""Hyperband's own counts, what each variant keeps, and that going deeper costs less than starting again."""

import numpy as np
import pytest

from mixwell.core.errors import MixwellError
from mixwell.scaling.search.deepening_hyperband import VARIANTS, Config, deepening_hyperband, promoted, starts
from mixwell.scaling.trials import Trials


def table(seed=0, count=60, most=27, noise=0.1):
    generator = np.random.default_rng(seed)
    floor = generator.random((count, 1))
    return floor + 1 / np.arange(1, most + 1) + noise * generator.standard_normal((count, most))


def run(losses, **options):
    return deepening_hyperband(Trials.tabulated(losses), Config(**options), np.random.default_rng(3))


def test_brackets_start_as_hyperbands_do():
    assert starts(4, 3) == [81, 34, 15, 8, 5]  # Li et al. 2018 with ceil; R = 81
    assert starts(0, 3) == [1]


def plain_hyperband(losses, depth, eta, order):
    """Hyperband in one piece: rounds of (configurations, epochs), most configurations first."""
    order, best, reached = list(order), (np.inf, -1), {}
    for halvings in range(depth, -1, -1):
        count = int(np.ceil((depth + 1) / (halvings + 1) * eta**halvings))
        pool, order = order[:count], order[count:]
        for rung in range(halvings + 1):
            epochs = eta ** (depth - halvings + rung)
            reached.update(dict.fromkeys(pool, epochs))
            pool.sort(key=lambda trial: losses[trial, epochs - 1])
            if rung < halvings:
                pool = pool[: count // eta ** (rung + 1)]
        best = min(best, (losses[pool[0], eta**depth - 1], pool[0]))
    return best, sum(reached.values())


@pytest.mark.parametrize("variant", VARIANTS)
def test_without_deepening_it_is_hyperband(variant):
    losses = table()
    needed = sum(starts(3, 3))
    order = np.random.default_rng(3).permutation(60)[:needed]
    (loss, trial), spent = plain_hyperband(losses, 3, 3, order)
    assert run(losses, first_depth=3, variant=variant) == (trial, loss, spent)


def test_variants_promote_as_they_say():
    losses = {0: 0.4, 1: 0.1, 2: 0.3, 3: 0.2}
    assert promoted(losses, [0], 2, "discarding") == [1, 3]
    assert promoted(losses, [0], 2, "preserving") == [0, 1, 3]
    assert promoted(losses, [0], 2, "efficient") == [0, 1]


def test_going_deeper_costs_less_than_both_runs_and_efficient_least():
    shallow_and_deep = run(table(), first_depth=2, last_depth=2).spent + run(table(), first_depth=3).spent
    spent = {variant: run(table(), variant=variant).spent for variant in VARIANTS}
    assert spent["efficient"] <= spent["discarding"] <= spent["preserving"] < shallow_and_deep


def test_refusals():
    with pytest.raises(MixwellError, match="needs 49 configurations and has 10"):
        run(table(count=10))
    with pytest.raises(MixwellError, match="27 epochs were asked of trials of 1 to 9"):
        run(table(most=9))
    for values in ({"eta": 1}, {"least": 0}, {"last_depth": 1}, {"variant": "lazy"}):
        with pytest.raises(ValueError, match="expected"):
            Config(**values)
