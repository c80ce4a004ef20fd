"""Ratatouille: starts in turn, plain and greedy means, random mixes, refusals."""

import pytest
import torch

from mixwell.merge.composition.ratatouille import Config, greedily, mix, ratatouille


def test_starts_come_in_turn_and_results_are_averaged(generator):
    seen = []

    def tune(start, run):
        seen.append((float(start["w"]), run))
        return {"w": start["w"] + run}

    starts = [{"w": torch.tensor(10.0)}, {"w": torch.tensor(20.0)}]
    found = ratatouille(starts, tune, Config(runs=3), generator)
    assert seen == [(10.0, 0), (20.0, 1), (10.0, 2)]
    assert float(found["w"]) == pytest.approx((10 + 21 + 12) / 3)


def test_greedy_selection_leaves_out_what_lowers_the_score():
    models = [{"w": torch.tensor(value)} for value in (1.0, -1.0, 100.0)]
    found = greedily(models, lambda model: -abs(float(model["w"])))
    assert float(found["w"]) == 0.0
    generator = torch.Generator().manual_seed(0)
    chosen = ratatouille(models, lambda start, run: start, Config(runs=3, select="greedy"), generator,
                         score=lambda model: -abs(float(model["w"])))
    assert float(chosen["w"]) == 0.0


def test_fused_starts_are_convex_mixes(generator):
    models = [{"w": torch.eye(3)[place]} for place in range(3)]
    shares = torch.stack([mix(models, generator)["w"] for _ in range(500)])
    torch.testing.assert_close(shares.sum(1), torch.ones(500))
    assert float(shares.min()) >= 0
    torch.testing.assert_close(shares.mean(0), torch.full((3,), 1 / 3), rtol=0, atol=0.05)
    starts = []
    ratatouille(models, lambda start, run: starts.append(start) or start, Config(runs=2, fused=True), generator)
    assert float(starts[0]["w"].max()) < 1 and not torch.equal(starts[0]["w"], starts[1]["w"])


def test_refusals(generator):
    with pytest.raises(ValueError, match="no auxiliary model"):
        ratatouille([], lambda start, run: start, Config(), generator)
    with pytest.raises(ValueError, match="give score"):
        ratatouille([{"w": torch.ones(1)}], lambda start, run: start, Config(select="greedy"), generator)
    with pytest.raises(ValueError, match="runs is 0"):
        Config(runs=0)
