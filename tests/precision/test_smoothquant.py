"""SmoothQuant: its scales by a loop, the function unchanged, outliers smoothed, the ends of alpha."""

import pytest
import torch

from mixwell.precision._parts import nearest, whole_example
from mixwell.precision.smoothquant import Config, promises, smoothed, smoothing, smoothquant
from tests.contracts._conversions import calibration, logits, whole


def test_scales_against_a_loop(generator):
    x, w = torch.rand(16, generator=generator).double(), torch.rand(16, generator=generator).double()
    wanted = [max(a, 1e-5) ** 0.3 / max(b, 1e-5) ** 0.7 for a, b in zip(x.tolist(), w.tolist())]
    assert smoothing(x, w, 0.3).tolist() == pytest.approx(wanted)
    assert torch.equal(smoothing(x, w, 1.0), x)
    assert smoothing(x, w, 0.0).tolist() == pytest.approx((1 / w).tolist())


def test_the_model_computes_what_it_did(generator):
    checkpoint = whole(whole_example(generator))
    smooth = smoothed(checkpoint, 0.5, calibration())
    tokens = torch.arange(12)[None]
    torch.testing.assert_close(logits(smooth, tokens), logits(checkpoint, tokens), rtol=1e-4, atol=1e-4)
    changed = [name for name in checkpoint.tensors if not torch.equal(checkpoint.tensors[name], smooth.tensors[name])]
    assert sorted(changed) == [
        "layers.0.channel_mixer.gate_up_proj", "layers.0.channel_mixer.router.weight", "layers.0.channel_norm.weight",
        "layers.0.sequence_mixer.qkv.weight", "layers.0.sequence_norm.weight"]


def test_after_smoothing_inputs_and_weights_are_equally_large(generator):
    """At alpha = 1/2 the largest input of a channel and the largest weight at it meet."""
    checkpoint, text = whole(whole_example(generator)), calibration()
    smooth = smoothed(checkpoint, 0.5, text)
    name = "layers.0.sequence_mixer.qkv.weight"
    largest = torch.zeros(16)
    for batch in text.inputs(smooth, [name]):
        largest = torch.maximum(largest, batch[name].abs().amax(0))
    torch.testing.assert_close(largest, smooth.tensors[name].abs().amax(0), rtol=1e-4, atol=1e-4)


def test_less_error_with_outlier_channels(generator):
    x, weight = torch.randn(64, 32, generator=generator), torch.randn(16, 32, generator=generator)
    x[:, [3, 20]] *= 60
    s = smoothing(x.abs().amax(0).double(), weight.abs().amax(0).double(), 0.5).float()
    errors = []
    for inputs, own in ((x, weight), (x / s, weight * s)):
        y = nearest(own, 8, 0, True, 8).weight().linear(inputs)
        errors.append(float((y - x @ weight.T).square().mean()))
    assert errors[1] < 0.3 * errors[0]


def test_options_and_refusals(generator):
    checkpoint = whole(whole_example(generator))
    after = smoothquant(checkpoint, Config(bits=4, input_bits=6, group_size=8), generator, calibration()).tensors
    assert after["layers.0.channel_mixer.down_proj.input_bits"].item() == 6
    assert bool((after["layers.0.channel_mixer.down_proj.bits"] == 4).all())
    for name in ("bits", "input_bits"):
        with pytest.raises(ValueError, match=f"^{name} is 9; expected 2 to 8"):
            Config(**{name: 9})
    with pytest.raises(ValueError, match="alpha is 2; expected 0 to 1"):
        Config(alpha=2)
    assert promises(Config(max_kl_nats=0.5)) == {"kl_nats": 0.5}
