"""SVFT against a dense core, its patterns, and that a full core reaches any change."""

import pytest
import torch

from mixwell.adapters.svft import SVFT, Config, aligned, banded, drawn, num_places
from mixwell.core.errors import MixwellError
from mixwell.kernels.linear import Linear
from tests.contracts._adapters import logits, model
from tests.contracts._tools import fresh

PATTERNS = ["banded", "random", "top_k"]


def beside(config, outputs=5, inputs=6):
    network = Linear(inputs, outputs, True, fresh(1))
    torch.nn.init.normal_(network.weight, generator=fresh(2))
    there = SVFT.attach(network, "all-linear", config, fresh(3))
    network.double()
    adapter = there.adapters["weight"]
    with torch.no_grad():
        adapter.gate.fill_(0.7)
    return network, adapter, there


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("shape", [(5, 6), (6, 5), (5, 5)])
def test_a_layer_and_its_gradient_agree_with_a_dense_core(pattern, shape):
    network, adapter, there = beside(Config(pattern=pattern, band=1), *shape)
    x = torch.randn(4, shape[1], generator=fresh(4), dtype=torch.float64)
    U, _, Vh = torch.linalg.svd(network.weight.detach(), full_matrices=False)
    signs = (U * adapter.U).sum(0).sign()
    U, Vh = U * signs, Vh * signs[:, None]
    torch.testing.assert_close(adapter.U, U, atol=1e-5, rtol=0)
    U, Vh = adapter.U, adapter.Vh
    M = [[torch.zeros((), dtype=torch.float64) for _ in range(5)] for _ in range(5)]
    for value, row, column in zip(adapter.values, adapter.rows.tolist(), adapter.columns.tolist()):
        M[row][column] = M[row][column] + value / (1 + torch.exp(-adapter.gate))
    core = torch.stack([torch.stack(row) for row in M])
    change = U @ core @ Vh
    y, expected = network(x), x @ (network.weight + change).T + network.bias
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(there.delta_weight("weight"), change.detach())
    parts = [adapter.values, adapter.gate]
    for one, other in zip(torch.autograd.grad(y.square().sum(), parts),
                          torch.autograd.grad(expected.square().sum(), parts)):
        torch.testing.assert_close(one, other)


def test_a_full_core_reaches_any_change_of_a_matrix_within_its_singular_vectors():
    _, adapter, there = beside(Config(band=4), 5, 5)
    wanted = torch.randn(5, 5, generator=fresh(6), dtype=torch.float64)
    core = adapter.U.T @ wanted @ adapter.Vh.T
    with torch.no_grad():
        adapter.values.copy_(core[adapter.rows, adapter.columns] / torch.sigmoid(adapter.gate))
    torch.testing.assert_close(there.delta_weight("weight"), wanted, atol=1e-5, rtol=1e-5)


def test_the_patterns():
    rows, columns = banded(5, 1)
    assert {(int(r), int(c)) for r, c in zip(rows, columns)} == {
        (r, c) for r in range(5) for c in range(5) if abs(r - c) <= 1}
    assert [num_places(5, band) for band in range(5)] == [5, 13, 19, 23, 25]
    rows, columns = drawn(5, 400, fresh(1))
    assert rows.unique().numel() == columns.unique().numel() == 5 and not torch.equal(rows, columns)
    weight = torch.randn(5, 5, generator=fresh(2))
    U, _, Vh = torch.linalg.svd(weight)
    rows, columns = aligned(U, Vh, 7)
    products = sorted((float(U[:, i] @ Vh[j]) for i in range(5) for j in range(5)), reverse=True)
    found = [float(U[:, i] @ Vh[j]) for i, j in zip(rows, columns)]
    assert found == pytest.approx(products[:7])
    U, _, Vh = torch.linalg.svd(torch.randn(4, 6, generator=fresh(3)), full_matrices=False)
    rows, columns = aligned(U, Vh, 3)
    assert sorted(U[rows, columns].tolist()) == sorted(U.flatten().topk(3).values.tolist())


def test_the_start_is_off_by_the_drawn_values_or_by_nothing():
    _, adapter, there = beside(Config(band=2), 60, 80)
    assert float(adapter.values.detach().std()) == pytest.approx((2 / len(adapter.values)) ** 0.5, rel=0.1)
    torch.testing.assert_close(there.delta_weight("weight").norm(), torch.sigmoid(adapter.gate).detach()
                               * adapter.values.detach().norm(), rtol=1e-4, atol=1e-5)
    network = model(sparse=True)
    SVFT.attach(network, None, Config(start="zero", pattern="random"), fresh())
    assert torch.equal(logits(network), logits(model(sparse=True)))


def test_refuses_a_band_wider_than_the_matrix():
    with pytest.raises(MixwellError, match="band is 5 at weight, which has 5 singular values"):
        beside(Config(band=5))
    with pytest.raises(ValueError, match="band is -1; expected 0 or more"):
        Config(band=-1)
