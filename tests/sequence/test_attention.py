"""Attention against a loop over positions in float64, and what rotary positions, caches and windows promise."""

from __future__ import annotations

import math

import pytest
import torch

from mixwell.core.config import from_dict, to_dict
from mixwell.core.errors import MixwellError
from mixwell.kernels import attention as _parts
from mixwell.sequence.attention import Attention, Config, example

DIM = 12
CASES = {
    "plain": {},
    "grouped": {"num_kv_heads": 2},
    "wide heads": {"num_kv_heads": 1, "head_dim": 8},
    "bias": {"bias": True},
    "head norm": {"num_heads": 2, "num_kv_heads": 1, "qk_norm": "head", "norm_eps": 1e-3},
    "full norm": {"num_heads": 2, "qk_norm": "full"},
    "clip": {"num_heads": 2, "clip_qkv": 0.3},
    "window": {"num_heads": 2, "sliding_window": 3},
    "theta": {"num_heads": 2, "rope_theta": 100.0},
    "linear": {"num_heads": 2, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "part turns": {"num_heads": 2, "rotary_dim": 4},
    "nothing turns": {"num_heads": 2, "rotary_dim": 0, "bias": True, "out_bias": False},
    "scale": {"num_heads": 2, "num_kv_heads": 1, "score_scale": 0.9},
    "cap": {"num_heads": 2, "softcap": 1.5, "sliding_window": 3},
    "sinks": {"num_heads": 2, "num_kv_heads": 1, "sinks": True, "score_scale": 0.9},
    "norm around 1": {"num_heads": 2, "qk_norm": "head", "norm": "rms_plus_one"},
    "YaRN": {"num_heads": 1, "rope_scaling": {"type": "yarn", "factor": 4.0, "beta_fast": 2.0, "truncate": False,
                                              "original_max_position_embeddings": 32}},
    "YaRN in part": {"num_heads": 1, "rotary_dim": 8,
                     "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
    "llama3": {"num_heads": 1, "rope_scaling": {"type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                                                "high_freq_factor": 4.0, "original_max_position_embeddings": 64}},
}


def build(**options) -> Attention:
    config = Config(**{"num_heads": 6, **options})
    layer = Attention(DIM, config, torch.Generator().manual_seed(1)).double()
    draws = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws, dtype=torch.float64) * 0.5)
    return layer


def frequency(pair: int, width: int, config: Config) -> float:
    f = config.rope_theta ** (-2 * pair / width)
    scaling = config.rope_scaling
    if scaling is None:
        return f
    if scaling["type"] == "linear":
        return f / scaling["factor"]
    if scaling["type"] == "yarn":
        length, wanted = scaling["original_max_position_embeddings"], (scaling.get("beta_fast", 32), 1)
        low, high = (width * math.log(length / (r * 2 * math.pi)) / (2 * math.log(config.rope_theta)) for r in wanted)
        if scaling.get("truncate", True):
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, width - 1)
        share = min(max((pair - low) / (high - low), 0), 1)
        return f / scaling["factor"] * share + f * (1 - share)
    wavelength, length = 2 * math.pi / f, scaling["original_max_position_embeddings"]
    if wavelength < length / scaling["high_freq_factor"]:
        return f
    if wavelength > length / scaling["low_freq_factor"]:
        return f / scaling["factor"]
    smooth = (length / wavelength - scaling["low_freq_factor"]) / (
        scaling["high_freq_factor"] - scaling["low_freq_factor"])
    return (1 - smooth) * f / scaling["factor"] + smooth * f


def turn(x: torch.Tensor, position: int, config: Config) -> torch.Tensor:
    width = x.shape[0] if config.rotary_dim is None else config.rotary_dim
    half, out = width // 2, list(x)
    yarn = (config.rope_scaling or {}).get("type") == "yarn"
    long = 0.1 * math.log(config.rope_scaling["factor"]) + 1 if yarn else 1.0
    for i in range(half):
        angle = position * frequency(i, width, config)
        out[i] = long * (x[i] * math.cos(angle) - x[i + half] * math.sin(angle))
        out[i + half] = long * (x[i + half] * math.cos(angle) + x[i] * math.sin(angle))
    return torch.stack(out)


def normed(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x / torch.sqrt((x * x).sum() / x.shape[0] + eps) * weight


def weight_of(norm: torch.nn.Module) -> torch.Tensor:
    return norm.weight + getattr(norm, "offset", 0.0)


def loop(layer: Attention, x_BTD: torch.Tensor) -> torch.Tensor:
    """One row, one position, one head at a time."""
    c, P, H, G = layer.config, layer.width, layer.heads, layer.kv_heads
    rows = []
    for x in x_BTD:
        qs, ks, vs = [], [], []
        for t in range(x.shape[0]):
            z = layer.qkv.weight @ x[t] + (layer.qkv.bias if c.bias else 0)
            q, k, v = z[: H * P], z[H * P : (H + G) * P], z[(H + G) * P :]
            if c.qk_norm == "full":
                q, k = normed(q, weight_of(layer.q_norm), c.norm_eps), normed(k, weight_of(layer.k_norm), c.norm_eps)
            q, k, v = list(q.split(P)), list(k.split(P)), list(v.split(P))
            if c.qk_norm == "head":
                q = [normed(h, weight_of(layer.q_norm), c.norm_eps) for h in q]
                k = [normed(h, weight_of(layer.k_norm), c.norm_eps) for h in k]
            if c.clip_qkv:
                q, k, v = ([h.clamp(-c.clip_qkv, c.clip_qkv) for h in part] for part in (q, k, v))
            qs.append([turn(h, t, c) for h in q])
            ks.append([turn(h, t, c) for h in k])
            vs.append(v)
        out = []
        for t in range(x.shape[0]):
            heads = []
            for h in range(H):
                g = h * G // H
                seen = range(max(0, t - c.sliding_window + 1) if c.sliding_window else 0, t + 1)
                scale = c.score_scale or 1 / math.sqrt(P)
                scores = torch.stack([qs[t][h] @ ks[s][g] * scale for s in seen])
                if c.softcap:
                    scores = c.softcap * (2 / (1 + (-2 * scores / c.softcap).exp()) - 1)
                lost = layer.sinks[h].exp() if c.sinks else 0
                shares = scores.exp() / (scores.exp().sum() + lost)
                heads.append(sum(w * vs[s][g] for w, s in zip(shares, seen)))
            out.append(layer.out.weight @ torch.cat(heads) + (0 if layer.out.bias is None else layer.out.bias))
        rows.append(torch.stack(out))
    return torch.stack(rows)


def inputs(T: int = 7, B: int = 2) -> torch.Tensor:
    return torch.randn(B, T, DIM, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def gradients(y: torch.Tensor, layer: Attention, x: torch.Tensor) -> list[torch.Tensor]:
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(4), dtype=y.dtype)
    return list(torch.autograd.grad((y * weights).sum(), [x, *layer.parameters()]))


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("kernel", ["blocks", "torch"])
def test_agrees_with_the_loop(options, kernel, monkeypatch):
    monkeypatch.setattr(_parts, "BLOCK_BYTES", 24)  # so that seven positions take three blocks
    if kernel == "torch":
        monkeypatch.setattr(_parts, "LONGEST", 0)
    layer, x = build(**options), inputs().requires_grad_()
    y, expected = layer(x).y_BTD, loop(layer, x)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)  # angles are float32
    for got, wanted in zip(gradients(y, layer, x), gradients(expected, layer, x)):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"num_kv_heads": 2, "sliding_window": 3}], ids=["plain", "window"])
