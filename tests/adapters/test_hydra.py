"""Hydra against a loop with its bias, its gradient, and a change that one branch alone cannot make."""

import pytest
import torch

from mixwell.adapters.hydra import Config, Hydra
from mixwell.core.errors import MixwellError
from mixwell.kernels.linear import Linear
from tests.contracts._adapters import moved
from tests.contracts._tools import fresh


def beside(config):
    network = Linear(6, 5, True, fresh(1)).double()
    torch.nn.init.normal_(network.bias, generator=fresh(2))
    there = Hydra.attach(network, "all-linear", config, fresh(3))
    network.double()
    return network, moved(there, size=0.3).adapters["weight"], there


CONFIG = Config(parallel=2, sequential=3, scale=0.7)


def test_a_layer_and_its_gradient_agree_with_a_loop():
    network, adapter, there = beside(CONFIG)
    A, B, C, D = adapter.A, adapter.B, adapter.C, adapter.D
    assert A.shape == (2, 6) and D.shape == (5, 3)
    x = torch.randn(4, 6, generator=fresh(4), dtype=torch.float64)
    rows = []
    for n in range(4):
        z = [sum(network.weight[o, i] * x[n, i] for i in range(6)) + network.bias[o] for o in range(5)]
        a = [sum(A[r, i] * x[n, i] for i in range(6)) for r in range(2)]
        c = [sum(C[q, o] * z[o] for o in range(5)) for q in range(3)]
        rows.append(torch.stack([z[o] + 0.7 * sum(B[o, r] * a[r] for r in range(2))
                                 + 0.7 * sum(D[o, q] * c[q] for q in range(3)) for o in range(5)]))
    expected, y = torch.stack(rows), network(x)
    torch.testing.assert_close(y, expected)
    parts = [A, B, C, D]
    for one, other in zip(torch.autograd.grad(y.square().sum(), parts),
                          torch.autograd.grad(expected.square().sum(), parts)):
        torch.testing.assert_close(one, other)
    there.merge()
    torch.testing.assert_close(network(x), expected)


def test_without_its_sequential_branch_it_is_lora():
    _, adapter, there = beside(CONFIG)
    with torch.no_grad():
        adapter.D.zero_()
    torch.testing.assert_close(there.delta_weight("weight"), 0.7 * (adapter.B @ adapter.A).detach())


def test_the_branches_reach_what_neither_reaches_alone():
    """Rank one each: their sum has rank two, with inputs from A and from C W."""
    network, adapter, there = beside(Config(parallel=1, sequential=1))
    change = there.delta_weight("weight")
    assert torch.linalg.matrix_rank(change) == 2
    seen = torch.cat([adapter.A, adapter.C @ network.weight]).detach()
    torch.testing.assert_close(change @ torch.linalg.pinv(seen) @ seen, change)


@pytest.mark.parametrize("options", [{"parallel": 0}, {"sequential": 0}, {"scale": 0.0}])
def test_refuses_what_cannot_be(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} is 0"):
        Config(**options)


def test_refuses_a_rank_above_the_width():
    with pytest.raises(MixwellError, match="rank is 6 at weight"):
        beside(Config(sequential=6))
