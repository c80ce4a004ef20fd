"""FedGMM: rounds are pooled EM to 1e-8, with labels a plain loop; a new client adapts; what is new has low density."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from mixwell.core.rng import generator
from mixwell.density import GaussianMixture
from mixwell.parallel.federated.clients import Client, Table, clients_of
from mixwell.parallel.federated.fed_gmm import UNLABELLED, Conditional, Config, FedGMM, density, example, possible, sums
from mixwell.parallel.federated.learning import below
from mixwell.parallel.federated.simulation import Setting, Turn, simulate
from tests.parallel.federated._hand import added, averaged, gradient, numbers, plain, probabilities

SHARED = Config(gaussians=2, experts=1, personal=False, reg_covar=1e-3, steps=0)


@pytest.fixture(scope="module")
def tables():
    """Three clients with other shares of two groups each, away from the origin."""
    draws = generator(0)
    parts = []
    for number, first in enumerate((60, 30, 5)):
        noise = torch.randn(60 + 20 * number, 3, generator=draws, dtype=torch.float64)
        noise[:first] = noise[:first] * 0.5 + 3
        parts.append(20 + noise)
    return [Client(number, Table(x, x[:, 0])) for number, x in enumerate(parts)]


def states(method, clients, rounds):
    kept = []
    found = simulate(method, clients, Setting(rounds=rounds), lambda turn, state: kept.append(state))
    return kept, found


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_rounds_with_shared_weights_are_pooled_em(tables):
    kept, found = states(FedGMM(UNLABELLED, SHARED), tables, 8)
    start = kept[0]
    x = torch.cat([client.rows.x for client in tables])
    covariance = torch.from_numpy(np.cov(x.T.numpy(), bias=True)) + 1e-3 * torch.eye(3)
    torch.testing.assert_close(start["covariances"], covariance.repeat(2, 1, 1), rtol=1e-6, atol=1e-6)
    pooled = GaussianMixture(2, weights_init=[0.5, 0.5], means_init=start["means"].numpy(), tol=0, max_iter=7,
                             precisions_init=torch.linalg.inv(start["covariances"]).numpy(), reg_covar=1e-3)
    pooled.fit(x.numpy())
    end = found.state
    np.testing.assert_allclose(end["weights"][:, 0], pooled.weights_, rtol=1e-8)
    np.testing.assert_allclose(end["means"], pooled.means_, rtol=1e-10)
    np.testing.assert_allclose(end["covariances"], pooled.covariances_, rtol=0, atol=1e-8)
    assert abs(end["weights"][0, 0] - 0.5) > 0.05


def normal(z, mean, covariance):
    precision = torch.linalg.inv(covariance).tolist()
    off = [a - b for a, b in zip(z, mean)]
    square = sum(off[i] * precision[i][j] * off[j] for i in range(len(z)) for j in range(len(z)))
    return math.exp(-0.5 * square) / math.sqrt((2 * math.pi) ** len(z) * float(torch.linalg.det(covariance)))


def test_a_round_with_labels_is_a_plain_loop_over_all_rows(world):
    _, clients = world
    given = example(generator(1))["task"]
    task = Conditional(lambda draws: {n: t.double() for n, t in given.start(draws).items()}, given.log_prob)
    config = Config(gaussians=2, experts=2, reg_covar=0.05, lr=0.3, steps=2, batch_size=100)
    kept, found = states(FedGMM(task, config), clients, 3)
    before, after = kept[1], found.state
    # the weights that clients brought into the third round are what the second left: run it by hand from there
    memories = simulate(FedGMM(task, config), clients, Setting(rounds=2)).memories
    models = [plain({name: stack[m] for name, stack in below("theta", before).items()}) for m in range(2)]
    q = []
    for client in clients:
        pi = memories[client.number]["weights"].tolist()
        for z, y in zip(client.rows.x.tolist(), client.rows.y.tolist()):
            joint = [[pi[g][m] * normal(z, before["means"][g].tolist(), before["covariances"][g])
                      * probabilities(*models[m], z)[y] for m in range(2)] for g in range(2)]
            total = sum(map(sum, joint))
            q.append((client.number, z, y, [[part / total for part in row] for row in joint]))
    for g in range(2):
        count = sum(sum(one[3][g]) for one in q)
        mean = [sum(sum(one[3][g]) * one[1][d] for one in q) / count for d in range(4)]
        assert after["means"][g].tolist() == pytest.approx(mean, rel=1e-9)
        for d in range(4):
            for e in range(4):
                second = sum(sum(one[3][g]) * (one[1][d] - mean[d]) * (one[1][e] - mean[e]) for one in q) / count
                assert float(after["covariances"][g, d, e]) == pytest.approx(second + 0.05 * (d == e), rel=1e-8)
    for m in range(2):
        ends, shares = [], []
        for number in range(5):
            own = [(z, y, r[0][m] + r[1][m]) for c, z, y, r in q if c == number]
            model = models[m]
            for _ in range(2):
                model = added(model, gradient(model, *map(list, zip(*own))), -0.3)
            ends.append(model)
            shares.append(sum(one[2] for one in own))
        found_m = plain({name: stack[m] for name, stack in below("theta", after).items()})
        assert numbers(found_m) == pytest.approx(numbers(averaged(ends, shares)), rel=1e-8)
    for number in range(5):
        own = [r for c, _, _, r in q if c == number]
        expected = [sum(r[g][m] for r in own) / len(own) for g in range(2) for m in range(2)]
        assert found.memories[number]["weights"].flatten().tolist() == pytest.approx(expected, rel=1e-9)


def test_weights_stay_at_home_unless_they_are_shared(tables):
    personal = FedGMM(UNLABELLED, dataclasses.replace(SHARED, personal=True))
    _, found = states(personal, tables, 25)
    first = [float(memory["weights"][0, 0]) for memory in found.memories.values()]
    assert max(first) - min(first) > 0.6  # 1, 3/8 and 1/20 of the rows are of one group
    turn = Turn(1, 2, 0)
    assert "weights" not in personal.message(found.state, tables[0], turn)
    assert "weights" in FedGMM(UNLABELLED, SHARED).message(found.state, tables[0], turn)
    assert personal.message(found.state, tables[0], Turn(0, 2, 0)) == {}


def test_a_new_client_finds_its_weights_and_strange_rows_have_low_density(tables):
    method = FedGMM(UNLABELLED, dataclasses.replace(SHARED, personal=True))
    _, found = states(method, tables, 25)
    weights = method.adapted(found.state, tables[2].rows)
    torch.testing.assert_close(weights, found.memories[2]["weights"], rtol=0, atol=1e-3)
    own = density(found.state, weights)
    strange = tables[2].rows.x + 9
    assert own.log_prob(tables[2].rows.x).min() > own.log_prob(strange).max()


def test_models_share_rows_by_where_they_lie():
    draws = generator(4)
    z = torch.randn(200, 2, generator=draws, dtype=torch.float64)
    z[:100, 0] += 6  # where labels are turned
    labels = ((z[:, 1] > 0) ^ (z[:, 0] > 3)).long()
    clients = clients_of(Table(z, labels), [torch.arange(0, 200, 2), torch.arange(1, 200, 2)])

    def start(draws):
        return {"slope": torch.randn((), generator=draws, dtype=torch.float64)}

    def log_prob(theta, rows):
        sign = 2.0 * rows.y - 1
        return torch.nn.functional.logsigmoid(sign * theta["slope"] * rows.x[:, 1])

    method = FedGMM(Conditional(start, log_prob), Config(gaussians=2, experts=2, lr=1.0, steps=3, reg_covar=1e-3))
    found = simulate(method, clients, Setting(rounds=18))
    weights = found.memories[0]["weights"]
    share = method.shares(found.state, weights, z)
    turned = share[:100].mean(0)
    torch.testing.assert_close(share.sum(1), torch.ones(200, dtype=torch.float64))
    assert abs(float(turned[0] - share[100:].mean(0)[0])) > 0.9


def test_a_gaussian_without_rows_stays(tables):
    method = FedGMM(UNLABELLED, SHARED)
    kept, _ = states(method, tables, 2)
    state = {**kept[1], "weights": torch.tensor([[1.0], [0.0]], dtype=torch.float64)}
    turn = Turn(1, 2, 0)
    answers = {c.number: method.answer(c, method.message(state, c, turn), {}, turn) for c in tables}
    after = method.merged(state, answers, turn)
    assert torch.equal(after["means"][1], state["means"][1]) and after["weights"][1, 0] == 0
    assert torch.equal(after["covariances"][1], state["covariances"][1])
    assert not torch.equal(after["means"][0], state["means"][0])


def test_sums_that_no_rows_have_are_left_out(tables):
    rows = tables[0].rows.x
    true = sums(torch.ones(60, 1, dtype=torch.float64), rows, rows[:1])
    assert possible(true)
    assert not possible({**true, "squares": -true["squares"]}) and not possible({**true, "sum": 3 * true["sum"]})
    assert not possible({**true, "count": -true["count"]}) and not possible({**true, "parts": -true["count"]})
    method = FedGMM(UNLABELLED, SHARED)
    found = simulate(method, tables, Setting(rounds=3, liars=1, attack="opposite", factor=2.0))
    honest = simulate(method, tables[:2], Setting(rounds=3))
    for name, tensor in honest.state.items():
        torch.testing.assert_close(found.state[name], tensor)


def test_refusals():
    for options, message in (({"gaussians": 0}, "gaussians is 0"), ({"experts": 0}, "experts is 0"),
                             ({"reg_covar": -1.0}, "reg_covar is -1.0"), ({"lr": 0.0}, "lr is 0.0"),
                             ({"steps": -1}, "steps is -1"), ({"batch_size": 0}, "batch_size is 0")):
        with pytest.raises(ValueError, match=message):
            Config(**options)