@pytest.mark.parametrize("cuts", [(1,) * 7, (4, 3), (2, 1, 4)])
def test_split_and_carry_equals_whole(options, cuts):
    layer, x = build(**options), inputs()
    cache = layer.new_cache()
    parts = [layer(piece, cache=cache).y_BTD for piece in x.split(list(cuts), 1)]
    torch.testing.assert_close(torch.cat(parts, 1), layer(x).y_BTD)
    assert cache.length == 7


def test_the_cache_keeps_its_content_when_it_grows():
    layer, x = build(num_heads=1), inputs(T=70, B=1)
    cache = layer.new_cache()
    parts = [layer(piece, cache=cache).y_BTD for piece in x.split([60, 10], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), layer(x).y_BTD)


def test_no_token_sees_the_future():
    layer, x = build(num_kv_heads=2), inputs()
    changed = x.clone()
    changed[:, 4:] += 1
    torch.testing.assert_close(layer(x).y_BTD[:, :4], layer(changed).y_BTD[:, :4], rtol=0, atol=0)
    assert (layer(x).y_BTD[:, 4:] - layer(changed).y_BTD[:, 4:]).abs().min() > 0


def test_only_distances_count():
    layer, x = build(), inputs()
    positions = torch.arange(7).unsqueeze(0)
    torch.testing.assert_close(layer(x, positions).y_BTD, layer(x, positions + 40).y_BTD, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(layer(x, positions).y_BTD, layer(x, 2 * positions).y_BTD, rtol=1e-4, atol=1e-5)


def test_padding_on_the_left_changes_nothing():
    layer, x = build(num_kv_heads=2), inputs()
    padded = torch.cat((torch.full((2, 3, DIM), 9.0, dtype=x.dtype), x), 1)
    mask = torch.tensor([[False] * 3 + [True] * 7] * 2)
    positions = torch.cat((torch.zeros(3, dtype=torch.long), torch.arange(7))).unsqueeze(0)
    torch.testing.assert_close(layer(padded, positions, mask_BT=mask).y_BTD[:, 3:], layer(x).y_BTD)
    cache = layer.new_cache()
    layer(padded[:, :6], positions[:, :6], cache, mask[:, :6])
    torch.testing.assert_close(layer(padded[:, 6:], positions[:, 6:], cache).y_BTD[:, 1:], layer(x).y_BTD[:, 4:])


def test_a_window_of_one_passes_values_through():
    layer, x = build(sliding_window=1), inputs()
    values = x @ layer.qkv.weight[2 * DIM :].T
    torch.testing.assert_close(layer(x).y_BTD, values @ layer.out.weight.T)


def test_bfloat16_stays_near_float64():
    layer, x = build(num_heads=2, qk_norm="head"), inputs(T=40)
    expected = layer(x).y_BTD
    half = Attention(DIM, layer.config)
    half.load_state_dict(layer.state_dict())
    half.qkv.bfloat16(), half.out.bfloat16()
    y = half(x.bfloat16()).y_BTD
    assert y.dtype == torch.bfloat16
    assert (y - expected).norm() / expected.norm() < 0.02


def test_the_same_generator_gives_the_same_weights():
    one, two = (Attention(DIM, Config(num_heads=2), torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one.qkv.weight, two.qkv.weight) and torch.equal(one.out.weight, two.out.weight)
    assert 0.015 < one.qkv.weight.std().item() < 0.025


def test_flops_count_what_the_mask_lets_through():
    layer = build(num_heads=2, sliding_window=3)
    pairs = sum(min(t + 1, 3) for t in range(10))
    assert layer.flops_per_token(10) == pytest.approx(2 * (3 * DIM * DIM + DIM * DIM) + 4 * DIM * pairs / 10)


@pytest.mark.parametrize(("options", "message"), [
    ({"num_heads": 5}, "num_heads = 5 does not divide dim = 12"),
    ({"num_heads": 6, "num_kv_heads": 4}, "num_kv_heads = 4 does not divide num_heads = 6"),
    ({"num_heads": 12}, "heads of even width"),
    ({"num_heads": 2, "head_dim": 3}, "head_dim is 3"),
    ({"num_heads": 0}, "num_heads is 0"),
    ({"num_heads": 2, "clip_qkv": -1.0}, "clip_qkv is -1.0"),
    ({"num_heads": 2, "softcap": 0}, "softcap is 0"),
    ({"num_heads": 2, "rotary_dim": 3}, "rotary_dim is 3"),
    ({"num_heads": 2, "rotary_dim": 8}, "rotary_dim is 8; expected at most head_dim = 6"),
    ({"num_heads": 2, "rope_scaling": {"type": "ntk"}}, "'ntk' is not supported; expected none, linear, dynamic"),
    ({"num_heads": 2, "rope_scaling": {"type": "linear"}}, "linear needs factor; got nothing"),
    ({"num_heads": 2, "rope_scaling": {"type": "linear", "factor": 0}}, "factor is 0"),
])
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        Attention(DIM, Config(**options))


def test_config_round_trips_and_the_example_runs():
    config = Config(num_heads=2, rope_scaling={"type": "linear", "factor": 2.0})
    assert from_dict(Config, to_dict(config)) == config
    with pytest.raises(MixwellError, match="qk_norm: 'both' is not one of none, head, full"):
        from_dict(Config, {"num_heads": 2, "qk_norm": "both"})
    arguments = example(torch.Generator().manual_seed(0))
    x = arguments.pop("x_BTD")
    assert Attention(**arguments)(x).y_BTD.shape == x.shape


def test_a_second_derivative_is_refused():
    layer, x = build(), inputs().requires_grad_()
    (grad,) = torch.autograd.grad(layer(x).y_BTD.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
