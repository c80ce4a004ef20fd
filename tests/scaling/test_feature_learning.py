"""Regimes of the known parametrisations, the same network in other exponents, slopes of trained networks, refusals."""

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.scaling.feature_learning import (
    MAXIMAL_UPDATE,
    STANDARD,
    TANGENT_KERNEL,
    Config,
    feature_learning,
    layers,
    slope,
)


@pytest.mark.parametrize(("config", "r", "kind"), [
    (MAXIMAL_UPDATE, 0.0, "features"),
    (TANGENT_KERNEL, 0.5, "kernel"),
    (STANDARD, 0.5, "kernel"),
    (Config(a=STANDARD.a, b=STANDARD.b, c=0.0), -1.0, "unstable"),
    (Config(a=(0.0, 0.0, 0.0), b=(0.0, 0.5, 0.5), c=2.0), 1.5, "trivial"),
    (Config(b=(0.5, 0.0, 0.5)), 0.0, "unstable"),  # hidden activations blow up at the start
    (Config(a=(-0.5, 0.5), b=(0.5, 0.5)), 0.0, "features"),  # mean field, one hidden layer
])
def test_known_parametrisations_have_their_regimes_and_a_shift_keeps_them(config, r, kind):
    for shift in (0.0, 0.3):
        regime = feature_learning(config.shifted(shift))
        assert regime.kind == kind and regime.r == pytest.approx(r)


def trained(config, width, steps=3, rate=0.5):
    """Output and move of the last hidden layer, per step, of a relu network by gradient descent."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(32, size, generator=generator, dtype=torch.float64) for size in (8, 1))
    sizes = [8, *[width] * (len(config.a) - 1), 1]
    own = layers(config, width, rate)
    raw = [layer.deviation * torch.randn(into, out, generator=generator, dtype=torch.float64)
           for layer, into, out in zip(own, sizes, sizes[1:])]
    features, outputs = [], []
    for _ in range(steps + 1):
        raw = [weight.requires_grad_() for weight in raw]
        hidden = x / 8**0.5
        for layer, weight in zip(own[:-1], raw):
            hidden = torch.relu(layer.multiplier * hidden @ weight)
        output = own[-1].multiplier * hidden @ raw[-1]
        gradients = torch.autograd.grad((output - y).square().mean(), raw)
        features.append(hidden.detach())
        outputs.append(output.detach())
        raw = [(weight - layer.rate * g).detach() for layer, weight, g in zip(own, raw, gradients)]
    return outputs, float((features[-1] - features[0]).square().mean().sqrt())


def test_a_shift_is_the_same_network_at_every_step():
    plain, other = (trained(config, 24)[0] for config in (TANGENT_KERNEL, TANGENT_KERNEL.shifted(-0.4)))
    for ours, theirs in zip(plain, other):
        assert torch.allclose(ours, theirs, atol=1e-12)
    assert not torch.allclose(plain[0], plain[-1], atol=1e-3)


def test_features_move_with_the_exponent_that_is_promised():
    widths = [64, 256, 1024]
    for config in (MAXIMAL_UPDATE, TANGENT_KERNEL):
        found = slope(widths, [trained(config, width)[1] for width in widths])
        assert found == pytest.approx(-feature_learning(config).r, abs=0.15)


def test_refusals():
    with pytest.raises(ValueError, match="a has 3 exponents and b 1"):
        Config(b=(0.5,))
    with pytest.raises(MixwellError, match="width is 0"):
        layers(MAXIMAL_UPDATE, 0, 1.0)
    for widths, sizes in (([8, 8], [1, 1]), ([8, 16], [1, 0])):
        with pytest.raises(MixwellError, match="expected sizes above 0"):
            slope(widths, sizes)
