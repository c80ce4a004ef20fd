"""Competition against a plain loop, and its promise: the router learns who would have won."""

import math

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.core.routing import Context
from mixwell.experts.routers.competition import Competition, Config, choose, distillation


def softmax(values):
    total = sum(math.exp(v) for v in values)
    return [math.exp(v) / total for v in values]


def bound(config, generator, experts=4, dim=6):
    """A training router bound to linear experts, with those experts."""
    weights = torch.randn(experts, dim, dim, generator=generator, dtype=torch.float64, requires_grad=True)
    router = Competition(dim, experts, config, generator).double().train()
    router.bind(lambda x: torch.einsum("edc,tc->ted", weights, x).norm(dim=-1))
    return router, weights


@pytest.mark.parametrize("measure", ["mse", "kl"])
def test_competition_step_agrees_with_a_plain_loop(generator, measure):
    router, experts = bound(Config(rate=1.0, distill=0.7, measure=measure), generator)
    x = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    routing = router(x, Context(generator=generator))
    losses = []
    for t in range(5):
        norms = [math.hypot(*(experts[e] @ x[t]).tolist()) for e in range(4)]
        best = sorted(range(4), key=lambda e: -norms[e])[:2]
        weights = softmax([norms[e] for e in best])
        assert routing.indices_TK[t].tolist() == best
        assert routing.weights_TK[t].tolist() == pytest.approx(weights)
        assert routing.scores_TE[t].tolist() == pytest.approx(softmax(norms))
        policy = softmax((router.weight @ x[t]).tolist())
        target = [weights[best.index(e)] if e in best else 0.0 for e in range(4)]
        if measure == "mse":
            losses.append(sum((p - w) ** 2 for p, w in zip(policy, target)) / 4)
        else:
            losses.append(sum(w * math.log(w / p) for p, w in zip(policy, target) if w))
    assert routing.losses["distill"].item() == pytest.approx(0.7 * sum(losses) / 5)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_other_steps_are_top_k(generator, k):
    router, _ = bound(Config(k=k, rate=0.0), generator)
    x = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    routing = router(x, Context())
    for t in range(5):
        policy = softmax((router.weight @ x[t]).tolist())
        best = sorted(range(4), key=lambda e: -policy[e])[:k]
        total = sum(policy[e] for e in best) if k > 1 else 1.0
        assert routing.indices_TK[t].tolist() == best
        assert routing.weights_TK[t].tolist() == pytest.approx([policy[e] / total for e in best])
    assert not routing.losses


@pytest.mark.parametrize("measure", ["mse", "kl"])
def test_gradient(generator, measure):
    logits = torch.randn(4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.randn(4, 5, generator=generator, dtype=torch.float64).softmax(-1)
    assert torch.autograd.gradcheck(lambda h: distillation(h, target, Config(measure=measure)), (logits,))
    assert torch.autograd.gradcheck(lambda h: choose(h, 2)[1], (logits,))


def test_weights_train_the_experts_and_distillation_the_router_alone(generator):
    router, experts = bound(Config(rate=1.0), generator)
    routing = router(torch.randn(5, 6, generator=generator, dtype=torch.float64), Context(generator=generator))
    by_weights = torch.autograd.grad(routing.weights_TK[:, 0].sum(), [experts, router.weight], retain_graph=True,
                                     allow_unused=True)
    by_loss = torch.autograd.grad(routing.losses["distill"], [experts, router.weight], allow_unused=True)
    assert by_weights[0].abs().max() > 0 and by_weights[1] is None
    assert by_loss[0] is None and by_loss[1].abs().max() > 0


def test_distilled_router_foresees_the_winner(generator):
    """Experts that answer one half of the inputs each: a linear router can learn who responds most."""
    router = Competition(6, 2, Config(k=1, rate=1.0, distill=1.0, measure="kl"), generator).train()
    router.bind(lambda x: torch.stack((x[:, 0].relu(), (-x[:, 0]).relu()), -1))
    optimiser = torch.optim.Adam(router.parameters(), lr=0.05)
    x = torch.randn(128, 6, generator=generator)

    def agreement():
        won = router.train()(x, Context(generator=generator)).indices_TK
        return (router.eval()(x, Context()).indices_TK == won).float().mean().item()

    before = agreement()
    for _ in range(60):
        loss = router.train()(x, Context(generator=generator)).losses["distill"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert before < 0.9 < 0.97 < agreement()


def test_competitions_come_at_their_rate_and_never_in_evaluation(generator):
    router, _ = bound(Config(rate=0.3), generator)
    x = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    held = sum(bool(router(x, Context(generator=generator)).losses) for _ in range(300))
    assert 60 < held < 120
    assert not any(router.eval()(x, Context()).losses for _ in range(5))


def test_padding_does_not_distil(generator):
    router, _ = bound(Config(rate=1.0), generator)
    x, mask = torch.randn(6, 6, generator=generator, dtype=torch.float64), torch.arange(6) < 4
    with_padding = router(x, Context(mask_T=mask, generator=generator)).losses["distill"]
    torch.testing.assert_close(with_padding, router(x[:4], Context(generator=generator)).losses["distill"])


@pytest.mark.parametrize("options, message", [
    ({"k": 0}, "at least 1"), ({"rate": 1.5}, "0 to 1"), ({"distill": -1.0}, "0 or more"),
])
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)


def test_refuses_to_compete_without_experts(generator):
    router, x = Competition(6, 4, Config(rate=1.0), generator).train(), torch.zeros(2, 6)
    with pytest.raises(MixwellError, match="bind"):
        router(x, Context(generator=generator))
    with pytest.raises(MixwellError, match=r"give Context\(generator"):
        router(x, Context())
    assert router.needs_responses
