"""AWQ: scales and the search against loops over tokens; outliers gain, equal channels do not; the function stays."""

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.kernels.codes import plain_weight
from mixwell.precision._parts import nearest, whole_example
from mixwell.precision._statistics import means_and_moments, second_moments
from mixwell.precision.awq import Config, awq, loss, promises, scales, search
from tests.contracts._conversions import calibration, whole

QKV, NORM = "layers.0.sequence_mixer.qkv.weight", "layers.0.sequence_norm.weight"


def outliers(generator, size=10.0):
    x = torch.randn(64, 16, generator=generator, dtype=torch.float64)
    x[:, [2, 9]] *= size
    return x


def test_loss_against_a_loop_over_tokens(generator):
    weight, x = torch.randn(4, 16, generator=generator), outliers(generator)
    s = scales(x.abs().mean(0), 0.5)
    wanted = s.clone()
    mean = [sum(abs(v) for v in column) / 64 for column in x.T.tolist()]
    raw = [max(m**0.5, 1e-4) for m in mean]
    middle = (max(raw) * min(raw)) ** 0.5
    assert wanted.tolist() == pytest.approx([r / middle for r in raw])
    config = Config(bits=3, group_size=8)
    rounded = nearest(weight.double() * s, 3, 8, False).weight().dequantised(torch.float64) / s
    total = sum(float((rounded @ row - weight.double() @ row).square().sum()) for row in x)
    assert loss([weight], s, x.T @ x, config) == pytest.approx(total)


def test_large_inputs_get_larger_scales_and_less_error(generator):
    weights, x = [torch.randn(3, 8, 16, generator=generator)], outliers(generator)
    config, H = Config(bits=3, group_size=0), x.T @ x
    best = search(weights, x.abs().mean(0), H, config)
    assert float(best[[2, 9]].min()) > 1.2 * float(best[:2].max())
    ones = torch.ones(16, dtype=torch.float64)
    assert loss(weights, best, H, config) < 0.7 * loss(weights, ones, H, config)
    equal = search(weights, ones, H, config)
    assert torch.equal(equal, ones)


def test_norm_and_weights_change_together(generator):
    checkpoint = whole(whole_example(generator))
    after = awq(checkpoint, Config(bits=8, group_size=8, tokens=72), generator, calibration()).tensors
    s = checkpoint.tensors[NORM] / after[NORM]
    torch.testing.assert_close(plain_weight(after, QKV), checkpoint.tensors[QKV] * s, rtol=0.02, atol=0.02)
    router = "layers.0.channel_mixer.router.weight"
    scale = checkpoint.tensors["layers.0.channel_norm.weight"] / after["layers.0.channel_norm.weight"]
    torch.testing.assert_close(after[router], checkpoint.tensors[router] * scale)


def test_means_are_those_of_all_tokens(generator):
    """Scales below 1e-4 are cut, so that a sum would not do."""
    checkpoint, text = whole(whole_example(generator)), calibration()
    means, moments = means_and_moments(checkpoint, [QKV], text)
    x = torch.cat([batch[QKV] for batch in text.inputs(checkpoint, [QKV])]).double()
    torch.testing.assert_close(means[QKV], x.abs().mean(0))
    torch.testing.assert_close(moments[QKV], second_moments(checkpoint, [QKV], text)[QKV], rtol=0, atol=0)


def test_refusals(generator):
    checkpoint = whole(whole_example(generator))
    layered = checkpoint.derive(arch={**checkpoint.arch, "norm": "layer"})
    with pytest.raises(MixwellError, match="this model has layer norms before them"):
        awq(layered, Config(), generator, calibration())
    with pytest.raises(MixwellError, match="group_size 12 does not divide"):
        awq(checkpoint, Config(group_size=12, symmetric=True), generator, calibration())
    assert promises(Config(max_kl_nats=0.5)) == {"kl_nats": 0.5}
