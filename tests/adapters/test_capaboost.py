"""CapaBoost against a loop over its copies, its rank, its masks, and LoRA as its limit."""

import pytest
import torch

from mixwell.adapters.capaboost import CapaBoost, Config, masks
from mixwell.core.errors import MixwellError
from mixwell.kernels.linear import Linear
from tests.contracts._adapters import moved
from tests.contracts._tools import fresh


def beside(config, size=0.3):
    network = Linear(6, 5, False, fresh(1)).double()
    there = CapaBoost.attach(network, "all-linear", config, fresh(3))
    network.double()
    return network, moved(there, size=size).adapters["weight"], there


@pytest.mark.parametrize("copies, density", [(1, 0.5), (3, 0.7)])
def test_a_layer_and_its_gradient_agree_with_a_loop(copies, density):
    network, adapter, there = beside(Config(rank=2, alpha=3.0, copies=copies, density=density))
    A, B, N, M = adapter.A, adapter.B, adapter.masks_A, adapter.masks_B
    assert N.shape == (copies, 2, 6) and M.shape == (copies, 5, 2)
    x = torch.randn(4, 6, generator=fresh(4), dtype=torch.float64)
    expected = torch.stack([torch.stack([sum(
        (network.weight[o, i] + 1.5 * sum(M[d, o, r] * B[o, r] * N[d, r, i] * A[r, i]
                                          for d in range(copies) for r in range(2))) * x[n, i]
        for i in range(6)) for o in range(5)]) for n in range(4)])
    y = network(x)
    torch.testing.assert_close(y, expected)
    found = torch.autograd.grad(y.square().sum(), [A, B])
    torch.testing.assert_close(found, torch.autograd.grad(expected.square().sum(), [A, B]))
    assert there.num_parameters == 2 * (6 + 5)


def test_copies_multiply_the_rank():
    ranks = [int(torch.linalg.matrix_rank(beside(Config(rank=2, copies=copies, density=0.6))[2].delta_weight("weight")))
             for copies in (1, 2, 5)]
    assert ranks == [2, 4, 5]


def test_full_masks_are_lora_counted_once_a_copy():
    _, adapter, there = beside(Config(rank=2, alpha=2.0, copies=3, density=1.0))
    torch.testing.assert_close(there.delta_weight("weight"), 3 * (adapter.B @ adapter.A).detach())


def test_masks_have_their_exact_share_and_differ():
    drawn = masks((4, 3, 5, 8), 0.7, fresh(1))
    assert set(drawn.unique().tolist()) == {0.0, 1.0} and (drawn.sum((-1, -2)) == 28).all()
    assert len(drawn.flatten(0, 1).flatten(1).unique(dim=0)) == 12
    assert masks((5, 8), 0.001, fresh(1)).sum() == 1


@pytest.mark.parametrize("options", [{"rank": 0}, {"alpha": 0.0}, {"copies": 0}, {"density": 0.0}, {"density": 1.5}])
def test_refuses_what_cannot_be(options):
    (name, value), = options.items()
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        Config(**options)


def test_refuses_a_rank_above_the_width():
    with pytest.raises(MixwellError, match="rank is 6 at weight"):
        beside(Config(rank=6))
