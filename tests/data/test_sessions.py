"""Shares that are asked for are met, mixtures are their parts, turns against a loop, refusals."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.data import sessions as module
from mixwell.data.sessions import Config, sessions
from mixwell.data.waves import Sounds, factor, levelled, placed


def fresh(seed=0):
    return np.random.default_rng(seed)


def voices(speakers=4, words=8, longest=40, seed=0):
    draws = torch.Generator().manual_seed(seed)
    samples = torch.randn(speakers, words, longest, generator=draws)
    return Sounds(samples, torch.randint(longest // 2, longest + 1, (speakers, words), generator=draws))


LONG = Config(length=60_000, gap_variance=9.0)


def test_a_sessions_shares_are_those_that_were_drawn_for_it():
    for seed in range(3):
        made = sessions(voices(), LONG, fresh(seed))
        silence, overlap = module.shares(made.turns, LONG.length)
        assert silence == pytest.approx(float(made.asked[0]), abs=0.02)
        assert overlap == pytest.approx(float(made.asked[1]), abs=0.03)
    fixed = dataclasses.replace(LONG, silence=0.4, overlap=0.02, silence_variance=0.0, overlap_variance=0.0)
    silence, overlap = module.shares(sessions(voices(), fixed, fresh(9)).turns, LONG.length)
    assert silence == pytest.approx(0.4, abs=0.01) and overlap == pytest.approx(0.02, abs=0.01)


def test_shares_of_sessions_have_the_mean_and_variance_asked_for():
    rng = fresh(5)
    drawn = [module.target(0.15, 0.01, rng) for _ in range(4000)]
    assert np.mean(drawn) == pytest.approx(0.15, abs=0.005) and np.var(drawn) == pytest.approx(0.01, rel=0.1)
    assert module.target(0.15, 0.0, fresh()) == 0.15


def test_the_mixture_is_the_sum_of_stems_that_are_heard_in_their_turns_alone():
    config = dataclasses.replace(LONG, length=5000)
    made = sessions(voices(), config, fresh(1))
    torch.testing.assert_close(made.mixture, made.stems.sum(0))
    active = module.active(made.turns, 5000)
    assert torch.equal(active, made.stems[: len(active)] != 0)
    for speaker in range(4):  # nobody speaks over oneself
        own = sorted((start, end) for who, start, end in made.turns.tolist() if who == speaker)
        assert all(first[1] <= second[0] for first, second in itertools.pairwise(own))
    counted = [sum(start <= t < end for _, start, end in made.turns.tolist()) for t in range(5000)]
    silence, overlap = module.shares(made.turns, 5000)
    assert max(counted) == 2 and silence == pytest.approx(counted.count(0) / 5000)
    assert overlap == pytest.approx(counted.count(2) / (5000 - counted.count(0)))


def test_speakers_stay_or_change_by_dominance():
    share = np.array([0.6, 0.3, 0.1])
    rng = fresh(2)
    after = [module.following(0, share, 0.875, rng) for _ in range(8000)]
    assert after.count(0) / 8000 == pytest.approx(0.125, abs=0.02)
    assert after.count(1) / 8000 == pytest.approx(0.875 * 0.75, abs=0.02)
    assert {module.following(1, share, 0.0, rng) for _ in range(50)} == {1}
    first = [module.following(-1, share, 0.0, rng) for _ in range(4000)]
    assert first.count(0) / 4000 == pytest.approx(0.6, abs=0.03)
    assert module.following(0, np.array([1.0, 0.0]), 1.0, rng) == 0  # nobody else
    wide = Config(dominance_std=5.0, least_dominance=0.2)
    found = np.stack([module.dominance(4, wide, rng) for _ in range(200)])
    assert np.allclose(found.sum(1), 1) and found.min() >= 0.2 / 1.8
    assert np.allclose(module.dominance(4, Config(dominance_std=0.0), rng), 0.25)


def test_sentences_have_the_words_of_a_negative_binomial():
    alike = Sounds(torch.ones(2, 3, 5), torch.full((2, 3), 5))
    config = Config(words_k=2.0, words_p=0.25)
    rng = fresh(6)
    words = [len(module.sentence(alike, 0, config, rng)) / 5 for _ in range(3000)]
    assert min(words) == 1 and np.mean(words) == pytest.approx(1 + 2 * 0.75 / 0.25, rel=0.05)
    assert np.var(words) == pytest.approx(2 * 0.75 / 0.0625, rel=0.15)
    assert torch.equal(module.sentence(alike, 1, Config(words_p=1.0), fresh()), torch.ones(5))


def test_gaps_are_gamma_and_none_where_none_is_lacking():
    rng = fresh(7)
    gaps = [module.gap(50.0, 100.0, rng) for _ in range(3000)]
    assert np.mean(gaps) == pytest.approx(50, abs=1) and np.var(gaps) == pytest.approx(100, rel=0.15)
    assert module.gap(-3.0, 100.0, fresh()) == 0


def test_waves_are_levelled_and_placed():
    assert float(levelled(torch.tensor([3.0, -4.0])).square().mean()) == pytest.approx(1)
    assert factor(-20) == pytest.approx(0.1) and factor(0) == 1
    onto = torch.ones(4)
    placed(onto, torch.tensor([1.0, 2.0, 3.0]), 2)
    assert onto.tolist() == [1, 1, 2, 3]


def test_refusals():
    for wrong, told in ((Sounds(torch.ones(1, 2, 3), torch.full((1, 2), 3)), "at least two speakers"),
                        (Sounds(torch.ones(2, 3), torch.full((2,), 3)), "at least two speakers"),
                        (Sounds(torch.ones(2, 2, 3), torch.ones(2)), "expected a length for each"),
                        (Sounds(torch.ones(2, 2, 3), torch.full((2, 2), 4)), "expected 1 to 3 samples"),
                        (Sounds(torch.zeros(2, 2, 3), torch.full((2, 2), 3)), "is silent"),
                        (Sounds(torch.ones(2, 2, 3) / 0, torch.full((2, 2), 3)), "not finite")):
        with pytest.raises(MixwellError, match=told):
            sessions(wrong, Config(), fresh())
    for values in ({"length": 0}, {"silence": 0}, {"silence": 1}, {"overlap": 0}, {"silence_variance": 0.2},
                   {"overlap_variance": -1}, {"gap_variance": 0}, {"turn": 2}, {"words_k": 0}, {"words_p": 2},
                   {"dominance_std": -1}, {"least_dominance": -1}):
        with pytest.raises(ValueError, match="expected"):
            Config(**values)
