"""The mixture policy against torch's distributions and loops, and what its gate's estimator promises."""

import pytest
import torch
from torch import distributions as td

from mixwell.core.config import from_dict, to_dict
from mixwell.experts.policy import Config, GaussianMixturePolicy, Policy, example, expert_loss, gate_loss


def build(generator, **options):
    return GaussianMixturePolicy(3, Config(**{"action_dim": 2, "hidden_dim": 8, **options}), generator).double()


def states(generator, count=5):
    return torch.randn(count, 3, generator=generator, dtype=torch.float64)


def loop(layer, s):
    """(weights, mean, log_std) of one state."""
    c = layer.config
    h = layer.hidden_weight @ s + layer.hidden_bias
    out = layer.head_weight @ torch.where(h > 0, h, 0 * h) + layer.head_bias
    e = torch.exp(out[: c.num_experts])
    middle = c.num_experts * (1 + c.action_dim)
    mean = out[c.num_experts : middle].view(c.num_experts, c.action_dim)
    log_std = out[middle:].view(c.num_experts, c.action_dim)
    low, high = torch.full_like(log_std, c.log_std_min), torch.full_like(log_std, c.log_std_max)
    return e / e.sum(), mean, torch.minimum(torch.maximum(log_std, low), high)


@pytest.mark.parametrize("options", [{}, {"num_experts": 1}, {"log_std_min": -0.1, "log_std_max": 0.1}])
def test_forward_and_gradient_agree_with_a_loop(generator, options):
    layer = build(generator, **options)
    s = states(generator).requires_grad_()
    found, expected = layer(s), [torch.stack(parts) for parts in zip(*(loop(layer, row) for row in s))]
    probes = [torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in expected]
    leaves = [s, *layer.parameters()]
    sums = [sum((t * p).sum() for t, p in zip(values, probes)) for values in (found[:3], expected)]
    for a, b in zip(found[:3], expected):
        torch.testing.assert_close(a, b)
    for a, b in zip(*(torch.autograd.grad(total, leaves) for total in sums)):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("squash", [False, True])
def test_densities_are_those_of_torch_distributions(generator, squash):
    policy = build(generator, squash=squash)(states(generator))
    normal = td.Normal(policy.mean_BKA, policy.log_std_BKA.exp())
    each = td.TransformedDistribution(normal, td.TanhTransform(cache_size=1)) if squash else normal
    actions, log_prob = policy.sample(torch.Generator().manual_seed(1))
    if not squash:
        torch.testing.assert_close(log_prob, normal.log_prob(actions).sum(-1))
        mixture = td.MixtureSameFamily(td.Categorical(policy.weights_BK), td.Independent(normal, 1))
        torch.testing.assert_close(policy.log_prob(actions[:, 0]), mixture.log_prob(actions[:, 0]))
    else:
        assert actions.abs().max() < 1
        torch.testing.assert_close(log_prob, each.log_prob(actions.clamp(-1 + 1e-9, 1 - 1e-9)).sum(-1), rtol=1e-4,
                                   atol=1e-4)
        a = actions[:, 0]
        by_hand = torch.stack([policy.weights_BK[:, k] * each.log_prob(a.unsqueeze(1).expand_as(actions))[:, k].sum(-1)
                               .exp() for k in range(4)]).sum(0).log()
        torch.testing.assert_close(policy.log_prob(a), by_hand, rtol=1e-5, atol=1e-5)


def test_the_squashed_density_integrates_to_one(generator):
    policy = build(generator, action_dim=1)(states(generator, 1))
    points = torch.tanh(torch.linspace(-40, 40, 40001, dtype=torch.float64))[10000:30001]
    points = points[points.abs() < 1]
    wide = Policy(*(t.expand(len(points), *t.shape[1:]) for t in policy[:3]), True)
    density = wide.log_prob(points.unsqueeze(1)).exp()
    assert torch.trapezoid(density, points).item() == pytest.approx(1, abs=1e-3)


