"""The soft mixture against a loop over slots and tokens."""

import pytest
import torch

from mixwell.core.routing import Context
from mixwell.experts.layers.soft_moe import Config, SoftMoE, mixing
from tests.experts.layers._loops import enlarged, same_forward_and_gradient, swiglu, tokens


def loop(layer, x, rows, mask, normalise):
    y = [torch.zeros_like(x[0])] * len(x)
    phi, p = layer.slots.weight, layer.config.slots_per_expert
    for row in rows:
        row = [t for t in row if mask[t]]
        logits = torch.stack([
            torch.stack([x[t] @ f * (layer.sharpness / (x[t].norm() * f.norm()) if normalise else 1) for f in phi])
            for t in row])
        into, back = logits.softmax(0), logits.softmax(1)
        for s in range(len(phi)):
            slot = sum(into[i, s] * x[t] for i, t in enumerate(row))
            z = swiglu(slot, layer.gate_up_proj[s // p], layer.down_proj[s // p])
            for i, t in enumerate(row):
                y[t] = y[t] + back[i, s] * z
    return torch.stack(y)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("shape, slots", [(None, 1), ((2, 4), 2)])
def test_agrees_with_a_loop_forward_and_gradient(generator, normalise, shape, slots):
    config = Config(num_experts=3, hidden_dim=4, slots_per_expert=slots, normalise=normalise)
    layer = enlarged(SoftMoE(6, config, generator), 5)
    x = tokens(generator, 8)
    mask = torch.tensor([True, True, False, True, True, True, True, False])
    rows = [range(8)] if shape is None else [range(4), range(4, 8)]
    expected = loop(layer, x, rows, mask, normalise)
    found = layer(x, Context(batch_shape=shape, mask_T=mask)).y_TD
    same_forward_and_gradient(found, expected, [x, *layer.parameters()], generator)
    assert (found[~mask] == 0).all()


def test_every_slot_and_every_token_is_a_convex_mean(generator):
    into, back = mixing(torch.randn(2, 5, 7, generator=generator), torch.ones(2, 5, dtype=torch.bool))
    torch.testing.assert_close(into.sum(1), torch.ones(2, 7))
    torch.testing.assert_close(back.sum(2), torch.ones(2, 5))


def test_one_token_and_one_expert_is_the_dense_block(generator):
    layer = SoftMoE(6, Config(num_experts=1, hidden_dim=4), generator).double()
    x = tokens(generator, 3)
    expected = torch.stack([swiglu(z, layer.gate_up_proj[0], layer.down_proj[0]) for z in x])
    torch.testing.assert_close(layer(x, Context(batch_shape=(3, 1))).y_TD, expected)


def test_normalised_logits_do_not_grow_with_the_tokens(generator):
    layer = SoftMoE(6, Config(num_experts=3, hidden_dim=4), generator)
    x = torch.randn(8, 6, generator=generator)
    torch.testing.assert_close(layer.logits(x), layer.logits(100 * x))


def test_permuting_a_row_permutes_its_result_and_other_rows_stay(generator):
    layer = SoftMoE(6, Config(num_experts=3, hidden_dim=4), generator)
    x = torch.randn(8, 6, generator=generator)
    order = torch.tensor([3, 1, 0, 2, 4, 5, 6, 7])
    context = Context(batch_shape=(2, 4))
    torch.testing.assert_close(layer(x[order], context).y_TD, layer(x, context).y_TD[order])


def test_counts_its_flops(generator):
    layer = SoftMoE(6, Config(num_experts=3, hidden_dim=4, slots_per_expert=2, max_positions=8), generator)
    experts = 6 * 2 * 6 * (8 + 4) / 8  # six slots for eight tokens
    assert layer.flops_per_token() == experts + 3 * 2 * 6 * 6
    assert layer(torch.zeros(0, 6), Context()).y_TD.shape == (0, 6)


def test_refuses():
    with pytest.raises(ValueError, match="slots_per_expert is 0"):
        Config(num_experts=3, hidden_dim=4, slots_per_expert=0)


def test_slots_start_with_one_over_the_root_of_the_width(generator):
    layer = SoftMoE(100, Config(num_experts=40, hidden_dim=2), generator)
    assert layer.slots.weight.std().item() == pytest.approx(0.1, rel=0.05)
