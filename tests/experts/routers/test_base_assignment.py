"""BASE routing against every possible assignment, against scipy, and in the limits."""

import itertools
import math

import numpy as np
import pytest
import torch

from mixwell.core.routing import Context
from mixwell.experts.routers.base_assignment import BaseAssignment, Config, balanced_assignment


def best_sum(affinity, experts):
    """The largest sum over all assignments with at most ceil(T / E) tokens an expert, by trying each."""
    tokens = len(affinity)
    slots = math.ceil(tokens / experts)
    return max(sum(affinity[t][e] for t, e in enumerate(choice))
               for choice in itertools.product(range(experts), repeat=tokens)
               if all(choice.count(e) <= slots for e in range(experts)))


@pytest.mark.parametrize("tokens", [3, 5, 6, 7])
def test_agrees_with_trying_every_assignment(generator, tokens):
    for _ in range(3):
        affinity = torch.randn(tokens, 3, generator=generator, dtype=torch.float64)
        expert = balanced_assignment(affinity, 1e-4)
        found = sum(affinity[t, e].item() for t, e in enumerate(expert.tolist()))
        assert found == pytest.approx(best_sum(affinity.tolist(), 3), abs=1e-2)
        assert torch.bincount(expert, minlength=3).max() <= math.ceil(tokens / 3)


@pytest.mark.parametrize("tolerance, gap", [(0.1, 10.0), (1e-5, 0.01)])
def test_stays_within_its_tolerance_of_the_optimum(generator, tolerance, gap):
    scipy = pytest.importorskip("scipy.optimize")
    affinity = torch.randn(96, 6, generator=generator) + torch.randn(6, generator=generator) * 3
    slots = np.repeat(affinity.numpy(), 16, axis=1)
    optimum = slots[scipy.linear_sum_assignment(slots, maximize=True)].sum()
    expert = balanced_assignment(affinity, tolerance)
    found = affinity.gather(1, expert.unsqueeze(1)).sum().item()
    assert torch.bincount(expert).tolist() == [16] * 6
    assert -1e-3 <= optimum - found <= gap  # at most 96 tokens * tolerance * range


def test_what_all_tokens_share_changes_nothing(generator):
    """A popular expert gains nothing from its popularity: only differences between tokens count."""
    affinity = torch.randn(24, 4, generator=generator, dtype=torch.float64)
    shifted = affinity + torch.tensor([50.0, -30.0, 0.0, 10.0]) + torch.randn(24, 1, generator=generator)
    for tolerance in (0.1, 1e-3):
        assert torch.equal(balanced_assignment(affinity, tolerance), balanced_assignment(shifted, tolerance))


def test_equal_affinities_and_small_cases():
    assert torch.bincount(balanced_assignment(torch.zeros(8, 4), 0.01)).tolist() == [2] * 4
    assert balanced_assignment(torch.zeros(5, 1), 0.01).tolist() == [0] * 5
    assert balanced_assignment(torch.zeros(0, 4), 0.01).shape == (0,)


def test_training_balances_and_inference_is_greedy(generator):
    router, x = BaseAssignment(6, 4, Config(), generator), torch.randn(32, 6, generator=generator) + 1
    routing = router.train()(x, Context())
    assert routing.load_E().tolist() == [8] * 4
    assert torch.equal(routing.indices_TK, router(x, Context()).indices_TK)
    greedy = router.eval()(x, Context())
    assert torch.equal(greedy.indices_TK[:, 0], router.logits(x).argmax(-1)) and greedy.load_E().max() > 8
    mask = torch.arange(32) < 20
    padded = router.train()(x, Context(mask_T=mask))
    assert padded.load_E(mask).tolist() == [5] * 4
    assert torch.equal(padded.indices_TK[~mask], greedy.indices_TK[~mask])


def test_weight_is_the_sigmoid_of_the_affinity_and_has_a_gradient(generator):
    router, x = BaseAssignment(6, 4, Config(), generator).double(), torch.randn(8, 6, generator=generator).double()
    routing = router.train()(x, Context())
    for t, e in enumerate(routing.indices_TK[:, 0].tolist()):
        dot = sum(a * b for a, b in zip(x[t].tolist(), router.weight[e].tolist()))
        assert routing.weights_TK[t, 0].item() == pytest.approx(1 / (1 + math.exp(-dot)))
    assert torch.autograd.gradcheck(lambda v: router(v, Context()).weights_TK, (x.clone().requires_grad_(),))


def test_refuses():
    with pytest.raises(ValueError, match="1e-6 to 1"):
        Config(tolerance=0.0)
    with pytest.raises(ValueError, match="not finite"):
        balanced_assignment(torch.tensor([[1.0, float("nan")], [0.0, 1.0]]), 0.01)


def test_a_token_has_one_expert(generator):
    assert BaseAssignment(6, 4, Config(), generator).experts_per_token == 1
