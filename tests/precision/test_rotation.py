"""Rotation: orthogonal in every width, the function unchanged, outliers spread, gains folded."""

import pytest
import torch

from mixwell.precision._parts import nearest, whole_example
from mixwell.precision.rotation import Config, hadamard, promises, random_rotation, rotated, rotation
from tests.contracts._conversions import calibration, logits, whole


@pytest.mark.parametrize("dim", [8, 12, 7])
def test_orthogonal_in_every_width(generator, dim):
    Q = random_rotation(dim, generator)
    torch.testing.assert_close(Q @ Q.T, torch.eye(dim, dtype=torch.float64))
    assert not torch.equal(Q, random_rotation(dim, generator))


def test_hadamard_is_signs_over_a_root():
    assert (hadamard(4) * 2).tolist() == [[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]


@pytest.mark.parametrize("tied", [False, True])
def test_the_model_computes_what_it_did(generator, tied):
    checkpoint = whole(whole_example(generator))
    if tied:
        tensors = {name: value for name, value in checkpoint.tensors.items() if name != "head.weight"}
        checkpoint = checkpoint.derive(arch={**checkpoint.arch, "tie_embeddings": True}, tensors=tensors)
    turned = rotated(checkpoint, random_rotation(16, generator))
    tokens = torch.arange(12)[None]
    torch.testing.assert_close(logits(turned, tokens), logits(checkpoint, tokens), rtol=1e-4, atol=1e-4)
    for name in ("norm", "layers.0.sequence_norm", "layers.0.channel_norm"):
        assert bool((turned.tensors[f"{name}.weight"] == 1).all())


def test_outliers_of_inputs_are_spread(generator):
    x, weight = torch.randn(64, 32, generator=generator), torch.randn(16, 32, generator=generator)
    x[:, [3, 20]] *= 30
    Q = random_rotation(32, generator).float()
    errors = []
    for inputs, own in ((x, weight), (x @ Q, weight @ Q)):
        y = nearest(own, 8, 0, True, 4).weight().linear(inputs)
        errors.append(float((y - x @ weight.T).square().mean()))
    assert errors[1] < 0.5 * errors[0]


def test_options_and_refusals(generator):
    checkpoint = whole(whole_example(generator))
    config = Config(bits=3, group_size=8, symmetric=False, input_bits=4)
    after = rotation(checkpoint, config, generator).tensors
    name = "layers.0.channel_mixer.down_proj"
    assert after[f"{name}.input_bits"].item() == 4 and after[f"{name}.zero"].shape == (3, 16, 1)
    assert len(list(calibration().batches)) == 2
    with pytest.raises(ValueError, match="input_bits is 1"):
        Config(input_bits=1)
    assert promises(Config(max_kl_nats=0.5)) == {"kl_nats": 0.5}
