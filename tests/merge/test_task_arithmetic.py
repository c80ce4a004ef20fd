"""Task arithmetic and its rows: every sparsifier against sorting or counting, consensus against a loop, refusals."""

import numpy as np
import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.core.rng import generator as seeded
from mixwell.core.rng import spawn
from mixwell.merge._order import at_rank
from mixwell.merge._sparsify import Trim, decided, probabilities
from mixwell.merge.merging import Model, merged
from mixwell.merge.naming import method_of
from mixwell.merge.task_arithmetic import ROWS, Config, task_arithmetic


def fine_tunes(generator, count=3, shape=(6, 8)):
    base = torch.randn(shape, generator=generator, dtype=torch.float64)
    return base, [base + torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def kept(sparsify, delta, generator, *, density, gamma=0.0, epsilon=0.0, rescale=False):
    trim = Trim(density, gamma, epsilon, rescale)
    base = torch.zeros_like(delta)
    return decided([delta], 0, base, sparsify, trim, generator).of(delta.clone())


def test_magnitude_keeps_the_largest(generator):
    delta = torch.randn(6, 8, generator=generator)
    found = kept("magnitude", delta, generator, density=0.25)
    largest = sorted(delta.abs().flatten().tolist())[-12:]
    assert sorted(found[found != 0].abs().tolist()) == largest and torch.equal(found[found != 0], delta[found != 0])
    assert int(kept("magnitude", delta, generator, density=1e-9).count_nonzero()) == 1
    assert not kept("magnitude", delta, generator, density=0.0).any()


def test_outliers_drops_the_very_largest_first(generator):
    delta = torch.randn(10, 10, generator=generator)
    found = kept("outliers", delta, generator, density=0.5, gamma=0.1)
    ordered = sorted(delta.abs().flatten().tolist())
    assert sorted(found[found != 0].abs().tolist()) == ordered[40:90]
    shrunk = kept("outliers", delta, generator, density=0.95, gamma=0.1)  # the cut at the top gives way
    assert sorted(shrunk[shrunk != 0].abs().tolist()) == ordered[:95]


@pytest.mark.parametrize("sparsify", ["random", "ranked"])
def test_draws_keep_each_number_as_often_as_declared(sparsify, generator):
    delta = torch.arange(1.0, 9.0).repeat(2, 1)
    counts = torch.zeros(2, 8)
    for draws in spawn(generator, 3000):
        counts += kept(sparsify, delta, draws, density=0.4, epsilon=0.2) != 0
    shares = counts / 3000
    expected = torch.full((8,), 0.4) if sparsify == "random" else 0.2 + 0.4 * torch.arange(8) / 7
    assert float((shares - expected).abs().max()) < 0.045  # five standard deviations


@pytest.mark.parametrize("rescale", [False, True])
def test_draws_of_a_tensor_in_pieces_are_those_of_one_go(rescale, generator):
    shape = (300, 250)  # more entries than a piece has
    base, tuned = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    config = Config(sparsify="random", rescale=rescale, density=0.3)
    found = merged("task_arithmetic", [Model({"w": tuned}, "tuned")], Model({"w": base}, "base"), config, seed=4)["w"]
    whole = task_arithmetic([tuned], base, config, seeded(4, "merge.task_arithmetic", "w"))
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-5)
    delta, change = tuned - base, found - base
    held = change.abs() > 1e-6
    assert float(held.float().mean()) == pytest.approx(0.3, abs=0.01)
    factor = delta.abs().sum() / delta[held].abs().sum() if rescale else 1.0
    torch.testing.assert_close(change[held], factor * delta[held], rtol=1e-4, atol=1e-5)
    rows = held.float()
    assert float((rows[:, ::2] * rows[:, 1::2]).mean()) == pytest.approx(0.09, abs=0.01)  # two of one draw are apart


@pytest.mark.parametrize("sparsify", ["magnitude", "outliers", "random", "ranked"])
def test_rescaling_restores_the_sum_of_sizes(sparsify, generator):
    delta = torch.randn(6, 8, generator=generator)
    found = kept(sparsify, delta, generator, density=0.5, gamma=0.1, epsilon=0.2, rescale=True)
    assert float(found.abs().sum()) == pytest.approx(float(delta.abs().sum()), rel=1e-5)
    assert 0 < int((found == 0).sum()) < 48


def test_consensus_is_that_of_a_loop(generator):
    base, tensors = fine_tunes(generator)
    weights = (0.5, 1.0, 2.0)
    config = Config(sparsify="magnitude", consensus=True, normalize=True, weight=weights, scale=0.7)
    assert config == Config(**ROWS["ties"], weight=weights, scale=0.7)
    found = task_arithmetic(tensors, base, config, generator)
    for row in range(6):
        for column in range(8):
            moves = [w * float(t[row, column] - base[row, column]) for w, t in zip(weights, tensors)]
            sign = 1 if sum(moves) >= 0 else -1
            agree = [(w, move) for w, move in zip(weights, moves) if move * sign > 0]
            step = 0.7 * sum(move for _, move in agree) / sum(w for w, _ in agree)
            assert float(found[row, column]) == pytest.approx(float(base[row, column]) + step)


def test_plain_sums_means_and_forgetting(generator):
    base, (first, second, _) = fine_tunes(generator)
    summed = task_arithmetic([first, second], base, Config(scale=0.5), generator)
    torch.testing.assert_close(summed, base + (first - base + second - base) / 2)
    forgotten = task_arithmetic([first, first], base, Config(weight=(1.0, -1.0)), generator)
    torch.testing.assert_close(forgotten, base)
    mean = task_arithmetic([first, second], base, Config(normalize=True, weight=(1.0, 3.0)), generator)
    torch.testing.assert_close(mean, (first + 3 * second) / 4)


def test_every_row_keeps_one_fine_tune_at_full_density(generator):
    base, (only, *_) = fine_tunes(generator)
    for name, row in ROWS.items():
        entry, options = method_of(f"merge.{name}")
        assert entry.name == "merge.task_arithmetic" and (options == row or name == "task_arithmetic")
        torch.testing.assert_close(task_arithmetic([only], base, Config(**row), generator), only)


def test_shares_that_make_no_sense_are_told(generator):
    with pytest.raises(ValueError, match=r"density is 1\.5; expected 0 to 1"):
        Config(density=(0.5, 1.5))
    models = [Model({"w": torch.randn(3, 4, generator=generator)}, "m") for _ in range(2)]
    with pytest.raises(MixwellError, match=r"density 0\.1 with epsilon 0\.15"):
        merged("task_arithmetic", models[:1], models[1], Config(**ROWS["della"], density=0.1))["w"]
    with pytest.raises(MixwellError, match=r"unknown merge 'tiez'\. Did you mean 'ties'"):
        method_of("tiez")
    rows = torch.ones(3, 1)
    torch.testing.assert_close(probabilities(rows, Trim(0.5, 0.0, 0.2, False)), torch.full((3, 1), 0.7))


@pytest.mark.parametrize("rank", [0, 7, 900_000, 1_999_999, 2_000_000])
def test_ranks_of_many_numbers_are_those_of_sorting(rank, generator):
    numbers = torch.randn(2_000_001, generator=generator).numpy()
    assert at_rank(numbers, rank) == np.sort(numbers)[rank]
    stepped = np.repeat(np.arange(3.0), 700_000)  # many alike, and a sample that misleads
    stepped[5::32] = 9.0
    assert at_rank(stepped, rank) == np.sort(stepped)[rank]
