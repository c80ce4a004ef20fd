"""Attention experts against a loop over tokens, groups and heads; plain attention where all are on; who sees whom."""

import math

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.core.rng import generator as seeded
from mixwell.core.routing import Context
from mixwell.sequence.attention import Attention
from mixwell.sequence.attention import Config as Plain
from mixwell.sequence.attention_experts import AttentionExperts, Config

B, T, D, H, G, P = 2, 6, 8, 4, 2, 4


def mixer(k=1, **options):
    config = Config(num_heads=H, num_kv_heads=G, head_dim=P, router={"method": "top_k", "k": k}, **options)
    made = AttentionExperts(D, config, seeded(1)).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=seeded(2), dtype=torch.float64) * 0.3)
    return made


def turned(x_P, position, theta=10000.0):
    half, found = P // 2, x_P.clone()
    for i in range(half):
        angle = position * theta ** (-2 * i / P)
        a, b = float(x_P[i]), float(x_P[i + half])
        found[i], found[i + half] = a * math.cos(angle) - b * math.sin(angle), b * math.cos(angle) + a * math.sin(angle)
    return found


def loop(made, x, k, scale):
    """One token, group and head at a time."""
    W, O, R = made.qkv.weight, made.out.weight, made.router.weight.double()
    y = torch.zeros_like(x)
    for b in range(len(x)):
        probabilities = (x[b] @ R.T).softmax(-1)
        chosen = [set(row.topk(k).indices.tolist()) for row in probabilities]
        for t in range(T):
            total = sum(float(probabilities[t, g]) for g in chosen[t]) if k > 1 else 1.0
            heads = torch.zeros(H * P, dtype=torch.float64)
            for g in chosen[t]:
                seen = [s for s in range(t + 1) if g in chosen[s]]
                keys = [turned(W[(H + g) * P:(H + g + 1) * P] @ x[b, s], s) for s in seen]
                values = [W[(H + G + g) * P:(H + G + g + 1) * P] @ x[b, s] for s in seen]
                for h in range(g * H // G, (g + 1) * H // G):
                    q = turned(W[h * P:(h + 1) * P] @ x[b, t], t)
                    scores = torch.stack([q @ key for key in keys]) / math.sqrt(P)
                    found = sum(a * v for a, v in zip(scores.softmax(0), values))
                    heads[h * P:(h + 1) * P] = scale * float(probabilities[t, g]) / total * found
            y[b, t] = O @ heads
    return y


@pytest.mark.parametrize(("k", "scale"), [(1, None), (2, None), (1, 0.7)])
def test_a_loop_over_tokens_and_groups(k, scale):
    made = mixer(k, scale=scale)
    x = torch.randn(B, T, D, generator=seeded(3), dtype=torch.float64)
    with torch.no_grad():
        mixed = made(x)
        torch.testing.assert_close(mixed.y_BTD, loop(made, x, k, scale or G), atol=1e-9, rtol=1e-7)
    assert mixed.losses.keys() == {"heads.switch"} and mixed.aux is not None


def test_all_groups_with_an_even_router_are_plain_attention():
    made = mixer(G)
    plain = Attention(D, Plain(num_heads=H, num_kv_heads=G, head_dim=P), seeded(1)).double().eval()
    with torch.no_grad():
        made.router.weight.zero_()
        plain.load_state_dict({name: value for name, value in made.state_dict().items() if "router" not in name})
        x = torch.randn(B, T, D, generator=seeded(3), dtype=torch.float64)
        torch.testing.assert_close(made(x).y_BTD, plain(x).y_BTD, atol=1e-9, rtol=1e-7)


def test_a_token_routed_elsewhere_is_not_seen_and_sees_nothing_here():
    made = mixer(1)
    x = torch.randn(1, T, D, generator=seeded(3), dtype=torch.float64)
    with torch.no_grad():
        mixed = made(x)
        groups = mixed.routing.indices_TK[:, 0].tolist()
        moved = next(t for t in range(T - 1) if len(set(groups[t:])) == 2)
        other = x.clone()
        other[0, moved] *= 1.5  # the same choice, since logits only grow
        apart = (made(other).y_BTD - mixed.y_BTD)[0].abs().amax(1)
    for t in range(moved + 1, T):
        assert (float(apart[t]) > 1e-9) == (groups[t] == groups[moved])


def test_pieces_through_a_cache_and_padding_are_the_whole():
    made = mixer(1)
    x = torch.randn(B, T, D, generator=seeded(3), dtype=torch.float64)
    with torch.no_grad():
        whole, cache = made(x).y_BTD, made.new_cache()
        parts = [made(x[:, a:b], cache=cache).y_BTD for a, b in ((0, 3), (3, 4), (4, 6))]
        torch.testing.assert_close(torch.cat(parts, 1), whole)
        mask = torch.ones(B, T, dtype=torch.bool)
        mask[0, :2] = False
        context = Context(batch_shape=(B, T), mask_T=mask.flatten())
        padded = made(x, positions_BT=(mask.cumsum(1) - 1).clamp_min(0), mask_BT=mask, context=context).y_BTD
        alone = made(x[:1, 2:]).y_BTD
        torch.testing.assert_close(padded[:1, 2:], alone)


def test_options_that_make_no_sense_are_told():
    for words, options in (("does not divide num_heads", {"num_heads": 4, "num_kv_heads": 3}),
                           ("even number", {"num_heads": 2, "head_dim": 3}), ("scale", {"num_heads": 2, "scale": 0.0})):
        with pytest.raises(ValueError, match=words):
            Config(**options)
    with pytest.raises(ValueError, match="heads of even width"):
        AttentionExperts(6, Config(num_heads=4))
    with pytest.raises(MixwellError, match="looks at other tokens"):
        AttentionExperts(8, Config(num_heads=2, router={"method": "expert_choice"}))
    slow = {"type": "linear", "factor": 2.0}
    scaled = Config(num_heads=2, rope_scaling=slow, rope_theta=500.0, bias=True, balance={})
    mixed = AttentionExperts(8, scaled)(torch.randn(1, 3, 8, generator=seeded(1)))
    assert mixed.aux is None and mixed.losses == {}
