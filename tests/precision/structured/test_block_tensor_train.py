"""Block tensor trains against loops; Monarch, dense, rates under Adam, steps flat over the width, norms."""

import pytest
import torch
from torch import nn

from mixwell.core.routing import Context
from mixwell.precision.structured._parts import even_factors
from mixwell.precision.structured.block_tensor_train import BlockTensorTrain, Config, nearest, start_std
from tests.contracts._tools import fresh


def entry(P, Q, row, column, r):
    """W[(c, d), (a, b)] = sum_s Q[c, (a, s), d] P[a, b, (c, s)]."""
    m1, n2 = P.shape[1], Q.shape[2]
    (c, d), (a, b) = divmod(row, n2), divmod(column, m1)
    return sum(Q[c, a * r + s, d] * P[a, b, c * r + s] for s in range(r))


@pytest.mark.parametrize("rank", [1, 2])
def test_agrees_with_a_loop_forward_and_gradient(generator, rank):
    matrix = BlockTensorTrain(6, 8, Config(rank=rank), generator).double()
    P, Q = matrix.factors()
    assert P.shape == (4, 2, 2 * rank) and Q.shape == (2, 4 * rank, 3)
    W = torch.stack([torch.stack([entry(P, Q, row, column, rank) for column in range(8)]) for row in range(6)])
    torch.testing.assert_close(matrix.dense(), W)
    x = torch.randn(3, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    leaves = [x, matrix.first, matrix.weight]
    found = torch.autograd.grad(matrix(x, Context()).sin().sum(), leaves)
    for one, other in zip(found, torch.autograd.grad((x @ W.T).sin().sum(), leaves)):
        torch.testing.assert_close(one, other)
    assert matrix.flops_per_token() == 2 * rank * 2 * 4 * (2 + 3)


def test_rank_one_is_monarch_and_the_largest_rank_is_any_matrix(generator):
    matrix = BlockTensorTrain(9, 9, Config(rank=1), generator)
    blocks = matrix.dense().detach().view(3, 3, 3, 3)  # [c, d, a, b]
    for c in range(3):
        for a in range(3):
            assert torch.linalg.matrix_rank(blocks[c, :, a]) == 1
    W = torch.randn(9, 9, generator=generator)
    same = BlockTensorTrain.from_dense(W, Config(rank=3), generator)
    torch.testing.assert_close(same.dense(), W, atol=1e-5, rtol=1e-4)


def test_factorising_cuts_every_block_to_its_leading_parts(generator):
    W = torch.randn(6, 8, generator=generator, dtype=torch.float64)
    found = BlockTensorTrain.from_dense(W, Config(rank=1), generator).dense().double()
    for c in range(2):
        for a in range(4):
            block, cut = (M[3 * c : 3 * c + 3, 2 * a : 2 * a + 2] for M in (W, found))
            U, S, Vh = torch.linalg.svd(block)
            torch.testing.assert_close(cut, S[0] * U[:, :1] @ Vh[:1], atol=1e-5, rtol=0)
    first, last = nearest(W, 1)
    assert first.shape == (4, 2, 2) and last.shape == (2, 4, 3)


def test_a_factor_starts_by_its_own_fans():
    assert start_std(16, 64) == pytest.approx(0.25)
    assert start_std(16, 4) == pytest.approx(0.125)
    matrix = BlockTensorTrain(1024, 1024, Config(rank=2), fresh(1))
    assert matrix.starts == pytest.approx([32**-0.5, 64**-0.5 * 0.5**0.5])
    P, Q = matrix.factors()
    assert [float(f.detach().std()) for f in (P, Q)] == pytest.approx(matrix.starts, rel=0.05)


@pytest.mark.parametrize("base_dim", [None, 4])
def test_under_adam_factors_learn_at_the_rates_of_the_paper(generator, base_dim):
    """Adam with a learning rate for each factor on the factors themselves goes the same way."""
    matrix = BlockTensorTrain(6, 8, Config(rank=2, base_dim=base_dim), generator).double()
    width = base_dim or 8
    factors = [nn.Parameter(f.detach().clone()) for f in matrix.factors()]
    plain = torch.optim.Adam([{"params": [f], "lr": 1e-2 * width / (2 * f.shape[1])} for f in factors], eps=1e-30)
    ours = torch.optim.Adam(matrix.parameters(), lr=1e-2, eps=1e-30)
    x = torch.randn(7, 8, generator=generator, dtype=torch.float64)
    y = torch.randn(7, 6, generator=generator, dtype=torch.float64)
    twin = BlockTensorTrain(6, 8, Config(rank=2, rates=False), generator).double()
    for _ in range(5):
        ours.zero_grad()
        (matrix(x, Context()) - y).square().mean().backward()
        ours.step()
        plain.zero_grad()
        twin.first.data, twin.weight.data = (f.data for f in factors)
        loss = (twin(x, Context()) - y).square().mean()
        for f, gradient in zip(factors, torch.autograd.grad(loss, [twin.first, twin.weight])):
            f.grad = gradient
        plain.step()
    for one, other in zip(matrix.factors(), factors):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def moved(width, rates):
    """Root mean square by which one step of Adam moves what a square matrix gives."""
    draws = fresh(width)
    matrix = BlockTensorTrain(width, width, Config(rates=rates, base_dim=64 if rates else None), draws)
    x = torch.randn(256, width, generator=draws)
    y = torch.randn(256, width, generator=draws)
    before = matrix(x, Context()).detach()
    (matrix(x, Context()) * y).mean().backward()
    torch.optim.Adam(matrix.parameters(), lr=1e-3).step()
    return float((matrix(x, Context()) - before).square().mean().sqrt())


def test_with_its_rates_a_step_moves_outputs_alike_at_every_width():
    """The paper's promise: rates by structure keep the size of updates as the width grows, plain ones do not."""
    own = [moved(width, True) for width in (64, 1024)]
    plain = [moved(width, False) for width in (64, 1024)]
    assert 0.5 < own[1] / own[0] < 2
    assert own[0] > 1.5 * plain[0]


def test_norms_hold_a_factor_at_its_starts_size_times_a_gain(generator):
    matrix = BlockTensorTrain(8, 8, Config(norm=True), generator).double()
    with torch.no_grad():
        matrix.first.mul_(10)
        matrix.first_gain.fill_(0.5)
        matrix.weight.mul_(0.1)
    P, Q = matrix.factors()
    size = matrix.first * matrix.rates[0]
    torch.testing.assert_close(P, 0.5 * size / (size.square().mean().sqrt() / matrix.starts[0]))
    torch.testing.assert_close(Q, matrix.weight * matrix.rates[1])
    W = 100 * torch.randn(8, 8, generator=generator, dtype=torch.float64)
    found = BlockTensorTrain.from_dense(W, Config(rank=2, norm=True), generator)
    torch.testing.assert_close(found.dense().double(), W, rtol=1e-4, atol=1e-3)


def test_factors_are_even():
    assert [even_factors(n) for n in (1, 7, 64, 128, 1000)] == [(1, 1), (1, 7), (8, 8), (8, 16), (25, 40)]


def test_refuses(generator):
    with pytest.raises(ValueError, match="rank is 3 for blocks of 3 x 2, of which a matrix of 6 x 8 is made"):
        BlockTensorTrain(6, 8, Config(rank=3), generator)
    with pytest.raises(ValueError, match="base_dim is 4 without rates"):
        Config(base_dim=4, rates=False)
    with pytest.raises(ValueError, match="rank is 0"):
        Config(rank=0)
