"""Mamba against a loop over positions, channels and states in float64, and what a recurrence promises."""

import pytest
import torch

from mixwell.core.config import from_dict, to_dict
from mixwell.sequence._scan import selective_scan
from mixwell.sequence.mamba import Config, Mamba, example
from tests.sequence.scan_loop import gradients, inputs, loop, shake

DIM = 4
CASES = {
    "plain": {},
    "narrow": {"expand": 1},
    "one state": {"state_dim": 1},
    "no window": {"conv_width": 1},
    "rank": {"dt_rank": 3},
    "one chunk": {"chunk_size": 64},
    "step by step": {"chunk_size": 1},
    "steps": {"dt_min": 0.5, "dt_max": 0.5},
}


def build(**options):
    config = Config(**{"state_dim": 3, "chunk_size": 2, **options})
    return shake(Mamba(DIM, config, torch.Generator().manual_seed(1)))


def plain_maps(layer):
    def maps(name, row, position, x):
        module = getattr(layer, name)
        return module.weight @ x + (0 if module.bias is None else module.bias)

    return maps


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
def test_agrees_with_the_loop(options):
    layer, x = build(**options), inputs(2, 5, DIM).requires_grad_()
    y, expected = layer(x).y_BTD, loop(layer, x, plain_maps(layer))
    torch.testing.assert_close(y, expected)
    for got, wanted in zip(gradients(y, layer, x), gradients(expected, layer, x)):
        torch.testing.assert_close(got, wanted)


def test_the_scan_passes_gradcheck_its_last_state_included():
    def draw(*shape):
        return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)

    values = [draw(2, 5, 3), draw(2, 5, 3).abs(), -draw(3, 4).abs(), draw(2, 5, 4), 2 * draw(2, 5, 4), draw(2, 3, 4)]
    assert torch.autograd.gradcheck(lambda *v: selective_scan(*v, 2), [v.requires_grad_() for v in values])


@pytest.mark.parametrize("cuts", [(1,) * 7, (4, 3), (2, 1, 4)])
@pytest.mark.parametrize("options", [{}, {"conv_width": 1}], ids=["window", "no window"])
def test_recurrent_form_and_split_and_carry_equal_the_whole(cuts, options):
    layer, x = build(**options), inputs(2, 7, DIM)
    cache = layer.new_cache()
    parts = [layer(piece, cache=cache).y_BTD for piece in x.split(list(cuts), 1)]
    torch.testing.assert_close(torch.cat(parts, 1), layer(x).y_BTD)
    assert cache.length == 7


def test_the_cache_does_not_grow():
    layer, x = build(), inputs(1, 9, DIM)
    cache = layer.new_cache()
    sizes = set()
    for piece in x.split(1, 1):
        layer(piece, cache=cache)
        sizes.add(cache.tail_BWI.numel() + cache.state_BIN.numel())
    assert sizes == {2 * DIM * (3 + 3)}


def test_no_token_sees_the_future():
    layer, x = build(), inputs(2, 7, DIM)
    changed = x.clone()
    changed[:, 4:] += 1
    torch.testing.assert_close(layer(x).y_BTD[:, :4], layer(changed).y_BTD[:, :4], rtol=0, atol=0)
    assert (layer(x).y_BTD[:, 4:] - layer(changed).y_BTD[:, 4:]).abs().min() > 0


def test_padding_on_the_left_changes_nothing():
    layer, x = build(), inputs(2, 5, DIM)
    padded = torch.cat((torch.full((2, 3, DIM), 9.0, dtype=x.dtype), x), 1)
    mask = torch.tensor([[False] * 3 + [True] * 5] * 2)
    torch.testing.assert_close(layer(padded, mask_BT=mask).y_BTD[:, 3:], layer(x).y_BTD)
    cache = layer.new_cache()
    layer(padded[:, :5], cache=cache, mask_BT=mask[:, :5])
    torch.testing.assert_close(layer(padded[:, 5:], cache=cache).y_BTD, layer(x).y_BTD[:, 2:])


def test_selectivity_a_token_of_step_zero_is_forgotten_and_a_long_step_forgets_the_rest():
    """What a selective model can do and a fixed one cannot: choose, by content, what enters and what stays."""
    u, B, C = torch.tensor([5.0, 7.0, 11.0]).view(1, 3, 1), torch.ones(1, 3, 1), torch.ones(1, 3, 1)
    A, state = torch.tensor([[-1.0]]), torch.zeros(1, 1, 1)
    y, _ = selective_scan(u, torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1), A, B, C, state, 2)
    torch.testing.assert_close(y.flatten(), torch.tensor([5.0, 5.0, 5.0]))
    y, last = selective_scan(u, torch.tensor([1.0, 1.0, 50.0]).view(1, 3, 1), A, B, C, state, 2)
    torch.testing.assert_close(y.flatten()[2], torch.tensor(50.0 * 11.0))
    torch.testing.assert_close(last.flatten(), y.flatten()[2:])


def test_steps_start_inside_their_bounds_and_rates_count_up():
    layer = Mamba(8, Config(dt_min=0.01, dt_max=0.2), torch.Generator().manual_seed(5))
    steps = torch.nn.functional.softplus(layer.dt_proj.bias)
    assert 0.0099 < steps.min() < 0.05 < steps.max() < 0.201
    torch.testing.assert_close(layer.dynamics.log_rate[3].exp(), torch.arange(1.0, 17.0))


def test_bfloat16_keeps_the_recurrence_in_float32():
    layer, x = build(), inputs(2, 12, DIM)
    half = Mamba(DIM, layer.config)
    half.load_state_dict(layer.state_dict())
    for p in (half.in_proj.weight, half.conv_weight, half.conv_bias, half.x_proj.weight, half.out.weight):
        p.data = p.data.bfloat16()
    cache = half.new_cache()
    y = half(x.bfloat16(), cache=cache).y_BTD
    assert y.dtype == torch.bfloat16 and cache.state_BIN.dtype == torch.float32
    assert half.dt_proj.keep_float32 and half.dynamics.keep_float32
    assert (y - layer(x).y_BTD).norm() / layer(x).y_BTD.norm() < 0.03


def test_flops_count_the_maps_the_convolution_and_the_scan():
    layer = Mamba(DIM, Config(state_dim=3))
    weights = sum(getattr(layer, name).weight.numel() for name in ("in_proj", "x_proj", "dt_proj", "out"))
    scan = 2 * layer.conv_weight.numel() + 6 * layer.dynamics.log_rate.numel()
    assert layer.flops_per_token(10) == 2 * weights + scan


@pytest.mark.parametrize(("options", "message"), [
    ({"expand": 0}, "expand is 0; expected at least 1"),
    ({"state_dim": 0}, "state_dim is 0"),
    ({"conv_width": 0}, "conv_width is 0"),
    ({"dt_rank": 0}, "dt_rank is 0"),
    ({"chunk_size": 0}, "chunk_size is 0"),
    ({"dt_min": 0.2}, "dt_min is 0.2, dt_max 0.1; expected 0 < dt_min <= dt_max"),
])
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)


def test_same_generator_same_weights_and_the_example_runs():
    one, two = (Mamba(DIM, Config(), torch.Generator().manual_seed(5)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters()))
    assert from_dict(Config, to_dict(Config(dt_rank=3))) == Config(dt_rank=3)
    arguments = example(torch.Generator().manual_seed(0))
    x = arguments.pop("x_BTD")
    assert Mamba(**arguments)(x).y_BTD.shape == x.shape