def test_the_gate_learns_how_often_each_expert_is_best(generator):
    """The estimator's promise: its loss is least at the frequencies, and its mean gradient vanishes there."""
    q = torch.randn(4000, 3, generator=generator, dtype=torch.float64) + torch.tensor([0.5, 0.0, -0.5])
    frequency = torch.bincount(q.argmax(-1), minlength=3).double() / 4000
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    for _ in range(300):
        (grad,) = torch.autograd.grad(gate_loss(logits.softmax(-1).expand(4000, 3), q), logits)
        with torch.no_grad():
            logits -= 3 * grad
    torch.testing.assert_close(logits.softmax(-1), frequency, rtol=1e-3, atol=1e-3)


def test_the_losses_are_the_sums_written_out(generator):
    q = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    w = torch.rand(6, 3, generator=generator, dtype=torch.float64)
    logp = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    gate = best = every = 0.0
    for b in range(6):
        top = max(range(3), key=lambda i: q[b, i].item())
        gate += sum((w[b, i] - int(i == top)) ** 2 for i in range(3)) / 6
        best += (0.3 * logp[b, top] - q[b, top]) / 6
        every += sum(0.3 * logp[b, i] - q[b, i] for i in range(3)) / 18
    torch.testing.assert_close(gate_loss(w, q), gate)
    torch.testing.assert_close(expert_loss(logp, q, 0.3), best)
    torch.testing.assert_close(expert_loss(logp, q, 0.3, through="all"), every)


@pytest.mark.parametrize(("experts", "kept"), [(2, True), (1, False)])
def test_two_optima_are_both_kept_where_one_gaussian_drops_one(generator, experts, kept):
    """A reward with two equal peaks: experts that start apart end on one each, and the gate stays between them."""
    layer = GaussianMixturePolicy(1, Config(action_dim=1, num_experts=experts, hidden_dim=8), generator)
    with torch.no_grad():
        layer.head_weight.mul_(0.1)
        layer.head_bias[experts : 2 * experts] = torch.tensor([-0.3, 0.3])[:experts]
    optimiser = torch.optim.Adam(layer.parameters(), lr=3e-2)
    s = torch.ones(64, 1)
    for _ in range(80):
        policy = layer(s)
        actions, log_prob = policy.sample(generator)
        q = 4 * torch.exp(-(actions.squeeze(-1).abs() - 0.6) ** 2 / 0.05)
        loss = expert_loss(log_prob, q, alpha=0.1, through="all") + gate_loss(policy.weights_BK, q.detach())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    actions = torch.stack([layer(s[:1]).act(generator).squeeze() for _ in range(200)])
    near = [((actions - peak).abs() < 0.3).float().mean().item() for peak in (-0.6, 0.6)]
    assert (min(near) > 0.15) is kept and sum(near) > 0.8


def test_acting_draws_experts_by_weight(generator):
    weights = torch.tensor([[0.75, 0.25]]).expand(2000, 2)
    mean = torch.tensor([[[-5.0], [5.0]]]).expand(2000, 2, 1)
    policy = Policy(weights, mean, torch.full((2000, 2, 1), -3.0), False)
    actions = policy.act(generator)
    assert actions.shape == (2000, 1) and abs((actions < 0).float().mean() - 0.75) < 0.04
    assert (policy.best() == -5).all()
    assert (policy._replace(squash=True).best() == torch.tanh(torch.tensor(-5.0))).all()


def test_same_generator_same_bits_and_the_example_runs():
    arguments = example(torch.Generator().manual_seed(0))
    s = arguments.pop("state_BD")
    layer = GaussianMixturePolicy(**arguments, generator=torch.Generator().manual_seed(5))
    one, two = (layer(s).sample(torch.Generator().manual_seed(1))[0] for _ in range(2))
    assert torch.equal(one, two) and one.shape == (5, 4, 2)
    assert from_dict(Config, to_dict(layer.config)) == layer.config


@pytest.mark.parametrize(("options", "message"), [
    ({"action_dim": 0}, "action_dim is 0"), ({"num_experts": 0}, "num_experts is 0"), ({"hidden_dim": 0}, "hidden_dim"),
    ({"log_std_min": 3.0}, "log_std_min is 3.0, log_std_max 2.0"),
])
def test_refuses(generator, options, message):
    with pytest.raises(ValueError, match=message):
        build(generator, **options)
