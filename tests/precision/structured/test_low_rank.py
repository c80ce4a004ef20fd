"""Factors of low rank against loops; the spectral start; the product's decay; ranks of a layer's matrices."""

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.core.routing import Context
from mixwell.mixing import build_structured
from mixwell.precision.structured.low_rank import Config, LowRank
from tests.contracts._tools import fresh


def by_hand(x, U, V):
    rows = []
    for token in x:
        inner = [sum(v * t for v, t in zip(row, token)) for row in V]
        rows.append(torch.stack([sum(u * z for u, z in zip(row, inner)) for row in U]))
    return torch.stack(rows)


def test_agrees_with_a_loop_forward_and_gradient(generator):
    matrix = LowRank(4, 6, Config(rank=2), generator).double()
    x = torch.randn(3, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    found, expected = matrix(x, Context()), by_hand(x, matrix.weight, matrix.right)
    torch.testing.assert_close(found, expected)
    leaves = [x, matrix.weight, matrix.right]
    for one, other in zip(torch.autograd.grad(found.sin().sum(), leaves),
                          torch.autograd.grad(expected.sin().sum(), leaves)):
        torch.testing.assert_close(one, other)
    assert matrix.flops_per_token() == 2 * 2 * (4 + 6)


def test_the_spectral_start_is_the_leading_part_of_a_dense_start(generator):
    matrix = LowRank(8, 12, Config(rank=3), fresh(4), 0.02)
    W = torch.randn(8, 12, generator=fresh(4)) * 0.02
    U, S, Vh = torch.linalg.svd(W)
    torch.testing.assert_close(matrix.dense(), U[:, :3] * S[:3] @ Vh[:3], atol=1e-7, rtol=1e-4)
    torch.testing.assert_close(matrix.weight.norm(dim=0), matrix.right.norm(dim=1))  # shared evenly
    whole = LowRank(8, 12, Config(rank=8), fresh(4), 0.02)
    torch.testing.assert_close(whole.dense(), W, atol=1e-7, rtol=1e-4)


def test_normal_factors_keep_the_variance_of_a_dense_start(generator):
    matrix = LowRank(200, 300, Config(rank=4, start="normal"), generator, 0.5)
    assert float(matrix.dense().detach().std()) == pytest.approx(0.5, rel=0.1)


def test_cutting_is_the_best_of_its_rank(generator):
    W = torch.randn(8, 12, generator=generator, dtype=torch.float64)
    found = LowRank.from_dense(W, Config(rank=5), generator).dense().double()
    rest = torch.linalg.svdvals(W)[5:].norm()
    torch.testing.assert_close((found - W).norm(), rest, rtol=1e-5, atol=0)
    same = LowRank.from_dense(W, Config(rank=0), generator)
    torch.testing.assert_close(same.dense(), W.float())
    assert same.right is None and same.flops_per_token() == 2 * 8 * 12


@pytest.mark.parametrize("rank", [2, 0])
def test_decay_is_that_of_the_product(generator, rank):
    matrix = LowRank(5, 7, Config(rank=rank, decay=0.3), generator).double()
    expected = 0.3 * sum(entry**2 for row in matrix.dense() for entry in row)
    torch.testing.assert_close(matrix.penalty(), expected)
    assert LowRank(5, 7, Config(rank=2), generator).penalty() is None


def test_each_matrix_of_a_layer_may_have_a_rank_of_its_own(generator):
    spec = {"method": "low_rank", "ranks": (2, 0, 3)}
    made = build_structured(spec, [(8, 4), (8, 4), (4, 8)], generator)
    assert [m.config.rank for m in made] == [2, 0, 3] and [m.place for m in made] == [0, 1, 2]
    with pytest.raises(MixwellError, match="ranks lists 3 for 2 matrices"):
        build_structured(spec, [(8, 4), (4, 8)], generator)


def test_refuses(generator):
    with pytest.raises(ValueError, match="rank is 9 for a matrix of 4 x 8; expected 1 to 4"):
        LowRank(4, 8, Config(rank=9), generator)
    with pytest.raises(ValueError, match="ranks holds -1"):
        Config(ranks=(-1,))
    with pytest.raises(ValueError, match="decay is -1"):
        Config(rank=1, decay=-1)
    with pytest.raises(MixwellError, match=r"expected a method.*mixwell list precision.structured"):
        build_structured({"rank": 3}, [(4, 4)], generator)
    with pytest.raises(MixwellError, match=r"structure precision.structured.low_rank: rank is 9"):
        build_structured({"method": "low_rank", "rank": 9}, [(4, 4)], generator)
