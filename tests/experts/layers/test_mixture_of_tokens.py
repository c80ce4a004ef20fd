"""The mixture of tokens against a loop over groups and experts."""

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.core.routing import Context
from mixwell.experts.layers.mixture_of_tokens import Config, MixtureOfTokens
from tests.experts.layers._loops import enlarged, same_forward_and_gradient, swiglu, tokens

SHAPE = (5, 3)


def loop(layer, x, size, temperature, emit, mask=None):
    B, S = SHAPE
    y = [torch.zeros_like(x[0])] * (B * S)
    for start in range(0, B, size):
        for s in range(S):
            group = [b * S + s for b in range(start, min(start + size, B)) if mask is None or mask[b * S + s]]
            if not group:
                continue
            h = torch.stack([layer.controller.weight @ x[t] for t in group])
            if temperature == 0:
                merge = torch.zeros_like(h)
                merge[h.argmax(0), torch.arange(h.shape[1])] = 1.0
                over = torch.zeros_like(h)
                over[torch.arange(len(group)), h.argmax(1)] = 1.0
            else:
                merge, over = (h / temperature).softmax(0), (h / temperature).softmax(1)
            back = merge if emit == "same" else over
            for e in range(h.shape[1]):
                mean = sum(merge[i, e] * x[t] for i, t in enumerate(group))
                z = swiglu(mean, layer.gate_up_proj[e], layer.down_proj[e])
                for i, t in enumerate(group):
                    y[t] = y[t] + back[i, e] * z
    return torch.stack(y)


@pytest.mark.parametrize("size", [1, 2, 5, 8])
@pytest.mark.parametrize("temperature, emit", [(1.0, "same"), (0.5, "experts"), (0.0, "same"), (0.0, "experts")])
def test_agrees_with_a_loop_forward_and_gradient(generator, size, temperature, emit):
    config = Config(num_experts=3, hidden_dim=4, group_size=size, temperature=temperature, emit=emit)
    layer = enlarged(MixtureOfTokens(6, config, generator))
    x = tokens(generator, 15)
    found = layer(x, Context(batch_shape=SHAPE)).y_TD
    expected = loop(layer, x, size, temperature, emit)
    same_forward_and_gradient(found, expected, [x, *layer.parameters()], generator)


@pytest.mark.parametrize("temperature, emit", [(1.0, "same"), (1.0, "experts"), (0.0, "same"), (0.0, "experts")])
def test_padding_has_no_part(generator, temperature, emit):
    config = Config(num_experts=3, hidden_dim=4, group_size=2, temperature=temperature, emit=emit)
    layer = enlarged(MixtureOfTokens(6, config, generator))
    x = tokens(generator, 15)
    mask = torch.rand(15, generator=generator) > 0.5
    mask[:6] = False
    found = layer(x, Context(batch_shape=SHAPE, mask_T=mask)).y_TD
    same_forward_and_gradient(found, loop(layer, x, 2, temperature, emit, mask), [x, *layer.parameters()], generator)
    assert (found[~mask] == 0).all()


def test_earlier_positions_do_not_see_later_ones(generator):
    layer = MixtureOfTokens(6, Config(num_experts=3, hidden_dim=4, group_size=5), generator)
    x = torch.randn(5, 3, 6, generator=generator)
    changed = x.clone()
    changed[2, 2] += 1.0
    a, b = (layer(t.flatten(0, 1), Context(batch_shape=SHAPE)).y_TD.view(5, 3, 6) for t in (x, changed))
    assert torch.equal(a[:, :2], b[:, :2])
    assert ((a[:, 2] - b[:, 2]).abs().amax(-1) > 0).all()  # but all examples at that position do


def test_temperature_to_zero_is_discrete_routing(generator):
    def at(temperature):
        config = Config(num_experts=3, hidden_dim=4, group_size=5, temperature=temperature)
        layer = enlarged(MixtureOfTokens(6, config, torch.Generator().manual_seed(1)))
        return layer(x, Context(batch_shape=SHAPE)).y_TD

    x = tokens(generator, 15)
    torch.testing.assert_close(at(1e-4), at(0.0))
    assert not torch.allclose(at(1.0), at(0.0), rtol=1e-2)


def test_a_group_of_one_is_the_sum_of_the_experts(generator):
    layer = MixtureOfTokens(6, Config(num_experts=3, hidden_dim=4, group_size=1), generator).double()
    x = tokens(generator, 15)
    expected = torch.stack([sum(swiglu(z, layer.gate_up_proj[e], layer.down_proj[e]) for e in range(3)) for z in x])
    torch.testing.assert_close(layer(x, Context(batch_shape=SHAPE)).y_TD, expected)


def test_counts_its_flops(generator):
    layer = MixtureOfTokens(6, Config(num_experts=3, hidden_dim=4, group_size=2), generator)
    experts, logits, mix = 2 * 3 * 6 * (8 + 4) / 2, 2 * 6 * 3, 2 * 3 * 6
    assert layer.flops_per_token() == experts + logits + 2 * mix


def test_no_tokens_at_all(generator):
    layer = MixtureOfTokens(6, Config(num_experts=3, hidden_dim=4), generator)
    assert layer(torch.zeros(0, 6), Context(batch_shape=(0, 3))).y_TD.shape == (0, 6)


def test_refuses(generator):
    layer = MixtureOfTokens(6, Config(num_experts=3, hidden_dim=4), generator)
    with pytest.raises(MixwellError, match="batch_shape"):
        layer(torch.zeros(4, 6), Context())
    with pytest.raises(ValueError, match="temperature is -1"):
        Config(num_experts=3, hidden_dim=4, temperature=-1)
