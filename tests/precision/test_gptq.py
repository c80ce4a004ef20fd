"""GPTQ: column by column against a loop that inverts anew each time, white inputs, experts, less error than nearest."""

import pytest
import torch

from mixwell.core.checkpoint import channel_mixers
from mixwell.core.errors import MixwellError
from mixwell.precision._parts import grid_of, nearest
from mixwell.precision._statistics import output_error, second_moments
from mixwell.precision.gptq import Config, encode, encode_all, example, gptq, inverse_factor, promises
from tests.contracts._conversions import calibration, whole

GATE, DOWN = "layers.0.channel_mixer.gate_up_proj", "layers.0.channel_mixer.down_proj"


def correlated(generator, width=16, rows=200):
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
    x = torch.randn(rows, width, generator=generator, dtype=torch.float64) * torch.logspace(0, -1.5, width)
    return x @ mixing


def loop(weight, H, bits, size, symmetric, damp):
    """Optimal brain surgery as it is written: round a column, spread its error by the inverse of what is left."""
    H = H.clone() + damp * H.diagonal().mean() * torch.eye(len(H), dtype=torch.float64)
    left, done = weight.double().clone(), torch.zeros_like(weight, dtype=torch.float64)
    for j in range(weight.shape[1]):
        if j % size == 0:
            grid = grid_of(left[:, None, j : j + size], bits, symmetric)
        done[:, j] = grid.nearest(left[:, j, None, None])[:, 0, 0]
        inverse = torch.linalg.inv(H[j:, j:])
        error = (left[:, j] - done[:, j]) / inverse[0, 0]
        left[:, j:] -= error[:, None] * inverse[0][None]
    return done


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("size", [0, 8])
def test_against_a_loop_that_inverts_anew(generator, symmetric, size):
    weight, x = torch.randn(5, 16, generator=generator), correlated(generator)
    H = x.T @ x * 2 / len(x)
    config = Config(bits=3, group_size=size, symmetric=symmetric)
    found = encode(weight, H, config).weight().dequantised(torch.float64)
    torch.testing.assert_close(found, loop(weight, H, 3, size or 16, symmetric, 0.01), rtol=1e-5, atol=1e-6)


def test_white_inputs_give_rounding_to_nearest(generator):
    weight = torch.randn(5, 16, generator=generator)
    eye = torch.eye(16, dtype=torch.float64)
    found = encode(weight, eye, Config(bits=3, group_size=8))
    assert torch.equal(found.codes, nearest(weight, 3, 8, True).codes)


def test_halves_the_error_on_correlated_inputs(generator):
    weight, both = torch.randn(32, 16, generator=generator), correlated(generator, rows=400)
    x, fresh = both.chunk(2)
    H, held = x.T @ x, fresh.T @ fresh
    config = Config(bits=3, group_size=0)
    errors = [output_error(coded.weight().dequantised(torch.float64) - weight.double(), held)
              for coded in (encode(weight, H, config), nearest(weight, 3, 0, True))]
    assert errors[0] < 0.5 * errors[1]


def test_an_input_that_never_moves_is_left_out(generator):
    weight, x = torch.randn(5, 16, generator=generator), correlated(generator)
    x[:, 3] = 0
    found = encode(weight, x.T @ x, Config(group_size=8)).weight().dequantised(torch.float32)
    assert bool((found[:, 3] == 0).all()) and bool(found.isfinite().all())


def test_every_expert_is_calibrated_on_every_token(generator):
    """What each expert's down map meets, by hand, and that experts are encoded one by one."""
    checkpoint, text = whole(example(generator)["checkpoint"]), calibration()
    found = second_moments(checkpoint, [GATE, DOWN], text)
    total = torch.zeros(3, 8, 8, dtype=torch.float64)
    tokens = 0
    for seen in text.seen(checkpoint):
        for x in seen[0].x_TD:
            tokens += 1
            for e in range(3):
                gate, up = (checkpoint.tensors[GATE][e].double() @ x.double()).chunk(2)
                hidden = gate * torch.sigmoid(gate) * up
                total[e] += torch.outer(hidden, hidden)
    torch.testing.assert_close(found[DOWN], total * 2 / tokens, rtol=1e-4, atol=1e-4)
    config = Config(group_size=8)
    both = encode_all(checkpoint.tensors[DOWN], found[DOWN], config)
    for e in range(3):
        assert torch.equal(both.codes[e], encode(checkpoint.tensors[DOWN][e], found[DOWN][e], config).codes)
    assert channel_mixers(checkpoint.arch)[0]["num_experts"] == 3


def test_experts_with_one_input_share_its_factor(generator, monkeypatch):
    stack, x = torch.randn(3, 5, 16, generator=generator), correlated(generator)
    H, config, made = x.T @ x, Config(group_size=8), []
    wanted = [encode(matrix, H, config).codes for matrix in stack]
    monkeypatch.setattr("mixwell.precision.gptq.inverse_factor",
                        lambda *given: made.append(1) or inverse_factor(*given))
    assert torch.equal(encode_all(stack, H, config).codes, torch.stack(wanted))
    assert len(made) == 1


def test_the_head_too(generator):
    checkpoint = whole(example(generator)["checkpoint"])
    after = gptq(checkpoint, Config(group_size=8, head=True), generator, calibration()).tensors
    assert "head.weight.bits" in after
    moments = second_moments(checkpoint, ["head.weight"], calibration())["head.weight"]
    wanted = encode(checkpoint.tensors["head.weight"], moments, Config(group_size=8)).stored("head.weight")
    assert torch.equal(after["head.weight"], wanted["head.weight"])


def test_refusals(generator):
    values = example(generator)
    with pytest.raises(MixwellError, match="group_size 12 does not divide rows of 16"):
        gptq(whole(values["checkpoint"]), Config(group_size=12), generator, calibration())
    with pytest.raises(ValueError, match="damp"):
        Config(damp=0.0)
    assert promises(Config(max_kl_nats=0.5)) == {"kl_nats": 0.5}
