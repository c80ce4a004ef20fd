"""BOFT against dense matrices, what a rotation keeps, how far a butterfly reaches, OFT and its series."""

import pytest
import torch

from mixwell.adapters.boft import BOFT, Config, butterfly, cayley, turned
from mixwell.core.errors import MixwellError
from mixwell.kernels.linear import Linear
from tests.contracts._adapters import model, moved
from tests.contracts._tools import fresh


def beside(config, inputs=8, outputs=5, size=0.4):
    network = Linear(inputs, outputs, True, fresh(1)).double()
    torch.nn.init.normal_(network.bias, generator=fresh(2))
    there = BOFT.attach(network, "all-linear", config, fresh(3))
    network.double()
    return network, moved(there, size=size).adapters["weight"], there


def dense(R, b):
    """Q of one group by its definition: a product of P blockdiag(C) P^T, the first factor rightmost."""
    m, n, _, _ = R.shape
    width = n * b
    Q = torch.eye(width, dtype=R.dtype)
    for i in range(m):
        order = []
        for start in range(0, width, b * 2**i):
            halves = [list(range(h, h + b // 2)) for h in range(start, start + b * 2**i, b // 2)]
            order += [c for half in halves[0::2] + halves[1::2] for c in half]
        P = torch.zeros(width, width, dtype=R.dtype)
        P[range(width), order if m > 1 else list(range(width))] = 1
        blocks = []
        for block in R[i]:
            S = (block - block.T) / 2
            eye = torch.eye(b, dtype=R.dtype)
            blocks.append((eye - S) @ torch.linalg.inv(eye + S))
        Q = P @ torch.block_diag(*blocks) @ P.T @ Q
    return Q


@pytest.mark.parametrize("options", [{"block_size": 4}, {"block_size": 2, "factors": 3},
                                     {"block_size": 4, "factors": 2, "gain": False}])
def test_a_layer_and_its_gradient_agree_with_dense_matrices(options):
    network, adapter, there = beside(Config(**options))
    x = torch.randn(4, 8, generator=fresh(4), dtype=torch.float64)
    gain = torch.ones(5, dtype=torch.float64) if adapter.gain is None else adapter.gain
    Q = dense(adapter.R[0], options["block_size"])
    expected = gain * (x @ Q @ network.weight.T) + network.bias
    y = network(x)
    torch.testing.assert_close(y, expected)
    parts = [p for p in (adapter.R, adapter.gain) if p is not None]
    for one, other in zip(torch.autograd.grad(y.square().sum(), parts),
                          torch.autograd.grad(expected.square().sum(), parts)):
        torch.testing.assert_close(one, other)
    there.merge()
    torch.testing.assert_close(network(x), expected)


def test_a_rotation_keeps_lengths_and_angles_of_the_rows():
    network, adapter, there = beside(Config(block_size=2, factors=3, gain=False))
    before = network.weight.detach() @ network.weight.detach().T
    eye = torch.eye(8, dtype=torch.float64)
    Q = turned(eye, cayley(adapter.R[0]))
    torch.testing.assert_close(Q @ Q.T, eye)
    there.merge()
    torch.testing.assert_close(network.weight.detach() @ network.weight.detach().T, before)


@pytest.mark.parametrize("factors, reached", [(1, 2), (2, 4), (3, 8)])
def test_each_factor_doubles_what_an_input_reaches(factors, reached):
    R = torch.randn(factors, 4, 2, 2, generator=fresh(5), dtype=torch.float64)
    Q = turned(torch.eye(8, dtype=torch.float64), cayley(R))
    assert (Q.abs() > 1e-9).sum(1).tolist() == [reached] * 8


def test_halves_of_blocks_change_places():
    assert butterfly(8, 2, 0).tolist() == list(range(8))
    assert butterfly(8, 2, 1).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert butterfly(8, 4, 1).tolist() == [0, 1, 4, 5, 2, 3, 6, 7]


def test_groups_of_rows_turn_their_own_way():
    network, adapter, there = beside(Config(block_size=4, groups={"weight": (2, 3)}))
    assert adapter.R.shape == (2, 1, 2, 4, 4) and not adapter.maps_input
    x = torch.randn(4, 8, generator=fresh(4), dtype=torch.float64)
    parts = [x @ dense(own, 4) @ rows.T for own, rows in zip(adapter.R, network.weight.split([2, 3]))]
    expected = torch.cat(parts, 1) * adapter.gain + network.bias
    torch.testing.assert_close(network(x), expected)
    there.merge()
    torch.testing.assert_close(network(x), expected)


def test_a_series_nears_the_inverse():
    R = 0.2 * torch.randn(3, 4, 4, generator=fresh(6), dtype=torch.float64)
    S = (R - R.mT) / 2
    eye = torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(cayley(R, 5), eye - 2 * S + 2 * S @ S - 2 * S @ S @ S + S @ S @ S @ S)
    away = [float((cayley(R, terms) - cayley(R)).abs().max()) for terms in (4, 6, 8, 12)]
    assert away == sorted(away, reverse=True) and away[-1] < 1e-5
    network, _, _ = beside(Config(block_size=4, series=5), size=0.1)
    exact, _, _ = beside(Config(block_size=4), size=0.1)
    x = torch.randn(4, 8, generator=fresh(4), dtype=torch.float64)
    torch.testing.assert_close(network(x), exact(x), atol=1e-3, rtol=1e-3)
    assert not torch.equal(network(x), exact(x))


def test_dropout_holds_a_share_of_one_factors_blocks():
    there = moved(BOFT.attach(model(), "down_proj", Config(block_size=2, factors=2, dropout=0.5), fresh()))
    (adapter, _) = there.adapters.values()
    adapter.now.context = adapter.now.context.__class__(generator=fresh(2))
    free = cayley(adapter.R[0])
    there.model.train()
    blocks = adapter._blocks(adapter.R[0])
    still = (blocks == torch.eye(2)).all(-1).all(-1)
    assert sorted(still.sum(1).tolist()) == [0, 6]
    torch.testing.assert_close(blocks[~still], free[~still])
    there.model.eval()
    assert torch.equal(adapter._blocks(adapter.R[0]), free)


@pytest.mark.parametrize("options, message", [
    ({"block_size": 3, "factors": 2}, "block_size is 3; expected an even one"), ({"series": 2}, "series is 2"),
    ({"dropout": 1.0}, "dropout is 1"), ({"factors": 0}, "factors is 0"), ({"block_size": 1}, "block_size is 1")])
def test_refuses_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)


@pytest.mark.parametrize("options, message", [
    ({"block_size": 3}, "has 8 inputs; 1 factors of blocks of 3 ask for a multiple of 3"),
    ({"block_size": 4, "factors": 3}, "a multiple of 16"),
    ({"groups": {"weight": (2, 2)}}, r"has 5 rows, and \[2, 2\] came"),
    ({"groups": {"qvk": (2, 3)}}, "groups: nothing that is adapted fits 'qvk'")])
def test_refuses_what_does_not_divide_the_matrix_or_fits_none(options, message):
    with pytest.raises(MixwellError, match=message):
        beside(Config(**options))
