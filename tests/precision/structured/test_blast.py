"""BLAST against loops; what it holds exactly; the rounds of factorising against loops and by what they find."""

import pytest
import torch

from mixwell.core.routing import Context
from mixwell.precision.structured.blast import Blast, Config, Factors, _round, factorise, in_blocks
from tests.contracts._tools import fresh


def block(factors, i, j):
    B, C, D = factors
    return B[i] @ torch.diag(D[:, i, j]) @ C[j]


def test_agrees_with_a_loop_forward_and_gradient(generator):
    matrix = Blast(6, 8, Config(rank=3, blocks=2), generator).double()
    W = torch.cat([torch.cat([block(matrix.factors(), i, j) for j in range(2)], 1) for i in range(2)])
    torch.testing.assert_close(matrix.dense(), W)
    x = torch.randn(3, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    leaves = [x, *matrix.parameters()]
    found = torch.autograd.grad(matrix(x, Context()).sin().sum(), leaves)
    for one, other in zip(found, torch.autograd.grad((x @ W.T).sin().sum(), leaves)):
        torch.testing.assert_close(one, other)
    assert matrix.flops_per_token() == 2 * 3 * (6 + 8 + 4)


def slow_round(W, B, C, D, rate, delta):
    """One round, block by block, from the gradient that autograd finds."""
    parts = [t.clone() for t in (B, C, D)]
    blocks = len(B)

    def loss(values):
        return sum((W[i, j] - block(values, i, j)).square().sum() for i in range(blocks) for j in range(blocks))

    for k in range(3):
        leaf = parts[k].clone().requires_grad_()
        values = [*parts[:k], leaf, *parts[k + 1 :]]
        error = loss(values)
        slope, = torch.autograd.grad(error, leaf)
        B, C, D = parts
        ease = delta * error.detach().sqrt() * torch.eye(B.shape[2], dtype=W.dtype)
        moved = parts[k].clone()
        for i in range(blocks):
            if k == 0:
                G = sum((torch.diag(D[:, i, j]) @ C[j]) @ (torch.diag(D[:, i, j]) @ C[j]).T for j in range(blocks))
                moved[i] -= rate * slope[i] @ torch.linalg.inv(G + ease)
            elif k == 1:
                G = sum((B[j] @ torch.diag(D[:, j, i])).T @ (B[j] @ torch.diag(D[:, j, i])) for j in range(blocks))
                moved[i] -= rate * torch.linalg.inv(G + ease) @ slope[i]
            else:
                for j in range(blocks):
                    G = (B[i].T @ B[i]) * (C[j] @ C[j].T)
                    moved[:, i, j] -= rate * torch.linalg.inv(G + ease) @ slope[:, i, j]
        parts[k] = moved
    return parts


def test_a_round_is_three_preconditioned_steps_each_from_a_fresh_gradient(generator):
    W = torch.randn(6, 8, generator=generator, dtype=torch.float64)
    shapes = (2, 3, 4), (2, 4, 4), (4, 2, 2)
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    found = _round(in_blocks(W, 2), Factors(*drawn), 0.3, Config(rank=4, delta=0.2))
    for one, other in zip(found, slow_round(in_blocks(W, 2), *drawn, 0.3, 0.2)):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


def test_without_preconditioning_a_round_goes_down_the_gradient(generator):
    W = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    drawn = Factors(*(torch.randn(shape, generator=generator, dtype=torch.float64)
                      for shape in ((2, 2, 2), (2, 2, 2), (2, 2, 2))))
    config = Config(rank=2, preconditioned=False)
    moved = _round(in_blocks(W, 2), drawn, 1e-6, config)
    leaf = drawn.left.clone().requires_grad_()
    loss = (in_blocks(W, 2) - drawn._replace(left=leaf).grid()).square().sum()
    slope, = torch.autograd.grad(loss, leaf)
    torch.testing.assert_close(moved.left, drawn.left - 1e-6 * slope, rtol=0, atol=1e-12)


def error(W, **options):
    found = factorise(W, Config(blocks=4, **options), fresh(1))
    return float((found.grid() - in_blocks(W, 4)).norm() / W.norm())


def test_low_rank_and_block_diagonal_matrices_are_recovered_and_plain_descent_is_far(generator):
    """The paper's promise: shared bases hold both kinds, and the preconditioned descent finds them."""
    low = torch.randn(24, 3, generator=generator) @ torch.randn(3, 24, generator=generator)
    parts = [torch.randn(6, 2, generator=generator) @ torch.randn(2, 6, generator=generator) for _ in range(4)]
    assert error(low, rank=3, steps=150) < 1e-5
    assert error(torch.block_diag(*parts), rank=8, steps=150) < 1e-3
    assert error(low, rank=3, steps=150, preconditioned=False, lr=1e-3) > 0.5


def test_one_block_is_low_rank_and_the_size_of_a_matrix_does_not_count(generator):
    W = torch.randn(8, 12, generator=generator, dtype=torch.float64)
    config = Config(rank=4, blocks=1, steps=300, last_lr=0.01, delta=0.1)
    found = Blast.from_dense(W, config, fresh(2)).dense().double()
    best = torch.linalg.svdvals(W)[4:].norm()
    assert float((found - W).norm()) == pytest.approx(float(best), rel=0.01)
    larger = Blast.from_dense(1000 * W, config, fresh(2)).dense().double()
    torch.testing.assert_close(larger, 1000 * found, rtol=1e-3, atol=1)


def test_refuses(generator):
    with pytest.raises(ValueError, match="blocks is 4 for a matrix of 6 x 8; expected a divisor of both"):
        Blast(6, 8, Config(rank=2), generator)
    with pytest.raises(ValueError, match="nothing but zeros"):
        Blast.from_dense(torch.zeros(8, 8), Config(rank=2), generator)
    with pytest.raises(ValueError, match="last_lr is -1"):
        Config(rank=2, last_lr=-1)
