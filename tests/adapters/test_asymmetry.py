"""Asymmetric LoRA against a loop, what it keeps, what it trains, and the best change within its directions."""

import pytest
import torch

from mixwell.adapters.asymmetry import Asymmetry, Config
from mixwell.core.errors import MixwellError
from mixwell.kernels.linear import Linear
from tests.contracts._adapters import model, moved
from tests.contracts._tools import fresh


def beside(config, size=0.3):
    network = Linear(6, 5, False, fresh(1)).double()
    there = Asymmetry.attach(network, "all-linear", config, fresh(3))
    network.double()
    return network, moved(there, size=size).adapters["weight"], there


@pytest.mark.parametrize("train", ["B", "A"])
@pytest.mark.parametrize("start", ["orthonormal", "gaussian"])
def test_a_layer_and_its_gradient_agree_with_a_loop(train, start):
    network, adapter, there = beside(Config(rank=2, alpha=3.0, train=train, start=start))
    A, B, own = adapter.A, adapter.B, getattr(adapter, train)
    x = torch.randn(4, 6, generator=fresh(4), dtype=torch.float64)
    expected = torch.stack([torch.stack([
        sum((network.weight[o, i] + 1.5 * sum(B[o, r] * A[r, i] for r in range(2))) * x[n, i] for i in range(6))
        for o in range(5)]) for n in range(4)])
    y = network(x)
    torch.testing.assert_close(y, expected)
    found = torch.autograd.grad(y.square().sum(), own)
    torch.testing.assert_close(found, torch.autograd.grad(expected.square().sum(), own))
    assert there.num_parameters == own.numel() and not (A.requires_grad and B.requires_grad)


def test_kept_directions_are_orthonormal_in_every_expert():
    there = Asymmetry.attach(model(sparse=True), None, Config(rank=3), fresh(3))
    A = there.adapters["layers.0.channel_mixer.down_proj"].A
    torch.testing.assert_close(A @ A.mT, torch.eye(3).expand(4, 3, 3))
    assert not torch.allclose(A[0], A[1], atol=1e-2)
    gaussian = Asymmetry.attach(model(), "qkv", Config(rank=16, start="gaussian"), fresh(3))
    rows = gaussian.adapters["layers.0.sequence_mixer.qkv.weight"].A
    assert 0.7 < rows.square().sum(-1).mean() < 1.3 and not torch.allclose(rows @ rows.T, torch.eye(16), atol=0.05)


def test_training_b_solves_for_what_the_kept_directions_see():
    """With A kept the map is linear in B: B = (wanted) A^T R / alpha is its least squares under white inputs."""
    network, adapter, there = beside(Config(rank=2, alpha=2.0), size=0.0)
    wanted = torch.randn(5, 6, generator=fresh(5), dtype=torch.float64)
    loss = (network(torch.eye(6, dtype=torch.float64)).T - network.weight.detach() - wanted).square().sum() / 2
    with torch.no_grad():
        adapter.B -= torch.autograd.grad(loss, adapter.B)[0]
    torch.testing.assert_close(there.delta_weight("weight"), wanted @ adapter.A.T @ adapter.A, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{"rank": 0}, {"alpha": 0.0}])
def test_refuses_what_cannot_be(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} is 0"):
        Config(**options)


def test_refuses_a_rank_above_the_width():
    with pytest.raises(MixwellError, match="rank is 6 at weight"):
        beside(Config(rank=6))
