"""ZeroQ: statistics against loops, inputs that come to have those of the norms, the frontier against trying all."""

import itertools

import pytest
import torch
from torch import nn

from mixwell.core.errors import MixwellError
from mixwell.precision._allocation import allocate, frontier, within
from mixwell.precision._divergence import own_text
from mixwell.precision.zeroq import Config, distilled, example, mismatch, promises, sensitivities, zeroq
from tests.contracts._conversions import calibration, whole
from tests.precision.test_ohq import nats_apart, outspoken


def fresh(seed=0):
    return torch.Generator().manual_seed(seed)


def test_mismatch_is_that_of_a_loop(generator):
    x = torch.randn(3, 2, 4, 5, generator=generator, dtype=torch.float64)
    mean, std = torch.tensor([0.5, -1.0]).double(), torch.tensor([2.0, 0.3]).double()
    total = 0.0
    for image in x:
        for channel in range(2):
            values = image[channel].flatten().tolist()
            middle = sum(values) / 20
            spread = (sum((value - middle) ** 2 for value in values) / 20 + 1e-6) ** 0.5
            total += (middle - float(mean[channel])) ** 2 + (spread - float(std[channel])) ** 2
    assert float(mismatch(x, mean, std)) == pytest.approx(total / 3, rel=1e-9)
    swapped = x.transpose(0, 1).reshape(1, 2, 3, 20).flatten(2)
    assert float(mismatch(x, mean, std, False)) == pytest.approx(float(mismatch(swapped, mean, std)), rel=1e-9)
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: mismatch(x, mean, std), [x])
    with pytest.raises(ValueError, match=r"x is \[3, 2\]: an image without positions"):
        mismatch(torch.ones(3, 2), mean, std)


@pytest.fixture
def network():
    """A convolution and its norm, which has seen images of another mean and width than noise has."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2))
    draws, smooth = fresh(1), nn.AvgPool2d(3, 1, 1)
    net.train()
    for _ in range(30):
        net(3 * smooth(torch.randn(16, 1, 8, 8, generator=draws)) + 0.5)
    return net


def apart(net, x):
    """How far the statistics of a batch are from those of the norms."""
    found, hooks = [], []
    for norm in (net[1], net[4]):
        hooks.append(norm.register_forward_pre_hook(lambda module, given: found.append((module, given[0]))))
    with torch.no_grad():
        net.eval()(x)
    for hook in hooks:
        hook.remove()
    return sum(float(mismatch(own, norm.running_mean, norm.running_var.sqrt(), False)) for norm, own in found)


@pytest.mark.parametrize("per_image", [True, False])
def test_distilled_inputs_have_the_statistics_of_the_norms(network, per_image):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    x = distilled(network, (1, 8, 8), count=8, steps=40, lr=0.2, per_image=per_image, generator=fresh())
    noise = torch.randn(8, 1, 8, 8, generator=fresh())
    assert x.shape == noise.shape and not x.requires_grad and network.training
    assert apart(network, x) < 0.3 * apart(network, noise)
    network.train()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    again = distilled(network, (1, 8, 8), count=8, steps=40, lr=0.2, per_image=per_image, generator=fresh())
    assert torch.equal(x, again)


def test_a_network_without_norms_is_refused():
    with pytest.raises(ValueError, match="Linear has no batch norm that keeps statistics"):
        distilled(nn.Linear(4, 4), (4,), generator=fresh())


def tried(harm, size):
    """Every mix that none beats, by trying all."""
    units, widths = harm.shape
    found = []
    for choice in itertools.product(range(widths), repeat=units):
        found.append((sum(float(size[u, b]) for u, b in enumerate(choice)),
                      sum(float(harm[u, b]) for u, b in enumerate(choice))))
    return sorted({(s, h) for s, h in found if not any(a <= s and b <= h and (a, b) != (s, h) for a, b in found)})


def test_the_frontier_is_that_of_trying_all(generator):
    harm = torch.rand(5, 3, generator=generator, dtype=torch.float64)
    size = torch.tensor([[2.0, 4, 8]]) * torch.tensor([[8.0], [16], [8], [24], [16]])
    mixes = frontier(harm, size)
    assert [(mix.size, pytest.approx(mix.harm)) for mix in mixes] == tried(harm, size)
    for budget in (144.0, 200.0, 333.0, 576.0):
        assert list(within(mixes, budget).choice) == allocate(harm, size, budget)
    with pytest.raises(ValueError, match="the budget is 100; the smallest widths take 144"):
        within(mixes, 100)


def test_a_coarse_frontier_keeps_its_word(generator):
    harm = torch.rand(5, 3, generator=generator, dtype=torch.float64).sort(1, descending=True).values
    size = torch.tensor([[2.0, 4, 8]]) * torch.tensor([[7.0], [11], [13], [17], [23]])
    fine, coarse = frontier(harm, size), frontier(harm, size, finest=12)
    assert 2 < len(coarse) < len(fine)
    for mix in coarse:
        assert mix.size == pytest.approx(sum(float(size[u, b]) for u, b in enumerate(mix.choice)))
        assert mix.harm >= within(fine, mix.size).harm - 1e-12
    assert [mix.size for mix in coarse] == sorted(mix.size for mix in coarse)


def test_bits_come_off_the_frontier_of_kl(generator):
    checkpoint = outspoken(generator)
    config = Config(group_size=8, tokens=24, widths=(2, 8), bits_per_weight=5, finest=500)
    found = sensitivities(checkpoint, config, fresh(), calibration())
    name = "layers.0.sequence_mixer.out.weight"
    unit = list(found.places).index((name, None))
    weight = checkpoint.tensors[name]
    moved = weight.reshape(16, 1, 8)
    step = (moved.abs().amax(-1, keepdim=True) / 1).to(torch.bfloat16).double()
    two = ((moved / step).round().clamp(-1, 1) * step).reshape(16, 8)
    text = own_text(checkpoint, 24, calibration(), fresh())
    assert float(found.harm_UB[unit, 0]) == pytest.approx(nats_apart(checkpoint, name, two, text), rel=2e-3)
    told = zeroq(checkpoint, config, fresh(), calibration()).lineage[-1]
    curve = told["frontier"]
    assert 2 <= len(curve) <= 32 and curve[0]["harm"] > curve[-1]["harm"] >= 0
    assert {width for own in told["bits"].values() for width in own} == {2, 8}


def test_refusals(generator):
    with pytest.raises(ValueError, match="finest is 1; expected at least 2"):
        Config(finest=1)
    checkpoint = whole(example(generator)["checkpoint"])
    with pytest.raises(MixwellError, match="max_bytes is 10; scales and what stays whole"):
        zeroq(checkpoint, Config(group_size=8, tokens=12, widths=(2,), max_bytes=10), fresh(), calibration())
    assert promises(Config(max_kl_nats=0.5)) == {"kl_nats": 0.5}
