import itertools

import pytest
import torch

from mixwell.density.circuits.distillation import Config, completed_log_prob, distil, example, join, split_clusters
from mixwell.density.circuits.trees import TreeCircuit


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


NODES = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])


def planted(count=400, seed=0):
    """Three patches of three ternary features, four states a patch, in a chain."""
    truth = TreeCircuit.random((-1, 0, 1), NODES, 4, 3, draws(seed))
    sharper = [(6 * t).log_softmax(-1) for t in (truth.log_edge_DKK, truth.log_table_FKV)]
    truth = TreeCircuit(truth.parent, NODES, truth.log_root_K, *sharper)
    return truth, truth.sample(count, draws(seed + 1))


TRUTH, X = planted()
FEATURES = torch.nn.functional.one_hot(X.long(), 3).double().view(len(X), 3, 9)
CONFIG = Config(n_states=4, max_states=4, n_categories=3, em_steps=8)


def test_joined_parameters_are_smoothed_shares_by_loops():
    z = torch.randint(0, 2, (30, 3), generator=draws())
    config = Config(n_states=2, max_states=2, n_categories=3, smoothing=0.5)
    made = join(X[:30], NODES, z, 2, config)
    for node, above in enumerate(made.parent):
        for i, j in itertools.product(range(2), repeat=2):
            rows = z if above < 0 else z[z[:, above] == i]
            share = ((rows[:, node] == j).sum() + 0.5) / (len(rows) + 1)
            found = made.log_root_K[j] if above < 0 else made.log_edge_DKK[node, i, j]
            assert float(found.exp()) == pytest.approx(float(share))
    for f, k, v in itertools.product((0, 4, 8), range(2), range(3)):
        rows = X[:30][z[:, NODES[f]] == k, f]
        share = (float((rows == v).sum()) + 0.5) / (len(rows) + 1.5)
        assert float(made.log_table_FKV[f, k, v].exp()) == pytest.approx(share)


def test_completions_sum_to_the_likelihood():
    made = join(X, NODES, torch.randint(0, 2, (400, 3), generator=draws()), 2, CONFIG)
    states = torch.tensor(list(itertools.product(range(2), repeat=3)))
    each = torch.stack([completed_log_prob(made, X[:5], z.expand(5, -1)) for z in states])
    torch.testing.assert_close(each.logsumexp(0), made.log_prob(X[:5]))


def test_the_student_passes_its_teacher_and_its_likelihood_is_a_density():
    found = distil(X, NODES, FEATURES, draws(3), CONFIG)
    start, end = (float(c.log_prob(X).mean()) for c in (found.start, found.circuit))
    assert found.teacher_bound < start < end
    grid = torch.tensor(list(itertools.product([0.0, 1.0, 2.0], repeat=3)))
    rows = torch.full((27, 9), torch.nan)
    rows[:, [1, 4, 8]] = grid
    assert float(found.circuit.log_prob(rows).exp().sum()) == pytest.approx(1)


def test_the_start_is_worth_many_steps_of_em():
    found = distil(X, NODES, FEATURES, draws(3), CONFIG)
    chance = TreeCircuit.random(found.circuit.parent, NODES, 4, 3, draws(7))
    for _ in range(3):
        chance, _ = chance.em_step(X)
    assert float(found.start.log_prob(X).mean()) > float(chance.log_prob(X).mean())


def test_states_that_determine_their_patch_make_the_bound_tight():
    x = torch.randint(0, 2, (200, 2), generator=draws()).double()
    config = Config(n_states=2, max_states=2, em_steps=0, smoothing=1e-9)
    found = distil(x, torch.tensor([0, 1]), x[..., None], draws(), config)
    rest = float(found.start.log_prob(x).mean())
    assert found.teacher_bound == pytest.approx(rest, abs=0.02)
    assert found.circuit is found.start


def test_growth_doubles_until_held_out_rows_gain_no_more():
    found = distil(X, NODES, FEATURES, draws(1), Config(n_states=2, max_states=64, n_categories=3, em_steps=3))
    heights = found.valid_log_likelihoods
    assert len(heights) > 2 and heights[-1] <= heights[-2] and list(heights[:-1]) == sorted(heights[:-1])
    assert len(found.circuit.log_root_K) == 2 ** (len(heights) - 1)
    greedy = Config(n_states=2, max_states=64, n_categories=3, em_steps=3, min_gain=1e3)
    assert len(distil(X, NODES, FEATURES, draws(1), greedy).valid_log_likelihoods) == 2


def test_clusters_split_within_themselves():
    features = torch.tensor([[0.0], [0.1], [5.0], [5.1], [9.0], [9.0]])
    new = split_clusters(features, torch.tensor([0, 0, 0, 0, 1, 1]), 2, 0)
    assert set(new[:4].tolist()) == {0, 2} and new[0] == new[1] != new[2] and new[4:].tolist() == [1, 1]


def test_refuses():
    with pytest.raises(ValueError, match="with every patch"):
        distil(X, NODES[:5], FEATURES, draws(), CONFIG)
    with pytest.raises(ValueError, match=r"outside 0, \.\.\., 1"):
        distil(X, NODES, FEATURES, draws())
    for wrong in ({"n_states": 1}, {"max_states": 3}, {"smoothing": 0.0}, {"valid_share": 1.0}):
        with pytest.raises(ValueError, match="expected"):
            Config(**wrong)


def test_example_runs_and_is_repeatable():
    one, two = (distil(**example(draws(2))) for _ in range(2))
    assert torch.equal(one.circuit.log_edge_DKK, two.circuit.log_edge_DKK)
