"""Norms alone: against a loop, the start of the paper, and which features were switched off."""

import pytest
import torch
from torch import nn

from mixwell.adapters.norms import Config, Norms, switched_off
from mixwell.core.errors import MixwellError
from mixwell.kernels.linear import Linear
from tests.contracts._adapters import TOKENS, model, moved
from tests.contracts._tools import fresh


def convolutions():
    draws = fresh(2)
    network = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
                            nn.Linear(4 * 36, 3))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws) * 0.3)
    return network


def test_gains_and_shifts_and_their_gradients_agree_with_a_loop():
    network = convolutions().double()
    there = Norms.attach(network, None, Config(), fresh())
    assert set(there.trained) == {"1.weight", "1.bias"} and there.num_parameters == 8
    x = torch.randn(5, 1, 8, 8, generator=fresh(3), dtype=torch.float64)
    found = network[:2](x)
    slopes = torch.randn(found.shape, generator=fresh(4), dtype=torch.float64)
    gamma, beta = torch.autograd.grad((found * slopes).sum(), [network[1].weight, network[1].bias])
    h = network[0](x).detach()
    for c in range(4):
        values = h[:, c].flatten()
        mean = values.sum() / len(values)
        spread = (((values - mean) ** 2).sum() / len(values) + network[1].eps) ** 0.5
        normed = (h[:, c] - mean) / spread
        torch.testing.assert_close(found[:, c], network[1].weight[c] * normed + network[1].bias[c])
        torch.testing.assert_close(gamma[c], (slopes[:, c] * normed).sum())
        torch.testing.assert_close(beta[c], slopes[:, c].sum())


def test_training_moves_the_norms_and_their_statistics_alone():
    network = convolutions().train()
    Norms.attach(network, None, Config(), fresh())
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimiser = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 0.1)
    x = torch.randn(16, 1, 8, 8, generator=fresh(5))
    for _ in range(3):
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(x), torch.arange(16) % 3).backward()
        optimiser.step()
    moved_names = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert moved_names == {"1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"}


def test_the_papers_start_and_the_way_back():
    network = model(norm="layer_bias", dim=64, num_heads=4)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    moved(Norms.attach(network, None, Config(), fresh())).merge()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    there = Norms.attach(network, None, Config(start="uniform"), fresh(1))
    gains = torch.cat([value for name, value in there.trained.items() if name.endswith("weight")]).detach()
    shifts = torch.cat([value for name, value in there.trained.items() if name.endswith("bias")]).detach()
    assert gains.min() >= 0 and gains.max() < 1 and abs(float(gains.mean()) - 0.5) < 0.08 and not shifts.any()
    assert abs(float(gains.std()) - 12**-0.5) < 0.04
    there.detach()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("shifts", [False, True])
@pytest.mark.parametrize("output", [False, True])
def test_shifts_and_the_output_layer_by_the_options(shifts, output):
    there = Norms.attach(model(norm="layer_bias"), None, Config(shifts=shifts, output=output), fresh())
    assert any(name.endswith("norm.bias") for name in there.trained) == shifts
    assert ("head.weight" in there.trained) == output
    assert sum(name.endswith("norm.weight") for name in there.trained) == 5
    network = there.model.train()
    network.loss(TOKENS[:, :-1], TOKENS[:, 1:]).nats.backward()
    assert {name for name, p in network.named_parameters() if p.grad is not None} == set(there.trained)


def test_features_without_a_gain_are_counted():
    there = Norms.attach(model(), None, Config(output=True), fresh())
    with torch.no_grad():
        there.trained["norm.weight"][:4] = torch.tensor([0.0, -0.009, 0.009, 0.011])
    assert switched_off(there) == pytest.approx(3 / 80)
    assert switched_off(there, below=0.1) == pytest.approx(4 / 80)


def test_refuses_a_model_without_norms():
    with pytest.raises(MixwellError, match="no norm among the targets"):
        Norms.attach(Linear(4, 4, False, fresh()), None, Config())
    with pytest.raises(MixwellError, match="no norm among the targets"):
        Norms.attach(model(), "embed", Config())
