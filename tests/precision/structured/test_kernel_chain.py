"""Chains of filters against whole convolutions and outer products; counts; one to three axes."""

import math

import pytest
import torch
from torch.nn import functional as F

from mixwell.core.routing import Context
from mixwell.precision.structured.kernel_chain import CONVOLUTIONS, Config, KernelChain


@pytest.mark.parametrize("kernel", [(3,), (3, 2), (2, 3, 3)])
@pytest.mark.parametrize("stride, padding", [(1, 1), (2, 0)])
def test_the_chain_is_the_convolution_with_the_outer_product(generator, kernel, stride, padding):
    """What the paper rests on: filters one after another are the kernel of rank one, forward and gradient."""
    chain = KernelChain(5, 4 * math.prod(kernel), Config(kernel=kernel), generator).double()
    whole = torch.zeros(5, 4, *kernel, dtype=torch.float64)
    for place in torch.cartesian_prod(*(torch.arange(k) for k in (5, 4, *kernel))).tolist():
        o, c, *along = place
        factors = [chain.filters[axis][o, i] for axis, i in enumerate(along)]
        whole[tuple(place)] = chain.weight[o, c].detach() * math.prod(f.item() for f in factors)
    torch.testing.assert_close(chain.kernel(), whole)
    images = torch.randn(2, 4, *[6] * len(kernel), generator=generator, dtype=torch.float64, requires_grad=True)
    found = chain.convolve(images, stride=stride, padding=padding)
    expected = CONVOLUTIONS[len(kernel)](images, chain.kernel(), stride=stride, padding=padding)
    torch.testing.assert_close(found, expected)
    leaves = [images, *chain.parameters()]
    for one, other in zip(torch.autograd.grad(found.sin().sum(), leaves),
                          torch.autograd.grad(expected.sin().sum(), leaves)):
        torch.testing.assert_close(one, other)


def test_patches_and_counts(generator):
    chain = KernelChain(32, 32 * 9, Config(kernel=(3, 3)), generator)
    images = torch.randn(2, 32, 5, 5, generator=generator)
    patches = F.unfold(images, 3).transpose(1, 2)
    torch.testing.assert_close(chain(patches, Context()).transpose(1, 2), chain.convolve(images).flatten(2),
                               rtol=1e-4, atol=1e-5)
    count = sum(p.numel() for p in chain.parameters())
    assert count == 32 * (32 + 6) and count / (32 * 32 * 9) < 0.14
    assert chain.flops_per_place() == 2 * count and chain.flops_per_token() == 2 * 32 * 288


def test_starts_with_the_variance_of_the_whole_kernel(generator):
    W = KernelChain(400, 100 * 25, Config(kernel=(5, 5)), generator, (2 / 2500) ** 0.5).dense().detach()
    assert float(W.square().mean() * 2500) == pytest.approx(2, rel=0.15)


def test_refuses(generator):
    with pytest.raises(ValueError, match=r"a kernel of \(3, 3\) takes inputs that are a multiple of 9; got 10"):
        KernelChain(4, 10, Config(), generator)
    for kernel in ((), (3, 3, 3, 3), (0, 3)):
        with pytest.raises(ValueError, match="expected one to three sizes of at least 1"):
            Config(kernel=kernel)
