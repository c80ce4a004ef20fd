"""FLoRA against a loop, its gradient, its full core, and what moves first."""

import pytest
import torch

from mixwell.adapters.flora import Config, FLoRA
from mixwell.core.errors import MixwellError
from mixwell.kernels.linear import Linear
from tests.contracts._adapters import moved
from tests.contracts._tools import fresh


def beside(config, size=0.3):
    network = Linear(6, 5, False, fresh(1)).double()
    there = FLoRA.attach(network, "all-linear", config, fresh(3))
    network.double()
    return network, moved(there, size=size).adapters["weight"], there


def test_a_layer_and_its_gradient_agree_with_a_loop():
    network, adapter, _ = beside(Config(rank_in=3, rank_out=2, scale=1.5))
    A, G, B = parts = adapter.A, adapter.core, adapter.B
    assert G.shape == (2, 3)
    x = torch.randn(4, 6, generator=fresh(4), dtype=torch.float64)
    expected = torch.stack([torch.stack([
        sum((network.weight[o, i] + 1.5 * sum(B[o, q] * G[q, r] * A[r, i] for q in range(2) for r in range(3)))
            * x[n, i] for i in range(6)) for o in range(5)]) for n in range(4)])
    y = network(x)
    torch.testing.assert_close(y, expected)
    for one, other in zip(torch.autograd.grad(y.square().sum(), parts),
                          torch.autograd.grad(expected.square().sum(), parts)):
        torch.testing.assert_close(one, other)


def test_a_full_core_is_any_change_with_the_factors_as_they_were_drawn():
    _, adapter, there = beside(Config(rank_in=5, rank_out=5), size=0.0)
    right = torch.linalg.qr(adapter.A.T).Q
    wanted = torch.randn(5, 5, generator=fresh(5), dtype=torch.float64) @ right.T.detach()
    with torch.no_grad():
        adapter.core.copy_(torch.linalg.pinv(adapter.B) @ wanted @ torch.linalg.pinv(adapter.A) / 4.0)
    torch.testing.assert_close(there.delta_weight("weight"), wanted.detach())


def test_the_core_moves_first_and_alone():
    network, adapter, _ = beside(Config(rank_in=2, rank_out=2), size=0.0)
    network(torch.ones(1, 6, dtype=torch.float64)).sum().backward()
    assert adapter.core.grad.all() and not adapter.A.grad.any() and not adapter.B.grad.any()


@pytest.mark.parametrize("options", [{"rank_in": 0}, {"rank_out": 0}, {"scale": 0.0}])
def test_refuses_what_cannot_be(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} is 0"):
        Config(**options)


def test_refuses_a_rank_above_the_width():
    with pytest.raises(MixwellError, match="rank is 6 at weight"):
        beside(Config(rank_out=6, rank_in=2))
