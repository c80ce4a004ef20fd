"""PEGO against loops: the group, the penalty and its gradient, where it is told, what it does."""

import pytest
import torch

from mixwell.adapters.pego import PEGO, Config, diversifying, penalty, preserving
from mixwell.core.errors import MixwellError
from mixwell.kernels.linear import Linear
from tests.contracts._adapters import TOKENS, model, moved
from tests.contracts._tools import fresh


def beside(config):
    network = Linear(6, 5, True, fresh(1)).double()
    there = PEGO.attach(network, "all-linear", config, fresh(3))
    network.double()
    return network, moved(there, size=0.3).adapters["weight"], there


def entrywise(weight, A, B):
    changes = [b @ a for a, b in zip(A, B)]
    rows, count = range(len(weight)), range(len(A))
    first = sum(abs(weight[o] @ change[p]) for change in changes for o in rows for p in rows)
    second = [abs(changes[i][o] @ changes[j][p]) for i in count for j in count if i < j for o in rows for p in rows]
    return first, sum(second)


def test_a_layer_and_the_penalty_agree_with_loops():
    network, adapter, there = beside(Config(count=3, rank=2))
    x = torch.randn(4, 6, generator=fresh(4), dtype=torch.float64)
    change = sum(b @ a for a, b in zip(adapter.A, adapter.B))
    torch.testing.assert_close(network(x), x @ (network.weight + change).T + network.bias)
    torch.testing.assert_close(there.delta_weight("weight"), change.detach())
    found = preserving(network.weight, adapter.A, adapter.B), diversifying(adapter.A, adapter.B)
    expected = entrywise(network.weight, adapter.A, adapter.B)
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other)
        for slope, known in zip(torch.autograd.grad(one, [adapter.A, adapter.B]),
                                torch.autograd.grad(other, [adapter.A, adapter.B], retain_graph=True)):
            torch.testing.assert_close(slope, known)


@pytest.mark.parametrize("mean", [False, True])
def test_coefficients_and_the_penalty_of_a_bare_layer(mean):
    config = Config(count=2, rank=2, penalty=0.1, preserve=2.0, diversify=3.0, mean=mean)
    network, adapter, there = beside(config)
    first, second = entrywise(network.weight, adapter.A, adapter.B)
    scale = 25 if mean else 1
    torch.testing.assert_close(penalty(there), 0.1 * (2 * first + 3 * second) / scale)


@pytest.mark.parametrize("sparse", [False, True])
def test_training_is_told_the_penalty_and_reading_is_not(sparse):
    there = moved(PEGO.attach(model(sparse), None, Config(count=2, rank=2), fresh()))
    given = TOKENS[:, :-1], TOKENS[:, 1:]
    read = there.model.loss(*given)
    assert "pego_preserve" not in read.losses
    told = there.model.train().loss(*given)
    assert told.losses["pego_preserve"] > 0 and told.losses["pego_diversify"] > 0
    if not sparse:  # every matrix is used: the sum over all of them
        torch.testing.assert_close(told.aux, penalty(there))


def test_a_change_that_is_orthogonal_to_all_rows_costs_nothing():
    """Rows of W and of both changes within spaces of their own."""
    weight = torch.zeros(5, 6)
    weight[:, :2] = torch.randn(5, 2, generator=fresh(1))
    A = torch.zeros(2, 2, 6)
    A[0, :, 2:4] = A[1, :, 4:] = torch.eye(2)
    B = torch.randn(2, 5, 2, generator=fresh(2))
    assert preserving(weight, A, B) == diversifying(A, B) == 0
    assert diversifying(A[:1].expand(2, -1, -1), B) > 0
    assert diversifying(A[:1], B[:1]) == 0  # one has nobody to be apart from


def test_descent_on_the_penalty_takes_the_changes_apart():
    _, adapter, there = beside(Config(count=2, rank=1, preserve=0.0, penalty=1.0))
    before = penalty(there).detach()
    for _ in range(20):
        slopes = torch.autograd.grad(penalty(there), [adapter.A, adapter.B])
        with torch.no_grad():
            for part, slope in zip((adapter.A, adapter.B), slopes):
                part -= 0.005 * slope
    assert penalty(there) < 0.5 * before


@pytest.mark.parametrize("options, message", [({"count": 0}, "count is 0"), ({"rank": 0}, "rank is 0"),
                                              ({"penalty": -1.0}, "penalty is -1"), ({"preserve": -1.0}, "preserve"),
                                              ({"diversify": -1.0}, "diversify")])
def test_refuses_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)


def test_refuses_a_rank_above_the_width():
    with pytest.raises(MixwellError, match="rank is 6 at weight"):
        beside(Config(rank=6))
