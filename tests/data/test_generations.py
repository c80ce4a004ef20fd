"""The known rates of forgetting, what stops it, words that never come back, refusals."""

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.data import generations
from mixwell.data.generations import Config


def chains(seed=0, count=4000, **options):
    start = torch.zeros(count, dtype=torch.float64), torch.ones(count, dtype=torch.float64)
    return generations.generations(*start, Config(**options), torch.Generator().manual_seed(seed))


def test_one_generation_is_the_mean_and_variance_of_its_draws():
    mean, variance = chains(count=3, samples=5, generations=1)
    draws = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for chain in range(3):
        own = draws[:, chain].tolist()
        middle = sum(own) / 5
        assert float(mean[1, chain]) == pytest.approx(middle)
        assert float(variance[1, chain]) == pytest.approx(sum((x - middle) ** 2 for x in own) / 4)


def test_variance_drifts_and_the_mean_wanders_at_their_rates():
    n, rounds = 30, 20
    mean, variance = chains(samples=n, generations=rounds)
    log = variance[-1].log()
    assert float(log.mean()) / rounds == pytest.approx(-1 / (n - 1), rel=0.1)
    assert float(log.var()) / rounds == pytest.approx(2 / (n - 1), rel=0.1)
    assert float(variance[-1].mean()) == pytest.approx(1, abs=0.1)
    assert float(variance[-1].median()) < 0.7
    assert float(mean[-1].square().mean()) == pytest.approx(rounds / n, rel=0.15)


def test_real_samples_and_keeping_all_samples_stop_it():
    plain, mixed, kept = (chains(count=500, samples=20, generations=60, **more)[1][-1].median()
                          for more in ({}, {"real": 0.2}, {"accumulate": True}))
    assert plain < 0.15 and mixed > 0.6 and kept > 0.8
    every = chains(count=500, samples=20, generations=9, real=1.0)[0]
    assert float(every[-1].var()) == pytest.approx(1 / 20, rel=0.3)  # nothing is handed on


def test_rare_words_are_lost_for_good_without_real_text():
    share = 1 / torch.arange(1, 401, dtype=torch.float64)
    share = share / share.sum()
    left = {}
    for name, more in (("none", {}), ("tenth", {"real": 0.1}), ("all", {"accumulate": True})):
        config = Config(samples=2000, generations=20, **more)
        found = generations.words(share, config, torch.Generator().manual_seed(1))
        assert torch.allclose(found.sum(1), torch.ones(21, dtype=torch.float64))
        left[name] = int((found[-1] > 0).sum())
        if name == "none":
            gone = found[1:] == 0
            assert (gone[1:] | ~gone[:-1]).all()
    assert left["none"] < 0.5 * left["tenth"] < left["all"]


def test_refusals():
    with pytest.raises(MixwellError, match="a variance is 0; expected numbers above 0"):
        generations.generations(torch.zeros(1), torch.zeros(1), Config(), torch.Generator())
    for values in ({"samples": 1}, {"generations": 0}, {"real": 2}):
        with pytest.raises(ValueError, match="expected"):
            Config(**values)
