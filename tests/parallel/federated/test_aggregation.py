"""Rules that make many answers one: against plain loops and scipy, liars among them, and what they refuse."""

import math

import pytest
import torch
from scipy.optimize import minimize

from mixwell.parallel.federated.aggregation import (
    Aggregation,
    TooFew,
    combined,
    geometric_median,
    krum,
    mean,
    median,
    nearest_mixing,
    trimmed_mean,
)


@pytest.fixture
def rows(generator):
    return torch.randn(7, 3, generator=generator, dtype=torch.float64)


def away(a, b):
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b)))


def test_rules_are_plain_loops(rows):
    listed = rows.tolist()
    weights = [1.0, 2, 3, 4, 5, 6, 7]
    by_hand = [sum(w * row[p] for w, row in zip(weights, listed)) / 28 for p in range(3)]
    assert mean(rows, torch.tensor(weights)).tolist() == pytest.approx(by_hand)
    columns = [sorted(column) for column in zip(*listed)]
    assert median(rows).tolist() == [column[3] for column in columns]
    assert median(rows[:6]).tolist() == pytest.approx([sum(sorted(c)[2:4]) / 2 for c in zip(*listed[:6])])
    assert trimmed_mean(rows, 2).tolist() == pytest.approx([sum(column[2:5]) / 3 for column in columns])
    scores = [sum(sorted(away(a, b) ** 2 for j, b in enumerate(listed) if j != i)[: 7 - 2 - 2])
              for i, a in enumerate(listed)]
    assert krum(rows, 2).tolist() == listed[scores.index(min(scores))]
    for own, mixed in zip(listed, nearest_mixing(rows, 2).tolist()):
        near = sorted(listed, key=lambda other: away(own, other))[:5]
        assert mixed == pytest.approx([sum(column) / 5 for column in zip(*near)])


def test_the_geometric_median_has_the_smallest_sum_of_distances(rows):
    found = minimize(lambda point: sum(away(point, row) for row in rows.tolist()), rows.mean(0).numpy(), tol=1e-14)
    assert geometric_median(rows).tolist() == pytest.approx(found.x, abs=1e-5)
    line = torch.tensor([[0.0], [1.0], [10.0]], dtype=torch.float64)
    assert geometric_median(line).item() == pytest.approx(1.0, abs=1e-6)  # the middle one itself
    assert torch.equal(geometric_median(rows[:1].repeat(3, 1)), rows[0])


@pytest.mark.parametrize("mixing", [False, True])
@pytest.mark.parametrize("rule", ["mean", "median", "trimmed_mean", "krum", "geometric_median"])
def test_equal_answers_give_themselves_and_order_does_not_count(rows, rule, mixing):
    heeded = mixing or rule != "mean"
    config = Aggregation(rule=rule, faulty=int(heeded), mixing=mixing)
    ones = torch.ones(7)
    same = rows[:1].repeat(7, 1)
    torch.testing.assert_close(combined(same, ones, config), rows[0])
    found = combined(rows, ones, config)
    torch.testing.assert_close(combined(rows.flip(0), ones, config), found, rtol=0, atol=1e-9)
    if rule != "mean":  # a lie as far off as one likes
        lied = torch.cat([rows[:6], torch.full((1, 3), 1e6, dtype=torch.float64)])
        assert (combined(lied, ones, config) - rows.mean(0)).norm() < 5
    elif not mixing:
        assert torch.equal(found, mean(rows, ones))


def test_refusals(rows):
    with pytest.raises(ValueError, match="faulty is -1; expected 0 or more"):
        Aggregation(faulty=-1)
    with pytest.raises(ValueError, match="faulty is 2 and rule is 'mean', which takes every answer as it is; choose"):
        Aggregation(faulty=2)
    for rule, faulty, least in (("trimmed_mean", 4, 9), ("krum", 3, 9), ("median", 4, 9), ("geometric_median", 4, 9)):
        with pytest.raises(TooFew, match=f"7 answers came where {faulty} may be lies; expected at least {least}"):
            combined(rows, torch.ones(7), Aggregation(rule=rule, faulty=faulty))
    with pytest.raises(TooFew, match="7 answers came where 7 may be lies; expected at least 8"):
        nearest_mixing(rows, 7)


@pytest.mark.parametrize("mixing", [False, True])
@pytest.mark.parametrize("rule", ["median", "trimmed_mean", "krum", "geometric_median"])
@pytest.mark.parametrize("said", [math.nan, math.inf, -math.inf])
def test_a_client_that_diverged_counts_as_a_lie(rows, rule, mixing, said):
    rows[3] = said
    found = combined(rows, torch.ones(7), Aggregation(rule=rule, faulty=1, mixing=mixing))
    others = rows[[0, 1, 2, 4, 5, 6]]
    assert (others.min(0).values <= found).all() and (found <= others.max(0).values).all()


def test_equal_lies_are_not_krums_choice(rows):
    lies = torch.full((2, 3), 100.0, dtype=torch.float64)
    assert krum(torch.cat([rows[:5], lies]), 2).abs().max() < 100
    with pytest.raises(TooFew, match="5 answers came where 2 may be lies; expected at least 7"):
        krum(torch.cat([rows[:3], lies]), 2)
