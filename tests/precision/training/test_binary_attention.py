"""BiPFT's maps and attention beside loops, and its polynomials, which are exact with the true residuals."""

import math

import pytest
import torch

from mixwell.precision.training.binary_attention import (
    BinaryAttention,
    BinaryMap,
    Config,
    estimated,
    scaled_share,
    scaled_sign,
)
from tests.contracts._tools import fresh


def s(value):
    return 1.0 if value >= 0 else -1.0


def mean(values):
    return sum(values) / len(values)


def binary(rows):
    flat = [value for row in rows for value in row]
    centre = mean(flat)
    alpha = mean([abs(value - centre) for value in flat])
    return [[alpha * s(value - centre) for value in row] for row in rows]


def test_a_map_and_its_gradients_against_a_loop():
    g = fresh(1)
    x, weight, dy = (torch.randn(shape, generator=g) for shape in ((4, 5), (3, 5), (4, 3)))
    module = BinaryMap((3, 5), Config(), g)
    y = module(x.requires_grad_(), weight.requires_grad_())
    leaves = (x, weight, module.shift, module.size.size)
    dx, dw, dc, da = torch.autograd.grad(y, leaves, dy)
    X, W, G = x.tolist(), binary(weight.tolist()), dy.tolist()
    a = 2 * mean([abs(value) for row in X for value in row])
    assert module.size.size.item() == pytest.approx(a, rel=1e-5)
    want = [[a * sum(s(u) * v for u, v in zip(row, column)) for column in W] for row in X]
    torch.testing.assert_close(y, torch.tensor(want))
    back = [[sum(G[n][m] * W[m][d] for m in range(3)) for d in range(5)] for n in range(4)]
    want_x = [[back[n][d] * (abs(X[n][d]) <= a) for d in range(5)] for n in range(4)]
    torch.testing.assert_close(dx, torch.tensor(want_x))
    torch.testing.assert_close(dc, torch.tensor(want_x).sum(0))
    want_w = [[sum(G[n][m] * a * s(X[n][d]) for n in range(4)) for d in range(5)] for m in range(3)]
    torch.testing.assert_close(dw, torch.tensor(want_w))
    slope = sum(back[n][d] * s(X[n][d]) for n in range(4) for d in range(5)) / math.sqrt(20)
    assert da.item() == pytest.approx(slope, rel=1e-4)


def test_shares_are_all_or_nothing_with_the_slopes_of_learned_steps():
    share, size = torch.tensor([0.02, 0.3, 0.9, 0.05]), torch.tensor(0.2)
    kept = scaled_share(share.requires_grad_(), size.requires_grad_())
    assert kept.tolist() == pytest.approx([0, 0.2, 0.2, 0])
    dp, da = torch.autograd.grad(kept.sum(), (share, size))
    assert dp.tolist() == [1, 0, 0, 1]
    assert da.item() == pytest.approx((0 - 0.1) + 1 + 1 + (0 - 0.25), rel=1e-5)


def test_the_polynomials_are_exact_with_the_true_residuals():
    g = fresh(2)
    Q, K = torch.randn(2, 1, 6, 4, generator=g), torch.randn(2, 1, 6, 4, generator=g)
    Q_b, K_b = (scaled_sign(value, torch.tensor(0.8)) for value in (Q, K))
    parts = [value.squeeze(1) for value in (Q_b, Q - Q_b, K_b, K - K_b)]
    torch.testing.assert_close(estimated(Q_b @ K_b.mT, *parts), Q @ K.mT)
    full = (Q @ K.mT - Q_b @ K_b.mT)[0, 0]
    left, values, right = torch.linalg.svd(full)
    errors = []
    for rank in (0, 1, 2, 6):
        q_p = (left[:, :rank] * values[:rank]).unsqueeze(0)
        k_m = right[:rank].T.unsqueeze(0)
        zero = torch.zeros_like(k_m)
        whole = estimated((Q_b @ K_b.mT)[:1], zero, q_p, k_m, zero)
        errors.append(float((whole - (Q @ K.mT)[:1]).norm()))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-4 < errors[1] < errors[0]


@pytest.mark.parametrize(("rank", "causal"), [(0, True), (1, True), (2, False)])
def test_attention_against_a_loop(rank, causal):
    g, T, D, H = fresh(3), 4, 9, 3  # of odd width, so that no sum of signs is nothing
    layer = BinaryAttention(D, H, Config(rank=rank), g, causal)
    x = torch.randn(1, T, D, generator=g)
    y = layer(x)
    X = x[0].tolist()

    def mapped(rows, number):
        a, W = layer.maps[number].size.size.item(), binary(layer.weights[number].tolist())
        return [[a * sum(s(u) * v for u, v in zip(row, column)) for column in W] for row in rows]

    q, k, v = ([[s(value) * layer.sizes[i].size.item() for value in row] for row in mapped(X, i)] for i in range(3))
    E = [[sum(u * w for u, w in zip(row, line)) for line in layer.estimates.tolist()] for row in X]
    mixed = [[0.0] * D for _ in range(T)]
    for h in range(H):
        own = range(3 * h, 3 * h + 3)
        for t in range(T):
            scores = []
            for u in range(t + 1 if causal else T):
                score = sum(q[t][i] * k[u][i] for i in own)
                for r in range(rank):
                    q_m, q_p, k_m, k_p = E[t][r], E[t][rank + r], E[u][2 * rank + r], E[u][3 * rank + r]
                    score += q_m * k_p + q_p * k_m + q_p * k_p
                scores.append(score / math.sqrt(3))
            total = sum(math.exp(score) for score in scores)
            a = layer.sizes[3].size.item()
            for u, score in enumerate(scores):
                p = a * min(max(round(math.exp(score) / total / a), 0), 1)
                for i in own:
                    mixed[t][i] += p * (v[u][i] + (E[u][4 * rank] if rank else 0.0))
    torch.testing.assert_close(y[0], torch.tensor(mapped(mixed, 3)), rtol=1e-4, atol=1e-4)
    later = x.clone()
    later[0, -1] += 5
    assert torch.equal(layer(later)[0, 0], y[0, 0]) == causal


def test_every_parameter_learns():
    layer = BinaryAttention(8, 2, Config(), fresh(4))
    layer(torch.randn(3, 5, 8, generator=fresh(5))).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in layer.parameters())


def test_refusals():
    with pytest.raises(ValueError, match="rank is -1; expected at least 0"):
        Config(rank=-1)
    with pytest.raises(ValueError, match="dim is 8; expected a multiple of 3 heads"):
        BinaryAttention(8, 3, Config(), fresh())
