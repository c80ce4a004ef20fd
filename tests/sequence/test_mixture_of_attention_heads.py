"""The mixture of attention heads against a loop over tokens and heads, and against attention with one shared key."""

import math

import pytest
import torch

from mixwell.core.config import from_dict, to_dict
from mixwell.core.errors import MixwellError
from mixwell.core.routing import Context
from mixwell.sequence.attention import Attention
from mixwell.sequence.attention import Config as AttentionConfig
from mixwell.sequence.mixture_of_attention_heads import Config, MixtureOfAttentionHeads, example

DIM = 8


def build(**options):
    config = Config(**{"num_experts": 4, "num_heads": 2, **options})
    layer = MixtureOfAttentionHeads(DIM, config, torch.Generator().manual_seed(1)).double()
    draws = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn(p.shape, generator=draws, dtype=torch.float64) * 0.5)
    return layer


def inputs(B=2, T=6):
    return torch.randn(B, T, DIM, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def turn(x, position, theta=10000.0, factor=1.0):
    half, out = x.shape[0] // 2, [None] * x.shape[0]
    for i in range(half):
        angle = position * theta ** (-2 * i / x.shape[0]) / factor
        out[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
        out[i + half] = x[i + half] * math.cos(angle) + x[i] * math.sin(angle)
    return torch.stack(out)


def loop(layer, x_BTD):
    """Token by token, head by head."""
    c, P = layer.config, layer.width
    factor = c.rope_scaling["factor"] if c.rope_scaling else 1.0
    rows = []
    for x in x_BTD:
        p = (x @ layer.router.weight.T).softmax(-1)
        kv = [layer.kv.weight @ token for token in x]
        out = []
        for t in range(x.shape[0]):
            chosen = p[t].topk(c.num_heads).indices.tolist()
            total = sum(p[t, i] for i in chosen).detach() if c.renormalise else 1
            y = 0
            for i in chosen:
                q = turn(layer.query.weight[i] @ x[t], t, c.rope_theta, factor)
                keys = [turn(kv[s][:P], s, c.rope_theta, factor) for s in range(t + 1)]
                scores = torch.stack([q @ key / math.sqrt(P) for key in keys])
                shares = scores.exp() / scores.exp().sum()
                y = y + p[t, i] / total * (layer.out.weight[i] @ sum(a * kv[s][P:] for s, a in enumerate(shares)))
            out.append(y)
        rows.append(torch.stack(out))
    return torch.stack(rows)


@pytest.mark.parametrize("options", [
    {}, {"num_heads": 1, "head_dim": 4}, {"num_heads": 4, "head_dim": 2}, {"renormalise": False},
    {"rope_theta": 100.0}, {"rope_scaling": {"type": "linear", "factor": 2.0}},
])
def test_agrees_with_the_loop(options):
    layer, x = build(**options), inputs().requires_grad_()
    y, expected = layer(x).y_BTD, loop(layer, x)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)  # angles are float32
    probe = torch.randn(y.shape, generator=torch.Generator().manual_seed(4), dtype=y.dtype)
    leaves = [x, *layer.parameters()]
    for got, wanted in zip(*(torch.autograd.grad((v * probe).sum(), leaves) for v in (y, expected))):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scaling", [
    None, {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4}])  # yarn stretches scores as well
def test_all_heads_with_equal_weights_are_multi_query_attention(scaling):
    layer, x = build(num_heads=4, head_dim=2, rope_scaling=scaling), inputs()
    alike = AttentionConfig(num_heads=4, num_kv_heads=1, head_dim=2, rope_scaling=scaling)
    plain = Attention(DIM, alike).double()
    with torch.no_grad():
        layer.router.weight.zero_()
        plain.qkv.weight.copy_(torch.cat((layer.query.weight.flatten(0, 1), layer.kv.weight)))
        plain.out.weight.copy_(layer.out.weight.permute(1, 0, 2).flatten(1) / 4)
    torch.testing.assert_close(layer(x).y_BTD, plain(x).y_BTD, rtol=1e-6, atol=1e-6)


def test_the_router_learns_even_with_one_head():
    layer = build(num_heads=1, head_dim=4)
    layer(inputs()).y_BTD.square().sum().backward()
    assert layer.router.weight.grad.abs().max() > 1e-3


def test_a_head_nobody_chose_is_harmless():
    layer, x = build(num_heads=1, head_dim=4), inputs().abs()
    with torch.no_grad():
        layer.router.weight.zero_()
        layer.router.weight[2] = 1.0
    layer(x).y_BTD.sum().backward()
    for module in (layer.query, layer.out):
        assert module.weight.grad[[0, 1, 3]].abs().max() == 0 and module.weight.grad[2].abs().max() > 0


