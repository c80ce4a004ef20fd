"""Latent attention against a loop over rows, positions and heads, forward and gradient; what its cache costs."""

import math

import pytest
import torch

from mixwell.sequence.latent_attention import Config, LatentAttention, score_scale

DIM = 8
CASES = {
    "both latents": {},
    "queries from the token": {"q_rank": None},
    "biased": {"bias": True},
    "wide norms": {"latent_eps": 0.3},
    "wide values": {"value_dim": 9},
    "YaRN": {"rope_scaling": {"type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16, "mscale": 0.5,
                              "mscale_all_dim": 0.8}},
}


def build(**options):
    config = Config(**{"num_heads": 2, "kv_rank": 6, "q_rank": 5, "nope_dim": 4, "rope_dim": 4, "value_dim": 3,
                       "rope_theta": 50.0} | options)
    layer = LatentAttention(DIM, config, torch.Generator().manual_seed(1)).double()
    draws = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws, dtype=torch.float64) * 0.5)
    return layer


def inputs(T=7):
    return torch.randn(2, T, DIM, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def affine(module, x):
    return module.weight @ x + (0 if module.bias is None else module.bias)


def normed(norm, x, c):
    return x / torch.sqrt((x * x).mean() + c.latent_eps) * norm.weight


def speed(pair, c):
    f = c.rope_theta ** (-2 * pair / c.rope_dim)
    if c.rope_scaling is None:
        return f, 1.0
    factor, length = c.rope_scaling["factor"], c.rope_scaling["original_max_position_embeddings"]
    low, high = (c.rope_dim * math.log(length / (r * 2 * math.pi)) / (2 * math.log(c.rope_theta)) for r in (32, 1))
    low, high = max(math.floor(low), 0), min(math.ceil(high), c.rope_dim - 1)
    share = min(max((pair - low) / (high - low), 0), 1)
    over, under = (0.1 * c.rope_scaling[name] * math.log(factor) + 1 for name in ("mscale", "mscale_all_dim"))
    return f / factor * share + f * (1 - share), over / under


def turn(x, position, c):
    out, half = list(x), len(x) // 2
    for i in range(half):
        f, long = speed(i, c)
        cos, sin = long * math.cos(position * f), long * math.sin(position * f)
        out[i], out[i + half] = x[i] * cos - x[i + half] * sin, x[i + half] * cos + x[i] * sin
    return torch.stack(out)


def loop(layer, x_BTD):
    c, rows = layer.config, []
    sharp = (0.1 * c.rope_scaling["mscale_all_dim"] * math.log(c.rope_scaling["factor"]) + 1) if c.rope_scaling else 1.0
    scale = sharp**2 / math.sqrt(c.nope_dim + c.rope_dim)
    for row in x_BTD:
        queries, keys, values = [], [], []
        for t, x in enumerate(row):
            if c.q_rank is None:
                q = layer.q.weight @ x
            else:
                q = layer.q_up.weight @ normed(layer.q_norm, affine(layer.q_down, x), c)
            queries.append([torch.cat((h[: c.nope_dim], turn(h[c.nope_dim :], t, c))) for h in q.chunk(c.num_heads)])
            both = affine(layer.kv_down, x)
            shared = turn(both[c.kv_rank :], t, c)
            heads = (layer.kv_up.weight @ normed(layer.kv_norm, both[: c.kv_rank], c)).chunk(c.num_heads)
            keys.append([torch.cat((h[: c.nope_dim], shared)) for h in heads])
            values.append([h[c.nope_dim :] for h in heads])
        out = []
        for t in range(len(row)):
            found = []
            for h in range(c.num_heads):
                scores = torch.stack([queries[t][h] @ keys[s][h] * scale for s in range(t + 1)])
                shares = scores.exp() / scores.exp().sum()
                found.append(sum(w * values[s][h] for s, w in enumerate(shares)))
            out.append(affine(layer.out, torch.cat(found)))
        rows.append(torch.stack(out))
    return torch.stack(rows)


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
def test_agrees_with_the_loop(options):
    layer, x = build(**options), inputs().requires_grad_()
    found, expected = layer(x).y_BTD, loop(layer, x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)  # angles are float32
    probe = torch.randn(found.shape, generator=torch.Generator().manual_seed(4), dtype=found.dtype)
    leaves = [x, *layer.parameters()]
    for a, b in zip(torch.autograd.grad((found * probe).sum(), leaves),
                    torch.autograd.grad((expected * probe).sum(), leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
@torch.no_grad()
def test_inside_the_latent_space_it_is_the_same(options):
    """One position at a time without gradient, padding in front."""
    layer, x = build(**options), inputs()
    expected, cache = loop(layer, x), layer.new_cache()
    layer(x[:, :2] + 9, torch.zeros(1, 2, dtype=torch.long), cache, torch.zeros(2, 2, dtype=torch.bool))
    for t in range(x.shape[1]):
        found = layer(x[:, t : t + 1], torch.tensor([[t]]), cache).y_BTD
        torch.testing.assert_close(found[:, 0], expected[:, t], rtol=1e-5, atol=1e-6)


def test_the_cache_holds_the_latents_alone():
    layer, cache = build(), build().new_cache()
    layer(inputs(), cache=cache)
    numbers = (cache._keys[:, :, :7].numel() + cache._values[:, :, :7].numel()) / (2 * 7)
    assert numbers == 6 + 4  # C + R, whatever the number of heads


def test_counts_its_flops():
    layer = build()
    maps = 8 * 5 + 5 * 2 * 8 + 8 * 10 + 6 * 2 * 7 + 2 * 3 * 8
    assert layer.flops_per_token(9) == pytest.approx(2 * maps + 2 * 2 * (4 + 4 + 3) * (9 + 1) / 2)
    assert score_scale(layer.config) == pytest.approx(8**-0.5)


@pytest.mark.parametrize(("options", "message"), [
    ({"rope_dim": 3}, "rope_dim is 3"),
    ({"kv_rank": 0}, "kv_rank is 0"),
    ({"rope_scaling": {"type": "yarn"}}, "yarn needs factor"),
])
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)
