"""Arcee fusion against loops over rows, and the spread that decides how much comes over."""

import math

import torch

from mixwell.merge.arcee_fusion import Config, arcee_fusion, importance, threshold


def dumb_importance(other, base):
    rows = []
    for b_row, a_row in zip(other.tolist(), base.tolist()):
        p = [math.exp(value) / sum(map(math.exp, b_row)) + 1e-8 for value in b_row]
        q = [math.exp(value) / sum(map(math.exp, a_row)) + 1e-8 for value in a_row]
        divergence = sum(pi * math.log(pi / qi) for pi, qi in zip(p, q))
        rows.append([abs(b - a) * divergence for b, a in zip(b_row, a_row)])
    return torch.tensor(rows)


def test_what_changed_most_comes_over(generator):
    base, other = (torch.randn(6, 9, generator=generator) for _ in range(2))
    scores = dumb_importance(other, base)
    torch.testing.assert_close(importance(other, base), scores, rtol=1e-4, atol=1e-6)
    ordered = sorted(scores.flatten().tolist())
    low, middle, high = (ordered[int(share * 53)] for share in (0.25, 0.5, 0.75))
    assert math.isclose(threshold(scores, 1.5), middle + 1.5 * (high - low), rel_tol=1e-5)
    found = arcee_fusion([other], base, Config(), generator)
    taken = scores >= middle + 1.5 * (high - low)
    assert torch.equal(found, torch.where(taken, other, base)) and 0 < int(taken.sum()) < 54


def test_the_spread_decides_how_much(generator):
    base, other = (torch.randn(6, 9, generator=generator) for _ in range(2))
    all_over = arcee_fusion([other], base, Config(spread=-1e9), generator)
    nothing = arcee_fusion([other], base, Config(spread=1e9), generator)
    assert torch.equal(all_over, other) and torch.equal(nothing, base)
