"""Trees against dyadic stretches, budgets against privacy losses, bounds against simulation."""

import math

import numpy as np
import pytest
import torch

from mixwell.density.robust import continual
from mixwell.density.robust.continual import Config, Counter, continual_max, levels, noise_scale

BITS = (torch.rand(37, 4, generator=torch.Generator().manual_seed(0)) < 0.5).double()


def fresh(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("config", [Config(epsilon=math.inf, mechanism="tree"),
                                    Config(epsilon=math.inf, mechanism="recompute", every=1)])
@pytest.mark.parametrize("query", ["max", "argmax"])
def test_without_privacy_answers_are_exact(config, query):
    config = Config(epsilon=config.epsilon, mechanism=config.mechanism, every=config.every, query=query)
    sums = BITS.cumsum(0)
    wanted = sums.amax(1) if query == "max" else sums.argmax(1)
    assert torch.equal(continual_max(BITS, config).answers_T, wanted)


def stretches(t):
    """The dyadic stretches that make up the first t rows, longest first."""
    found, start = [], 0
    for level in reversed(range(t.bit_length())):
        if t >> level & 1:
            found.append((start, start + 2**level))
            start += 2**level
    return found


def test_a_tree_reads_one_noisy_sum_for_every_binary_digit():
    """Noise that names its draw tells which stretches an answer came from, and that each is drawn once."""
    drawn = []

    def draw(count):
        drawn.append(torch.full((count,), 1000.0 * 2 ** len(drawn), dtype=torch.float64))
        return drawn[-1]

    counter, last = Counter(draw), {}
    for t in range(1, 14):
        extra = counter.add(BITS[t - 1]) - BITS[:t].sum(0)
        last[stretches(t)[-1]] = 1000.0 * 2 ** (t - 1)
        assert torch.equal(extra, torch.full((4,), sum(last[s] for s in stretches(t)), dtype=torch.float64))


@pytest.mark.parametrize("rows", [1, 7, 8, 37])
def test_a_row_is_in_as_many_stretches_as_the_noise_is_made_for(rows):
    drawn = {stretches(t)[-1] for t in range(1, rows + 1)}
    within = [sum(a <= s < b for a, b in drawn) for s in range(rows)]
    assert max(within) == levels(rows) and max(len(stretches(t)) for t in range(1, rows + 1)) <= levels(rows)


def test_noise_spends_the_budget_and_no_more():
    pure, approximate = Config(epsilon=0.7, delta=0.0), Config(epsilon=0.7, delta=1e-5)
    # a row changes 6 releases of 4 columns by one each: losses add up to epsilon, and to rho
    assert 6 * 4 / noise_scale(pure, 6, 4) == pytest.approx(0.7, abs=1e-12)
    rho = 6 * 4 / (2 * noise_scale(approximate, 6, 4) ** 2)
    assert rho + 2 * math.sqrt(rho * math.log(1e5)) == pytest.approx(0.7, abs=1e-12)
    assert 6 * continual.choice_epsilon(pure, 6) == pytest.approx(0.7)
    assert 6 * continual.choice_epsilon(approximate, 6) ** 2 / 8 == pytest.approx(rho, rel=1e-12)


def test_choices_are_those_of_the_exponential_mechanism():
    config = Config(query="argmax", epsilon=1.0, delta=0.0, mechanism="recompute", every=3)
    x = torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    draws = fresh()
    found = np.bincount([int(continual_max(x, config, draws).answers_T[2]) for _ in range(2000)], minlength=3) / 2000
    wanted = np.exp(np.array([3.0, 1.0, 1.0]) / 2)
    np.testing.assert_allclose(found, wanted / wanted.sum(), atol=0.04)


def test_noise_has_the_scale_it_says():
    for delta, variance in [(1e-6, 1.0), (0.0, 2.0)]:
        draws = continual._noise(20_000, Config(delta=delta), fresh())
        assert float(draws.var()) == pytest.approx(variance, rel=0.06) and abs(float(draws.mean())) < 0.05
        stale = [float(continual_max(torch.ones(8, 1), Config(delta=delta, epsilon=2.0, mechanism="recompute", every=4),
                                     fresh(seed)).answers_T[3]) for seed in range(300)]
        scale = noise_scale(Config(delta=delta, epsilon=2.0), 2)
        assert np.std(stale) == pytest.approx(scale * math.sqrt(variance), rel=0.15)


@pytest.mark.parametrize("query", ["max", "argmax"])
@pytest.mark.parametrize("mechanism", ["tree", "recompute"])
@pytest.mark.parametrize("delta", [0.0, 1e-6])
def test_errors_stay_within_the_bound(query, mechanism, delta):
    x = torch.zeros(48, 3)
    x[:24, 0], x[24:, 1] = 1, 1  # the leader changes
    config = Config(query=query, mechanism=mechanism, epsilon=20.0, delta=delta, failure=0.2)
    sums, over = x.cumsum(0).double(), 0
    for seed in range(25):
        answers, _, bound = continual_max(x, config, fresh(seed))
        found = answers if query == "max" else sums.gather(1, answers[:, None])[:, 0]
        over += float((found - sums.amax(1)).abs().max()) > bound
    assert over <= 9  # of 25 with a chance of a fifth each, more happen once in a hundred times


def test_renewal_wins_with_many_columns_and_the_tree_with_few():
    assert continual.plan(Config(), 2**17, 1)[0] == "tree"
    mechanism, every, bound = continual.plan(Config(), 4096, 4096)
    assert mechanism == "recompute" and 1 < every < 4096
    near = [continual.recompute_bound(Config(), 4096, 4096, b) for b in (every // 2, every, 2 * every)]
    assert bound == near[1] == min(near)
    short, long = (continual.plan(Config(mechanism="recompute"), rows, 1)[2] for rows in (2**10, 2**16))
    assert 4 < long / short < 4 * 1.2  # the third root of the rows, but for a logarithm
    assert continual.plan(Config(epsilon=1e-6), 50, 10)[1:] == (51, 50.0)  # no renewal at all: wrong by all there is


def test_noise_without_a_generator_cannot_be_foreseen():
    one, other = (continual_max(BITS, Config(mechanism="tree")).answers_T for _ in range(2))
    assert not torch.equal(one, other)
    assert torch.equal(*(continual_max(BITS, Config(), fresh(3)).answers_T for _ in range(2)))


def test_answers_stand_between_renewals():
    config = Config(mechanism="recompute", every=10, epsilon=5.0)
    answers, every, _ = continual_max(BITS, config, fresh())
    assert every == 10 and not answers[:9].any()
    assert len(set(answers.tolist())) == 4 and len(set(answers[9:19].tolist())) == 1


@pytest.mark.parametrize(("options", "words"), [
    ({"epsilon": 0.0}, "epsilon is 0.0"), ({"delta": 1.0}, "delta is 1.0"), ({"every": 0}, "every is 0"),
    ({"failure": 1.0}, "failure is 1.0"), ({"query": "sum"}, "query is 'sum'"),
    ({"mechanism": "x"}, "mechanism is 'x'")])
def test_options_out_of_range(options, words):
    with pytest.raises(ValueError, match=words):
        Config(**options)


def test_refuses():
    with pytest.raises(ValueError, match="outside 0 to 1"):
        continual_max(2 * BITS)
    with pytest.raises(ValueError, match=r"shape \(4,\)"):
        continual_max(BITS[0])
