"""Sums of Kronecker products against torch's own, quaternions by their table, convolutions, the nearest sum."""

import pytest
import torch
from torch.nn import functional as F

from mixwell.core.routing import Context
from mixwell.precision.structured.kronecker_sum import Config, KroneckerSum, hamilton, kronecker_sum
from tests.contracts._tools import fresh

# what i j gives and the like: TIMES[a][b] = (sign, part) of part a times part b
TIMES = [[(1, 0), (1, 1), (1, 2), (1, 3)], [(1, 1), (-1, 0), (1, 3), (-1, 2)],
         [(1, 2), (-1, 3), (-1, 0), (1, 1)], [(1, 3), (1, 2), (-1, 1), (-1, 0)]]


@pytest.mark.parametrize("terms", [1, 2, 4])
def test_agrees_with_torchs_kron_forward_and_gradient(generator, terms):
    matrix = KroneckerSum(8, 12, Config(terms=terms), generator).double()
    W = sum(torch.kron(A, part) for A, part in zip(matrix.algebra, matrix.weight))
    torch.testing.assert_close(matrix.dense(), W)
    x = torch.randn(3, 12, generator=generator, dtype=torch.float64, requires_grad=True)
    leaves = [x, matrix.algebra, matrix.weight]
    found = torch.autograd.grad(matrix(x, Context()).sin().sum(), leaves)
    for one, other in zip(found, torch.autograd.grad((x @ W.T).sin().sum(), leaves)):
        torch.testing.assert_close(one, other)
    assert sum(p.numel() for p in matrix.parameters()) == terms**3 + 8 * 12 // terms


def test_one_term_is_the_dense_matrix(generator):
    matrix = KroneckerSum(8, 12, Config(terms=1), generator)
    assert torch.equal(matrix.dense(), matrix.weight[0])


def test_the_hamilton_algebra_multiplies_quaternions(generator):
    """The paper's limit: with A fixed it is a quaternion layer, part by part as the table of products says."""
    matrix = KroneckerSum(8, 12, Config(terms=4, algebra="hamilton"), generator)
    x = torch.randn(12, generator=generator)
    parts = x.view(4, 3)
    expected = torch.zeros(4, 2)
    for a in range(4):
        for b in range(4):
            sign, part = TIMES[a][b]
            expected[part] += sign * (matrix.weight[a] @ parts[b])
    torch.testing.assert_close(matrix(x, Context()), expected.flatten())
    assert [name for name, _ in matrix.named_parameters()] == ["weight"]
    W = torch.randn(8, 12, generator=generator)
    found = KroneckerSum.from_dense(W, matrix.config, generator)
    wanted = torch.linalg.lstsq(torch.stack([kronecker_sum(hamilton(), one.view(4, 2, 3)).flatten()
                                             for one in torch.eye(24)], 1), W.flatten()[:, None]).solution
    torch.testing.assert_close(found.weight.detach().flatten(), wanted[:, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("algebra", ["learned", "hamilton"])
def test_a_convolution_is_the_product_with_its_patches(generator, algebra):
    matrix = KroneckerSum(8, 36, Config(terms=4, kernel=3, algebra=algebra), generator)
    images = torch.randn(2, 4, 6, 6, generator=generator)
    found = matrix.convolve(images, stride=2, padding=1)
    patches = F.unfold(images, 3, stride=2, padding=1).transpose(1, 2)
    torch.testing.assert_close(matrix(patches, Context()).transpose(1, 2), found.flatten(2), rtol=1e-4, atol=1e-5)
    slices = [sum(torch.kron(A, part) for A, part in zip(matrix.algebra, matrix.weight[..., i, j]))
              for i in range(3) for j in range(3)]
    torch.testing.assert_close(matrix.kernel().flatten(2), torch.stack(slices, -1))


@pytest.mark.parametrize("algebra", ["learned", "hamilton"])
def test_starts_with_the_variance_of_the_dense_matrix(algebra):
    W = KroneckerSum(256, 256, Config(algebra=algebra), fresh(3), 0.3).dense()
    found = [KroneckerSum(64, 64, Config(algebra=algebra), fresh(seed), 0.3).dense().detach().square().mean()
             for seed in range(40)]
    assert float(torch.stack(found).mean().sqrt()) == pytest.approx(0.3, rel=0.05)
    assert W.shape == (256, 256)


def test_the_nearest_sum_beats_others_and_grows_to_the_matrix(generator):
    W = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    best = KroneckerSum.from_dense(W, Config(terms=2), generator)
    least = float((best.dense().double() - W).norm())
    A, parts = torch.randn(2, 2, 2, dtype=torch.float64, generator=generator), best.weight.detach().double()
    for p in (A.requires_grad_(), parts.requires_grad_()):
        assert p.requires_grad
    descent = torch.optim.Adam([A, parts], lr=0.05)
    for _ in range(400):
        descent.zero_grad()
        loss = (kronecker_sum(A, parts) - W).square().sum()
        loss.backward()
        descent.step()
    assert least <= float(loss.detach().sqrt()) + 1e-4 and least == pytest.approx(float(loss.detach().sqrt()), rel=0.02)
    whole = KroneckerSum.from_dense(W, Config(terms=4), generator)
    torch.testing.assert_close(whole.dense().double(), W, atol=1e-5, rtol=0)


def test_refuses(generator):
    with pytest.raises(ValueError, match="terms is 2 with the quaternions' algebra; expected 4"):
        Config(terms=2, algebra="hamilton")
    with pytest.raises(ValueError, match="terms is 4 for 6 outputs of 8 inputs"):
        KroneckerSum(6, 8, Config(terms=4), generator)
    with pytest.raises(ValueError, match="kernel is 3; a kernel is factorised by no rule here"):
        KroneckerSum.from_dense(torch.ones(4, 36), Config(terms=4, kernel=3), generator)
