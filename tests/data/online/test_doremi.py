"""DoReMi against a loop; noise loses weight beside a reference and gains it without; the mean is the answer."""

import math

import numpy as np
import pytest

from mixwell.core.errors import MixwellError
from mixwell.data.online import doremi
from mixwell.data.rule import Batch, Online


def loop(batches, domains, eta, eps, vocabulary):
    alpha = [1 / domains] * domains
    score = [math.log(vocabulary)] * domains
    total = list(alpha)
    for batch in batches:
        for i in range(domains):
            above = [max(p - r, 0.0) for d, p, r in zip(batch.domain_T, batch.loss_T, batch.reference_T) if d == i]
            if above:
                score[i] = sum(above) / len(above)
        raised = [a * math.exp(eta * s) for a, s in zip(alpha, score)]
        alpha = [(1 - eps) * x / sum(raised) + eps / domains for x in raised]
        total = [t + a for t, a in zip(total, alpha)]
    return alpha, [t / (len(batches) + 1) for t in total]


@pytest.mark.parametrize("met", [4, 3])
def test_agrees_with_a_loop_with_domains_that_are_not_met(met):
    batches = doremi.example_batches(np.random.default_rng(1), domains=met)
    rule = doremi.DoReMi(4, doremi.Config(step_size=0.3, smoothing=0.01, vocab_size=100))
    online = Online(rule)
    for batch in batches:
        online.update(batch)
    alpha, mean = loop(batches, 4, 0.3, 0.01, 100)
    assert online.weights_D == pytest.approx(alpha, rel=1e-10)
    assert online.result_D == pytest.approx(mean, rel=1e-10)
    assert np.abs(online.result_D - online.weights_D).max() > 0.01


def test_what_cannot_be_learned_loses_weight_by_the_reference_alone():
    domain_T = np.repeat([0, 1, 2], 8)
    learned = np.array([2.0, 2.5, 6.0])[domain_T]  # domain 2 is noise, at its entropy
    reference = np.array([1.8, 2.0, 6.0])[domain_T]
    with_it, without = Online(doremi.DoReMi(3)), Online(doremi.DoReMi(3))
    for _ in range(20):
        with_it.update(Batch(domain_T, learned, reference))
        without.update(Batch(domain_T, learned, np.zeros(24)))
    assert with_it.result_D[2] < 1 / 3 < without.result_D[2]
    assert with_it.weights_D.argmax() == 1


def test_excess_is_clipped_token_by_token():
    above = np.array([1.0, -3.0])
    found = doremi.excess(above, np.zeros(2), np.zeros(2, int), np.ones(2))
    assert found == pytest.approx([0.5, 1.0])


def test_token_weights_undo_how_the_batch_was_drawn():
    rng = np.random.default_rng(3)
    alpha, drawn = np.array([0.7, 0.3]), np.array([0.2, 0.8])
    domain_T = rng.choice(2, p=drawn, size=200_000)
    weight_T = doremi.token_weights(alpha, drawn, domain_T)
    assert np.bincount(domain_T, weights=weight_T) == pytest.approx(alpha, abs=0.01)


def test_full_smoothing_stays_even_and_refusals():
    batch = doremi.example_batches(np.random.default_rng(0))[0]
    rule = doremi.DoReMi(4, doremi.Config(smoothing=1.0))
    assert rule.weights(rule.update(rule.start(), batch)) == pytest.approx([0.25] * 4)
    with pytest.raises(MixwellError, match="no reference_T: DoReMi needs"):
        rule.update(rule.start(), Batch(batch.domain_T, batch.loss_T))
    for values in ({"step_size": 0}, {"smoothing": 0}, {"vocab_size": 1}):
        with pytest.raises(ValueError, match="expected"):
            doremi.Config(**values)


def test_smoothing_keeps_every_domain_in_where_one_excess_stays_highest():
    found = {}
    for smoothing in (1e-4, 0.2):
        rule = doremi.DoReMi(4, doremi.Config(smoothing=smoothing))
        state = rule.start()
        for _ in range(60):
            batch = Batch(np.arange(4), np.array([9.0, 1.0, 1.0, 1.0]), np.zeros(4))
            state = rule.update(state, batch)
        found[smoothing] = rule.result(state)
    assert found[1e-4].max() > 0.95, "collapsed"
    assert found[0.2].min() >= 0.2 / 4 and found[0.2].sum() == pytest.approx(1)
