"""What every search over configurations promises (family `scaling.search`)."""

import numpy as np
import pytest

from mixwell.core.errors import MixwellError
from mixwell.scaling.trials import Trials
from tests.contracts._tools import cases, same_config

SEARCHES = cases("scaling.search")


def fresh(seed=0):
    return np.random.default_rng(seed)


def search(entry, seed=1):
    values = entry.module().example(fresh())
    return entry.load()(**values, generator=fresh(seed)), values["trials"]


@pytest.mark.parametrize("entry", SEARCHES)
def test_the_same_generator_finds_the_same_trial_for_the_same_epochs(entry):
    first, trials = search(entry)
    assert first == search(entry)[0] and same_config(entry.module().example(fresh())["config"])
    assert first.spent == trials.spent == trials.reached_N.sum() < len(trials) * trials.most
    assert first.loss == trials.loss(first.trial, int(trials.reached_N[first.trial]))


@pytest.mark.parametrize("entry", SEARCHES)
def test_a_planted_best_trial_is_among_the_best_found(entry):
    found, trials = search(entry)
    last = sorted(trials.loss(trial, trials.most) for trial in range(len(trials)))
    assert trials.loss(found.trial, trials.most) <= last[2]


@pytest.mark.parametrize("entry", SEARCHES)
def test_trials_that_all_diverge_end_in_one_line(entry):
    values = entry.module().example(fresh())
    shape = (len(values["trials"]), values["trials"].most)
    broken = Trials.tabulated(np.full(shape, np.nan), values["trials"].features_ND)
    with pytest.raises(MixwellError, match="trials diverged"):
        entry.load()(broken, values["config"], fresh())


def test_only_new_epochs_are_spent_and_bad_questions_end_in_one_line():
    asked = []
    trials = Trials(lambda trial, epochs: asked.append((trial, epochs)) or 1 / epochs, 3, 5)
    assert [trials.loss(1, epochs) for epochs in (2, 4, 2, 4)] == [0.5, 0.25, 0.5, 0.25]
    assert asked == [(1, 2), (1, 4)] and trials.spent == 4
    with pytest.raises(MixwellError, match="6 epochs were asked of trials of 1 to 5"):
        trials.loss(0, 6)
    with pytest.raises(MixwellError, match="needs 4 configurations and has 3"):
        trials.drawn(4, fresh())
    with pytest.raises(MixwellError, match="have no features"):
        _ = trials.features_ND
    with pytest.raises(MixwellError, match=r"shape \(2, 1\) came for 3 trials"):
        Trials(lambda *_: 1.0, 3, 5, np.ones((2, 1)))
    with pytest.raises(MixwellError, match="a feature is not finite"):
        Trials(lambda *_: 1.0, 1, 5, [[np.inf]])
    with pytest.raises(MixwellError, match="expected a row a trial"):
        Trials.tabulated([1.0])
    with pytest.raises(ValueError, match="expected at least 1"):
        Trials(lambda *_: 1.0, 0, 5)
