"""Compressed steps follow their recursion, reach saddles where naive compression stalls, and count what they send."""

import pytest
import torch

from mixwell.core.rng import generator
from mixwell.parallel.compressed_games import Config, advanced, begun, compressed_games, example
from mixwell.parallel.sparse import rand_k, top_k


def problem():
    given = example(generator(0))
    return [given[name].double() for name in ("z_D", "slope_MDD", "shift_MD")]


def saddle(slopes, shifts):
    return torch.linalg.solve(slopes.mean(0), -shifts.mean(0))


@pytest.mark.parametrize("feedback, both", [(False, False), (True, False), (True, True), (False, True)])
def test_steps_are_those_of_a_plain_loop(feedback, both):
    z, slopes, shifts = problem()
    config = Config(keep=2, step=0.1, stay=0.7, feedback=feedback, both=both, steps=12)
    found = compressed_games(z, slopes, shifts, config, generator(5))
    draws, w, sent = generator(5), z, 4.0
    owed, due = [torch.zeros(4).double() for _ in range(3)], torch.zeros(4).double()

    def chosen(vectors, keep=2):
        if feedback:
            return [torch.where(v.abs() >= v.abs().sort().values[-keep], v, 0) for v in vectors]
        places = torch.rand(len(vectors), 4, generator=draws)
        return [torch.where(p >= p.sort().values[-keep], v * 2, 0) for p, v in zip(places, vectors)]

    for _ in range(12):
        field = [slopes[m] @ w + shifts[m] for m in range(3)]
        half = 0.7 * z + 0.3 * w - 0.1 * sum(field) / 3
        gaps = [0.1 * (slopes[m] @ half + shifts[m] - field[m]) for m in range(3)]
        asked = [gap + debt for gap, debt in zip(gaps, owed)] if feedback else gaps
        told = chosen(asked)
        owed = [a - t for a, t in zip(asked, told)] if feedback else owed
        answer = sum(told) / 3
        if both:
            whole = answer + due if feedback else answer
            (answer,) = chosen([whole])
            due = whole - answer if feedback else due
        z, sent = half - answer, sent + 2
        if not torch.rand((), generator=draws) < 0.7:
            w, sent = z, sent + 4
    torch.testing.assert_close(found.z_D, z)
    torch.testing.assert_close(found.w_D, w)
    assert float(found.sent) == sent


@pytest.mark.parametrize("feedback", [False, True])
def test_they_reach_the_saddle_where_naive_compression_stalls(feedback):
    z, slopes, shifts = problem()
    found = compressed_games(z, slopes, shifts, Config(keep=1, step=0.1, feedback=feedback, steps=3000), generator(1))
    best = saddle(slopes, shifts)
    torch.testing.assert_close(found.z_D, best, atol=1e-8, rtol=0)
    naive = z
    for _ in range(3000):
        half = naive - 0.1 * top_k(slopes @ naive + shifts, 1).mean(0)
        naive = naive - 0.1 * top_k(slopes @ half + shifts, 1).mean(0)
    assert (naive - best).norm() > 0.05


def test_all_entries_and_a_point_that_follows_are_the_extragradient_method():
    z, slopes, shifts = problem()
    found = compressed_games(z, slopes, shifts, Config(keep=4, step=0.1, steps=20), generator(0))
    for _ in range(20):
        half = z - 0.1 * (slopes @ z + shifts).mean(0)
        z = z - 0.1 * (slopes @ half + shifts).mean(0)
    torch.testing.assert_close(found.z_D, z)
    assert float(found.sent) == 4 + 20 * 8


def test_entries_by_chance_are_right_on_average():
    rows = torch.randn(1, 6, generator=generator(0)).double().repeat(20_000, 1)
    found = rand_k(rows, 2, generator(1))
    assert ((found != 0).sum(1) == 2).all()
    torch.testing.assert_close(found.mean(0), rows[0], atol=0.05, rtol=0)


def test_any_operator_will_do():
    state = begun(torch.ones(2), lambda z: torch.stack([z**3, z]))
    config = Config(keep=2, step=0.2, stay=0.0)
    for _ in range(60):
        state = advanced(state, lambda z: torch.stack([z**3, z]), config, generator(3))
    assert state.z_D.norm() < 0.01


def test_refusals():
    with pytest.raises(ValueError, match="keep is 5 of 4 entries; expected 1 to 4"):
        compressed_games(*problem(), Config(keep=5))
    with pytest.raises(ValueError, match=r"stay is 1.0; expected a chance"):
        Config(stay=1.0)
    with pytest.raises(ValueError, match="keep is 0"):
        Config(keep=0)
    with pytest.raises(ValueError, match="steps is -1"):
        Config(steps=-1)
    with pytest.raises(ValueError, match="step is 0"):
        Config(step=0)
