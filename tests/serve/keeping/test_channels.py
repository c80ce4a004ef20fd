"""Fewer channels: exact at full width, the best subspace, prompts untouched, blocks shrunk as they fill."""

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.core.rng import generator
from mixwell.serve.keeping.channels import Config, channels, example, leading, left_out, read
from tests.contracts._keeping import small


@pytest.mark.parametrize("basis", ["text", "scaled", "weights"])
def test_all_channels_change_nothing(model, text, basis):
    usual = model.generate(text, 10, eos_token_id=())
    with channels(model, text, Config(keys=1, values=1, window=4, basis=basis)):
        cache = model.new_cache()
        model.next_logits(text, cache)
        assert [layer.shrunk for layer in cache.layers] == [28, 28] and cache.layers[0].length == 2
        assert torch.equal(model.generate(text, 10, eos_token_id=()), usual)


def test_prompts_are_read_exactly_and_full_blocks_are_shrunk(model, text):
    logits = model.next_logits(text, model.new_cache())
    with channels(model, text, Config(keys=0.3, values=0.5, window=4)) as bases:
        assert [tuple(basis.keys.shape) for basis in bases] == [(8, 2)] * 2 and bases[0].values.shape == (8, 4)
        cache = model.new_cache()
        torch.testing.assert_close(model.next_logits(text, cache), logits)
        sizes = []
        for place in range(7):
            model.next_logits(text[:, place : place + 1], cache)
            sizes.append((cache.layers[0].shrunk, cache.layers[0].length))
    assert sizes == [(28, 3), (28, 4), (32, 1), (32, 2), (32, 3), (32, 4), (36, 1)]


def test_a_cache_reads_its_coordinates_as_a_loop_does(model, text):
    """Keys of one layer: projected before they are turned, and turned again by their places."""
    with channels(model, text, Config(keys=0.5, values=0.5, window=4)) as bases:
        cache = model.new_cache()
        model.next_logits(text, cache)
        keys, values = cache.layers[0]._read()
    seen = read(model, text)[0]
    mixer = model.layers[0].sequence_mixer
    for flat, basis, found, turn in ((seen.keys_NC, bases[0].keys, keys, True),
                                     (seen.values_NC, bases[0].values, values, False)):
        whole = torch.stack([basis @ (basis.T @ row) for row in flat]).view(2, 30, 2, 4)
        if turn:
            places = torch.arange(30.0, dtype=torch.float64)[:, None]
            angle = places / mixer.config.rope_theta ** torch.tensor([0.0, 0.5])
            first, second = whole[..., :2], whole[..., 2:]
            cos, sin = angle.cos()[None, :, None], angle.sin()[None, :, None]
            whole = torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
        torch.testing.assert_close(found, whole.transpose(1, 2)[:, :, :28], atol=1e-6, rtol=1e-5)


def test_the_basis_by_text_leaves_what_no_trained_pair_betters(model, text):
    """Gradient steps on A and B from the scaled start, as the authors train, end at no less."""
    seen = read(model, text)[1]
    basis = leading(seen.keys_NC, 3)
    best = (seen.keys_NC - seen.keys_NC @ basis @ basis.T).square().mean()
    x = seen.x_ND.detach()
    weight = torch.linalg.lstsq(x, seen.keys_NC).solution
    scale = (x.abs().mean(0) + 1e-6).sqrt()
    u, s, v = torch.linalg.svd(scale[:, None] * weight, full_matrices=False)
    a = (u[:, :3] * s[:3].sqrt() / scale[:, None]).contiguous().requires_grad_()
    b = (s[:3].sqrt()[:, None] * v[:3]).contiguous().requires_grad_()
    optimiser = torch.optim.LBFGS([a, b], max_iter=200, line_search_fn="strong_wolfe")

    def loss():
        optimiser.zero_grad()
        value = (seen.keys_NC - x @ a @ b).square().mean()
        value.backward()
        return value

    first = loss().item()
    optimiser.step(loss)
    trained = loss().item()
    assert first > 1.001 * float(best) and trained >= float(best) * (1 - 1e-9)
    assert trained == pytest.approx(float(best), rel=1e-3)
    assert left_out(seen.keys_NC, basis) == pytest.approx(float(best / seen.keys_NC.square().mean()))


def test_what_cannot_be_shrunk_is_refused(model, text):
    for options, config, words in (({"sequence_mixer": {"method": "sequence.mamba"}}, Config(), "mixes by"),
                                   ({"sequence_mixer": {"method": "sequence.attention", "qk_norm": "head"}},
                                    Config(basis="weights"), "basis: text"),
                                   ({"sequence_mixer": {"method": "sequence.attention", "rotary_dim": 2}}, Config(),
                                    "turns 2 of 4")):
        with pytest.raises(MixwellError, match=words), channels(small(**options), text, config):
            pass
    with channels(model, text, Config()), pytest.raises(MixwellError, match="without padding"):
        model.generate(text, 2, mask_BT=torch.ones_like(text, dtype=torch.bool).tril())
    for options, words in (({"keys": 0}, "keys is 0"), ({"basis": "svd"}, "text, scaled or"),
                           ({"window": 0}, "window")):
        with pytest.raises(ValueError, match=words):
            Config(**options)
    with channels(**example(generator(0))) as bases:
        assert len(bases) == 1
