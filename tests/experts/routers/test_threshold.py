"""Threshold routing against a plain loop, and its promise: the smallest set that reaches the mass."""

import math

import pytest
import torch

from mixwell.core.routing import Context
from mixwell.experts.routers.threshold import Config, Threshold, route


def loop(logits, threshold, slots=None, renormalise=False):
    """{(token, expert): weight} in plain Python."""
    wanted = []
    for t, row in enumerate(logits):
        p = [math.exp(v) / sum(math.exp(u) for u in row) for v in row]
        mass = 0.0
        for rank, e in enumerate(sorted(range(len(row)), key=lambda e: -p[e])):
            if mass >= threshold:
                break
            wanted.append((rank, -p[e], t, e))
            mass += p[e]
    kept, counts = {}, {}
    for _, negative, t, e in sorted(wanted):
        counts[e] = counts.get(e, 0) + 1
        if slots is None or counts[e] <= slots:
            kept[t, e] = -negative
    if renormalise:
        totals = {t: sum(w for (u, _), w in kept.items() if u == t) for t, _ in kept}
        kept = {(t, e): w / totals[t] for (t, e), w in kept.items()}
    return kept


@pytest.mark.parametrize("threshold", [0.2, 0.6, 0.9])
@pytest.mark.parametrize("factor, slots", [(None, None), (1.0, 2), (0.1, 1)])
@pytest.mark.parametrize("renormalise", [False, True])
def test_agrees_with_a_plain_loop(generator, threshold, factor, slots, renormalise):
    logits = torch.randn(10, 5, generator=generator, dtype=torch.float64)
    config = Config(threshold=threshold, capacity_factor=factor, renormalise=renormalise)
    expected = torch.zeros(10, 5, dtype=torch.float64)
    for (t, e), weight in loop(logits.tolist(), threshold, slots, renormalise).items():
        expected[t, e] = weight
    torch.testing.assert_close(route(logits, config).dense_TE(), expected)


@pytest.mark.parametrize("renormalise", [False, True])
def test_gradient(generator, renormalise):
    logits = torch.randn(5, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    config = Config(threshold=0.6, renormalise=renormalise)
    assert torch.autograd.gradcheck(lambda h: route(h, config).dense_TE(), (logits,))


def test_kept_mass_reaches_the_threshold_and_one_expert_less_does_not(generator):
    routing = route(torch.randn(200, 16, generator=generator, dtype=torch.float64) * 2, Config(threshold=0.7))
    weights = routing.weights_TK
    smallest = weights.masked_fill(routing.indices_TK < 0, float("inf")).min(-1).values
    assert (weights.sum(-1) >= 0.7).all() and (weights.sum(-1) - smallest < 0.7).all()


def test_fewer_experts_as_the_router_sharpens(generator):
    logits = torch.randn(100, 8, generator=generator)
    counts = [route(logits * s, Config(threshold=0.8)).load_E().sum().item() / 100 for s in (0.1, 1, 3, 100)]
    assert counts == sorted(counts, reverse=True) and counts[0] > 5.5 and counts[-1] < 1.1


def test_the_whole_mass_is_the_dense_mixture(generator):
    routing = route(torch.randn(50, 32, generator=generator) * 9, Config(threshold=1.0))
    assert (routing.indices_TK >= 0).all()
    torch.testing.assert_close(routing.dense_TE(), routing.scores_TE)


def test_a_first_choice_goes_before_a_more_probable_second_choice():
    scores = torch.tensor([[0.36, 0.34, 0.30], [0.44, 0.46, 0.10]])
    routing = route(scores.log(), Config(threshold=0.5, capacity_factor=1.0))  # one slot: ceil(2 / 3)
    assert routing.indices_TK.tolist() == [[0], [1]]


def test_padding_takes_no_capacity(generator):
    logits = torch.randn(12, 4, generator=generator)
    mask = torch.arange(12) < 8
    config = Config(capacity_factor=0.5)
    routing = route(logits, config, mask)
    torch.testing.assert_close(routing.dense_TE()[mask], route(logits[mask], config).dense_TE())
    assert (routing.indices_TK[~mask] == -1).all() and routing.load_E().max() <= 1


def test_module_routes_by_its_logits(generator):
    router, x = Threshold(6, 4, None, generator), torch.randn(8, 6, generator=generator)
    assert torch.equal(router(x, Context()).indices_TK, route(router.logits(x), Config()).indices_TK)
    assert router.experts_per_token == 4


def test_refuses():
    with pytest.raises(ValueError, match="above 0 up to 1"):
        Config(threshold=1.1)
    with pytest.raises(ValueError, match="or none"):
        Config(capacity_factor=0.0)
