"""Changes around experts' products: in bfloat16 few numbers of rows are met, whatever comes; results stay the same."""

import pytest
import torch

from mixwell.kernels.adapted import AdaptedWeight

COUNTS = [5, 0, 1, 8, 3]


class Thin:
    """y + B A x, of one expert or a stack; remembers the numbers of rows that it met."""

    maps_input, requires_grad = False, True

    def __init__(self, A, B, met):
        self.A, self.B, self.met = A, B, met

    def after(self, x, y, weight):
        self.met.append(len(x))
        return y + x @ self.A.to(x.dtype).T @ self.B.to(x.dtype).T

    def unbind(self):
        return [Thin(A, B, self.met) for A, B in zip(self.A, self.B)]


@pytest.mark.parametrize("dtype, wanted", [(torch.float32, [5, 0, 1, 8, 3]), (torch.bfloat16, [8, 0, 1, 8, 4])])
def test_rows_of_experts_are_powers_of_two_in_bfloat16(generator, dtype, wanted):
    A, B = (torch.randn(shape, generator=generator).requires_grad_() for shape in ((5, 2, 6), (5, 4, 2)))
    stack = torch.randn(5, 4, 6, generator=generator).to(dtype)
    x = torch.randn(sum(COUNTS), 6, generator=generator).to(dtype)
    met = []
    parts = x.split(COUNTS)
    y = torch.cat([part @ own.T for part, own in zip(parts, stack)])
    found = AdaptedWeight(stack, stack, Thin(A, B, met)).around_experts(x, COUNTS, lambda rows: y)
    found.double().square().sum().backward()
    assert met == wanted
    own = [leaf.detach().double().requires_grad_() for leaf in (A, B)]
    each = [part.double() @ (stack[e].double() + own[1][e] @ own[0][e]).T for e, part in enumerate(parts)]
    torch.cat(each).square().sum().backward()
    tolerance = 1e-5 if dtype == torch.float32 else 4e-2
    torch.testing.assert_close(found.double(), torch.cat(each).detach(), rtol=tolerance, atol=4 * tolerance)
    for leaf, double in zip((A, B), own):
        size = float(double.grad.abs().max())
        torch.testing.assert_close(leaf.grad.double(), double.grad, rtol=tolerance, atol=tolerance * size)
