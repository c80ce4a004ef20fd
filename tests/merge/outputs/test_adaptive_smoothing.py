"""Adaptive smoothing: probabilities are mixed, the certificate holds against every other net, the gate's loss."""

import math

import pytest
import torch
from torch.nn import functional as F

from mixwell.merge.outputs.adaptive_smoothing import (
    AdaptiveSmoothing,
    Config,
    gate_loss,
    margin,
    mixed,
    needed_margin,
)


def test_probabilities_are_mixed_and_not_logits(generator):
    g, h = (torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    found = mixed(g, h, 0.3)
    torch.testing.assert_close(found.exp(), 0.7 * g.softmax(-1) + 0.3 * h.softmax(-1))
    torch.testing.assert_close(mixed(g, h, 0.0), g.log_softmax(-1))
    torch.testing.assert_close(mixed(g, h, 1.0), h.log_softmax(-1))
    each = mixed(g, h, torch.tensor([0.1, 0.9, 0.5, 0.2]))
    torch.testing.assert_close(each[1].exp(), 0.1 * g[1].softmax(-1) + 0.9 * h[1].softmax(-1))
    leaves = g.requires_grad_(), h.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: mixed(a, b, 0.3), leaves)


def test_no_net_beside_a_certified_one_changes_the_class(generator):
    alpha = 0.7
    robust = 2 * torch.randn(500, 4, generator=generator)
    worst = torch.full((500, 4), -1e4)
    runner_up = robust.topk(2, dim=-1).indices[:, 1]
    worst[torch.arange(500), runner_up] = 1e4  # all of the accurate net's mass against the robust one
    kept = mixed(worst, robust, alpha).argmax(-1) == robust.argmax(-1)
    certified = margin(robust) > needed_margin(alpha)
    assert torch.equal(kept, certified) and 0 < int(certified.sum()) < 500
    assert needed_margin(0.4) == math.inf and needed_margin(1.0) == 0


def test_the_gate_gets_the_paper_s_loss_and_learns_what_was_attacked(generator):
    gamma, labels = torch.randn(6, generator=generator), torch.tensor([0, 1, 2, 0, 1, 2])
    attacked = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0, 1.0])
    logs = torch.randn(6, 3, generator=generator).log_softmax(-1)
    total = 0.0
    for place in range(6):
        p = torch.sigmoid(gamma[place])
        told = -float(torch.log(p if attacked[place] else 1 - p))
        missed = -float(logs[place, labels[place]])
        total += (1 if attacked[place] else 2) * (told + 0.5 * missed + 0.1 * told * missed) / 6
    assert float(gate_loss(gamma, attacked, logs, labels)) == pytest.approx(total, rel=1e-5)
    net = AdaptiveSmoothing(5, Config(hidden_dim=8, least=0.2, most=0.95), generator)
    features = torch.randn(200, 5, generator=generator)
    seen = (features[:, 0] > 0).float()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(80):
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(3 * net.gamma(features), seen).backward()
        optimizer.step()
    alpha = net.alpha(features)
    assert float(((alpha > 0.575) == seen.bool()).float().mean()) > 0.9
    assert float(alpha.min()) >= 0.2 and float(alpha.max()) <= 0.95
    assert net(torch.randn(200, 3), torch.randn(200, 3), features).exp().sum(-1).allclose(torch.ones(200))
    with pytest.raises(ValueError, match="0 <= least <= most"):
        Config(least=0.9, most=0.1)
