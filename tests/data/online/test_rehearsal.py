"""mix-cd against a loop; its densities are the true ones, however often a cell is drawn."""

import numpy as np
import pytest

from mixwell.core.errors import MixwellError
from mixwell.data.online import rehearsal
from mixwell.data.rule import Batch, Online


def loop(batches, cells, prior, keep, sizes, power):
    seen, damaged = [0.0] * cells, [0.0] * cells
    for batch in batches:
        seen, damaged = [keep * n for n in seen], [keep * d for d in damaged]
        for cell, was, now in zip(batch.domain_T, batch.was_right_T, batch.is_right_T):
            seen[cell] += 1
            damaged[cell] += bool(was) and not now
    wanted = [s**power * (d + prior) / (n + cells * prior) for s, n, d in zip(sizes, seen, damaged)]
    return [w / sum(wanted) for w in wanted]


def test_agrees_with_a_loop():
    batches = rehearsal.example_batches(np.random.default_rng(1))
    sizes = (10.0, 20.0, 5.0, 40.0)
    config = rehearsal.Config(prior=0.5, memory=0.9, sizes=sizes, size_power=0.5)
    online = Online(rehearsal.Rehearsal(4, config))
    for batch in batches:
        online.update(batch)
    assert online.weights_D == pytest.approx(loop(batches, 4, 0.5, 0.9, sizes, 0.5), rel=1e-10)


def test_densities_track_the_damage_while_the_rule_chooses_what_it_sees():
    rng = np.random.default_rng(2)
    truth = rng.uniform(0.02, 0.5, 12)
    rule = rehearsal.Rehearsal(12, rehearsal.Config(memory=1.0))
    online = Online(rule)
    for _ in range(400):
        cells = rng.choice(12, p=online.weights_D, size=20)
        was = rng.random(20) < 0.9
        online.update(Batch(cells, np.ones(20), None, was, rng.random(20) > truth[cells] / 0.9))
    state = online.state_dict()
    assert rule.density(state) == pytest.approx(truth, abs=0.06)
    assert np.ptp(state["seen"]) > 500  # though some cells were seen far more often
    assert np.corrcoef(rule.density(state), truth)[0, 1] > 0.97


def test_what_was_wrong_before_is_no_damage():
    rule = rehearsal.Rehearsal(2)
    cells, no = np.array([0, 0, 1, 1]), np.zeros(4, bool)
    state = rule.update(rule.start(), Batch(cells, np.ones(4), None, no, no))
    assert rule.weights(state) == pytest.approx([0.5, 0.5])
    state = rule.update(rule.start(), Batch(cells, np.ones(4), None, cells == 1, no))
    assert rule.weights(state)[1] == pytest.approx(0.75)


def test_refusals():
    batch = rehearsal.example_batches(np.random.default_rng(0))[0]
    rule = rehearsal.Rehearsal(4)
    with pytest.raises(MixwellError, match="no was_right_T: mix-cd counts"):
        rule.update(rule.start(), Batch(batch.domain_T, batch.loss_T))
    with pytest.raises(MixwellError, match="2 sizes came for 4 cells"):
        rehearsal.Rehearsal(4, rehearsal.Config(sizes=(1.0, 2.0)))
    for values in ({"prior": 0}, {"memory": 0}, {"sizes": (1.0, 0.0)}, {"size_power": -1}):
        with pytest.raises(ValueError, match="expected"):
            rehearsal.Config(**values)