def test_heads_may_vary_from_token_to_token():
    """A threshold router leaves slots empty; they add nothing."""
    layer, x = build(router={"method": "threshold", "threshold": 0.6}, head_dim=4), inputs()
    mixed = layer(x, None, None, None, Context())
    assert (mixed.routing.indices_TK < 0).any()
    one = torch.cat([layer(x[:, :t]).y_BTD[:, -1:] for t in range(1, 7)], 1)
    torch.testing.assert_close(mixed.y_BTD, one)


@pytest.mark.parametrize("cuts", [(1,) * 6, (4, 2), (2, 1, 3)])
def test_split_and_carry_equals_whole(cuts):
    layer, x = build(), inputs()
    cache = layer.new_cache()
    parts = [layer(piece, cache=cache).y_BTD for piece in x.split(list(cuts), 1)]
    torch.testing.assert_close(torch.cat(parts, 1), layer(x).y_BTD)
    assert cache.length == 6


def test_no_token_sees_the_future():
    layer, x = build(), inputs()
    changed = x.clone()
    changed[:, 4:] += 1
    torch.testing.assert_close(layer(x).y_BTD[:, :4], layer(changed).y_BTD[:, :4], rtol=0, atol=0)
    assert (layer(x).y_BTD[:, 4:] - layer(changed).y_BTD[:, 4:]).abs().min() > 0


def test_padding_on_the_left_changes_nothing_and_counts_in_no_loss():
    layer, x = build(), inputs()
    padded = torch.cat((torch.full((2, 3, DIM), 9.0, dtype=x.dtype), x), 1)
    mask = torch.tensor([[False] * 3 + [True] * 6] * 2)
    positions = torch.cat((torch.zeros(3, dtype=torch.long), torch.arange(6))).unsqueeze(0)
    with_padding = layer(padded, positions, None, mask, Context(mask_T=mask.flatten()))
    plain = layer(x, None, None, None, Context())
    torch.testing.assert_close(with_padding.y_BTD[:, 3:], plain.y_BTD)
    torch.testing.assert_close(layer(padded, positions, mask_BT=mask).y_BTD[:, 3:], plain.y_BTD)
    torch.testing.assert_close(with_padding.aux, plain.aux)


def test_losses_are_outputs_with_their_coefficients():
    layer, x = build(balance={"switch": 0.5, "z_loss": 0.0}), inputs()
    mixed = layer(x, None, None, None, Context())
    assert set(mixed.losses) == {"heads.switch", "heads.z_loss"}
    torch.testing.assert_close(mixed.aux, 0.5 * mixed.losses["heads.switch"].float())
    p = (x.flatten(0, 1) @ layer.router.weight.T).softmax(-1)
    share = torch.bincount(p.topk(2).indices.flatten(), minlength=4) / 24
    torch.testing.assert_close(mixed.losses["heads.switch"], 4 * (share * p.mean(0)).sum())
    assert build(balance={})(x, None, None, None, Context()).aux is None
    assert mixed.routing.load_E().sum() == 24


def test_flops_count_the_chosen_heads():
    layer = build(num_heads=2, num_experts=4)
    pairs = sum(t + 1 for t in range(10)) / 10
    P = layer.width
    maps = 2 * (2 * 2 * DIM * P + 2 * DIM * P)
    assert layer.flops_per_token(10) == pytest.approx(maps + 4 * 2 * P * pairs + 2 * DIM * 4)


@pytest.mark.parametrize(("options", "message"), [
    ({"num_heads": 5}, "num_heads is 5 of num_experts = 4"),
    ({"num_heads": 3}, "num_heads = 3 does not divide dim = 8 into heads of even width"),
    ({"head_dim": 3}, "head_dim is 3"),
    ({"rope_theta": 0.0}, "rope_theta is 0.0"),
    ({"balance": {"switch": -1.0}}, "coefficient of 0 or more"),
    ({"rope_scaling": {"type": "ntk"}}, "'ntk' is not supported"),
])
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_refuses_routers_that_look_ahead_and_unknown_names():
    with pytest.raises(MixwellError, match="expert_choice looks at other tokens, later ones too"):
        build(router={"method": "expert_choice"})
    with pytest.raises(MixwellError, match="Did you mean 'top_k'"):
        build(router={"method": "topk"})
    with pytest.raises(MixwellError, match="Did you mean 'switch'"):
        build(balance={"swich": 0.1})


def test_config_round_trips_and_the_example_runs():
    config = Config(num_experts=4, num_heads=2, balance={"z_loss": 0.1})
    assert from_dict(Config, to_dict(config)) == config
    arguments = example(torch.Generator().manual_seed(0))
    x = arguments.pop("x_BTD")
    assert MixtureOfAttentionHeads(**arguments)(x).y_BTD.shape == x.shape
