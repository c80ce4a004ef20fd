"""Routing by rank against a loop, its place between the ranks of top-k, and self-contrast against its definition."""

import math

import pytest
import torch

from mixwell.core.routing import Context
from mixwell.experts.routers.rank_k import Config, RankK, contrast, route
from mixwell.experts.routers.top_k import Config as TopKConfig
from mixwell.experts.routers.top_k import TopK


@pytest.mark.parametrize("ranks", [(2,), (1, 2), (3, 1)])
@pytest.mark.parametrize("renormalise", [None, False, True])
def test_agrees_with_a_loop(generator, ranks, renormalise):
    logits = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    found = route(logits, Config(ranks=ranks, renormalise=renormalise))
    for t, row in enumerate(logits.tolist()):
        p = [math.exp(v) / sum(map(math.exp, row)) for v in row]
        chosen = [sorted(range(4), key=lambda e: -p[e])[r - 1] for r in ranks]
        scale = sum(p[e] for e in chosen) if (len(ranks) > 1 if renormalise is None else renormalise) else 1
        assert found.indices_TK[t].tolist() == chosen
        assert found.weights_TK[t].tolist() == pytest.approx([p[e] / scale for e in chosen])


def test_gradient(generator):
    logits = torch.randn(4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda h: route(h, Config(ranks=(2, 3))).dense_TE(), (logits,))


def test_weak_experts_are_those_that_the_strong_router_does_not_weigh_most(generator):
    """The same weight read two ways: ranks 1 and 2 are top-2, rank 2 is its second column."""
    strong = TopK(6, 5, TopKConfig(k=2), generator)
    x = torch.randn(8, 6, generator=generator)
    weak, same = (RankK(6, 5, Config(ranks=ranks)) for ranks in ((2,), (1, 2)))
    for router in (weak, same):
        router.load_state_dict(strong.state_dict())
    expected = strong(x, Context())
    torch.testing.assert_close(same(x, Context()).dense_TE(), expected.dense_TE())
    assert torch.equal(weak(x, Context()).indices_TK[:, 0], expected.indices_TK[:, 1])
    assert weak.experts_per_token == 1


def test_contrast_agrees_with_a_loop(generator):
    strong, weak = torch.randn(2, 5, 7, generator=generator, dtype=torch.float64)
    found = contrast(strong, weak, alpha=0.3, beta=0.8)
    for t in range(5):
        p = [math.exp(v) for v in strong[t].tolist()]
        for v in range(7):
            expected = 1.8 * strong[t, v].item() - 0.8 * weak[t, v].item()
            assert found[t, v].item() == (pytest.approx(expected) if p[v] >= 0.3 * max(p) else -math.inf)


def test_without_a_penalty_contrast_is_greedy_decoding(generator):
    strong, weak = torch.randn(2, 50, 9, generator=generator)
    assert torch.equal(contrast(strong, weak, beta=0.0).argmax(-1), strong.argmax(-1))
    assert torch.equal(contrast(strong, weak, alpha=1.0).argmax(-1), strong.argmax(-1))


def test_contrast_turns_from_what_the_weak_pass_says_too():
    strong, weak = torch.tensor([[2.0, 1.9, -5.0]]), torch.tensor([[2.0, 0.0, 0.0]])
    assert contrast(strong, weak).argmax(-1) == 1
    assert contrast(strong, torch.tensor([[9.0, 9.0, -99.0]])).argmax(-1) != 2  # implausible, however weak it was


@pytest.mark.parametrize("ranks", [(), (0,), (1, 1)])
def test_refuses_ranks(ranks):
    with pytest.raises(ValueError, match="all different, from 1 on"):
        Config(ranks=ranks)


def test_refuses_ranks_beyond_the_experts_and_bounds():
    with pytest.raises(ValueError, match="choose ranks 1 to 4"):
        RankK(6, 4, Config(ranks=(5,)))
    for options in ({"alpha": 0.0}, {"beta": -1.0}):
        with pytest.raises(ValueError, match="above 0 to 1"):
            contrast(torch.zeros(2), torch.zeros(2), **options)
