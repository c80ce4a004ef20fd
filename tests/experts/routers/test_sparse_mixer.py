"""SparseMixer against the exact gradient by enumeration; its promise: exact for quadratic loss."""

import math

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.core.routing import Context
from mixwell.experts.routers.sparse_mixer import Config, SparseMixer, reachable, route, straight_through


def problem(generator, cubic=0.0):
    """Logits of one token, outputs of four experts, and a loss of the layer's output."""
    logits = torch.randn(4, generator=generator, dtype=torch.float64, requires_grad=True)
    outputs = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    a, b = torch.randn(3, 3, generator=generator).double(), torch.randn(3, generator=generator).double()

    def loss(y):
        return y @ a @ y / 2 + b @ y + cubic * y.pow(3).sum() + 1.7

    return logits, outputs, loss


def exact(logits, outputs, loss):
    """d/dh of E_{D ~ pi}[f(pi_D E_D)], by enumeration."""
    pi = logits.softmax(-1)
    return torch.autograd.grad(sum(pi[i] * loss(pi[i] * outputs[i]) for i in range(4)), logits)[0]


def expected(logits, outputs, loss, chance_of_half):
    """The estimator's mean over draws of the expert and of the coin, by enumeration."""
    total = torch.zeros(4, dtype=torch.float64)
    for i in range(4):
        for half in (False, True):
            pi = logits.softmax(-1)
            weight = straight_through(pi[i].view(1, 1), torch.tensor([[half]])).squeeze()
            gradient = torch.autograd.grad(loss(weight * outputs[i]), logits)[0]
            chance = chance_of_half(i, pi) if half else 1 - chance_of_half(i, pi)
            total += pi[i].detach() * chance * gradient
    return total


def test_exact_for_quadratic_loss(generator):
    for _ in range(5):
        case = problem(generator)
        torch.testing.assert_close(expected(*case, lambda i, pi: 0.5), exact(*case), rtol=1e-9, atol=1e-10)


def test_better_than_the_plain_gate_gradient_for_other_losses(generator):
    ours, plain = 0.0, 0.0
    for _ in range(20):
        logits, outputs, loss = problem(generator, cubic=0.3)
        truth = exact(logits, outputs, loss)
        pi = logits.softmax(-1)
        gate = torch.autograd.grad(sum(pi[i].detach() * loss(pi[i] * outputs[i]) for i in range(4)), logits)[0]
        ours += (expected(logits, outputs, loss, lambda i, pi: 0.5) - truth).norm().item()
        plain += (gate - truth).norm().item()
    assert 0 < ours < 0.3 * plain


def test_whole_output_at_the_likeliest_expert_costs_exactness_there_only(generator):
    """Euler's slope at the end stands for the mid-point's at that one expert, and nowhere else."""
    logits, outputs, loss = problem(generator)
    pi = logits.softmax(-1)
    best = int(pi.argmax())
    found = expected(logits, outputs, loss, lambda i, pi: 0.0 if i == best else 0.5)
    y = pi[best].detach() * outputs[best]
    by_choice = torch.autograd.grad(pi[best], logits)[0] * ((slope(loss, y) - slope(loss, y / 2)) @ y)
    torch.testing.assert_close(found - exact(logits, outputs, loss), by_choice, rtol=1e-9, atol=1e-10)


def slope(loss, at):
    at = at.detach().requires_grad_()
    return torch.autograd.grad(loss(at), at)[0]


def test_draws_follow_the_scores_and_half_of_them_are_halved(generator):
    logits = torch.randn(4, generator=generator, dtype=torch.float64)
    rows = logits.expand(20000, 4)
    for euler in (True, False):
        routing = route(rows, Config(jitter=math.inf, euler_at_best=euler), generator)
        share = routing.load_E() / 20000
        torch.testing.assert_close(share, logits.softmax(-1).float(), rtol=0, atol=0.015)
        drawn = routing.indices_TK[:, 0]
        ratio = routing.weights_TK[:, 0] / logits.softmax(-1)[drawn]
        assert set(ratio.round(decimals=9).tolist()) == {0.5, 1.0}
        for i in range(4):
            halved = (ratio[drawn == i] < 0.75).float().mean()
            assert abs(halved - (0.0 if euler and i == logits.argmax() else 0.5)) < 0.05


@pytest.mark.parametrize("row", [[1.0, 0.85, 0.79, -3.0], [-1.0, -1.2, -1.3, -9.0], [0.0, 0.0, -1.0, -1e-9]])
def test_experts_out_of_reach_are_never_drawn(generator, row):
    top = max(row)
    within = [v == top or (top - v) / max(abs(v), top) <= 0.2 for v in row]
    logits = torch.tensor([row] * 500, dtype=torch.float64)
    assert reachable(logits, 0.1)[0].tolist() == within
    routing = route(logits, Config(), generator)
    assert ((routing.load_E() > 0) == torch.tensor(within)).all()
    assert (routing.scores_TE[0] > 0).tolist() == within
    assert reachable(logits, math.inf).all()


def test_evaluation_takes_the_likeliest_whole(generator):
    router, x = SparseMixer(6, 4, Config(jitter=math.inf), generator).eval(), torch.randn(9, 6, generator=generator)
    routing = router(x, Context())
    best = router.logits(x).softmax(-1).max(-1)
    assert torch.equal(routing.indices_TK[:, 0], best.indices)
    torch.testing.assert_close(routing.weights_TK[:, 0], best.values)


def test_gradient_in_evaluation(generator):
    logits = torch.randn(5, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda h: route(h, Config(jitter=math.inf)).weights_TK, (logits,))


def test_refuses(generator):
    with pytest.raises(ValueError, match="above 0"):
        Config(jitter=0.0)
    with pytest.raises(MixwellError, match=r"give Context\(generator"):
        SparseMixer(6, 4, Config(), generator)(torch.zeros(2, 6), Context())


def test_a_token_has_one_expert(generator):
    assert SparseMixer(6, 4, Config(), generator).experts_per_token == 1
