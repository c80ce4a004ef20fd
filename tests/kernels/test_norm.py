"""The RMS norm against torch, and the linear map with its bias."""

import torch

from mixwell.kernels.linear import Linear
from mixwell.kernels.norm import RMSNorm, rms_norm, wide


def test_rms_norm_agrees_with_torch():
    x = torch.randn(3, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(6)).requires_grad_()
    w = torch.rand(8, dtype=torch.float64, generator=torch.Generator().manual_seed(7)).requires_grad_()
    torch.testing.assert_close(rms_norm(x, w, 1e-3), torch.nn.functional.rms_norm(x, (8,), w, 1e-3))
    assert torch.autograd.gradcheck(lambda a, b: rms_norm(a, b, 1e-3), (x, w))


def test_the_norm_computes_in_float32_and_answers_in_the_type_it_got(generator):
    norm = RMSNorm(8, 1e-5)
    x = torch.randn(4, 8, generator=generator)
    assert norm(x.bfloat16()).dtype == torch.bfloat16 and norm.weight.dtype == torch.float32
    torch.testing.assert_close(norm(x.bfloat16()).float(), norm(x), rtol=2e-2, atol=2e-2)


def test_linear_agrees_with_matrix_algebra_forward_and_gradient(generator):
    layer = Linear(5, 3, True, generator).double()
    torch.nn.init.normal_(layer.bias, generator=generator)
    x = torch.randn(2, 4, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    expected = x @ layer.weight.T + layer.bias
    torch.testing.assert_close(layer(x), expected)
    leaves = [x, *layer.parameters()]
    for a, b in zip(torch.autograd.grad(layer(x).square().sum(), leaves),
                    torch.autograd.grad(expected.square().sum(), leaves)):
        torch.testing.assert_close(a, b)


def test_wide_leaves_wide_types_alone():
    assert wide(torch.zeros(1, dtype=torch.float64)).dtype == torch.float64
    assert wide(torch.zeros(1, dtype=torch.float16)).dtype == torch.float32
