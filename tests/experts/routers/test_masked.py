"""Routing under a frequency mask against a plain loop, and its promise: a rare id knows one expert."""

import math

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.core.routing import Context
from mixwell.experts.routers.masked import Config, Masked, frequent_ids, route, visible_experts

ZIPF = tuple(1 / (i + 1) for i in range(20))


@pytest.mark.parametrize("k", [1, 2])
def test_agrees_with_a_plain_loop(generator, k):
    logits = torch.randn(9, 4, generator=generator, dtype=torch.float64)
    visible = torch.rand(9, 4, generator=generator) < 0.5
    visible[:, 2] = True
    visible[0] = torch.tensor([False, False, True, False])
    routing = route(logits, visible, k)
    for t, row in enumerate(logits.tolist()):
        seen = [e for e in range(4) if visible[t, e]]
        total = sum(math.exp(row[e]) for e in seen)
        best = sorted(seen, key=lambda e: -row[e])[:k]
        found = {e: w for e, w in zip(routing.indices_TK[t].tolist(), routing.weights_TK[t].tolist()) if e >= 0}
        assert found == pytest.approx({e: math.exp(row[e]) / total for e in best})
    assert routing.weights_TK[0, 0] == 1  # one visible expert: it has the whole token


def test_gradient(generator):
    logits = torch.randn(5, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    visible = torch.tensor([[True] * 4, [True, True, False, False], [False, False, True, False]] + [[True] * 4] * 2)
    assert torch.autograd.gradcheck(lambda h: route(h, visible, 2).dense_TE(), (logits,))


@pytest.mark.parametrize("share, expected", [(0.0, 0), (0.3, 2), (0.6, 5), (1.0, 20)])
def test_frequent_ids_are_the_fewest_that_reach_the_share(share, expected):
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    frequent = frequent_ids(torch.tensor(ZIPF)[order], share)
    assert frequent.sum() == expected
    assert set(order[frequent].tolist()) == set(range(expected))


def test_rare_ids_see_few_experts_and_frequent_ones_many(generator):
    for rare, frequent in ((1, None), (2, 3)):
        config = Config(vocab_size=20, rare_visible=rare, frequent_visible=frequent)
        visible = visible_experts(torch.tensor(ZIPF), config, 4, generator)
        assert visible[:5].sum(1).tolist() == [frequent or 4] * 5
        assert visible[5:].sum(1).tolist() == [rare] * 15
    assert visible[5:].any(0).all()  # rare ids are spread over experts


def test_a_hidden_expert_never_gets_its_token(generator):
    router = Masked(6, 4, Config(vocab_size=20, frequencies=ZIPF, k=2), generator)
    with torch.no_grad():
        router.weight[3] += 100  # an expert that every token would like
    ids = torch.randint(20, (200,), generator=generator)
    routing = router(torch.rand(200, 6, generator=generator), Context(token_ids_T=ids))
    allowed = torch.nn.functional.pad(router.visible_VE[ids], (0, 1), value=True)  # last column: empty slots
    assert allowed.gather(1, routing.indices_TK % 5).all()
    assert (routing.scores_TE[~router.visible_VE[ids]] == 0).all() and (routing.indices_TK == -1).any()


def test_everything_visible_is_top_k(generator):
    logits = torch.randn(5, 4, generator=generator)
    routing = route(logits, torch.ones(5, 4, dtype=torch.bool), 2)
    torch.testing.assert_close(routing.weights_TK, logits.softmax(-1).topk(2, dim=-1).values)


def test_learns_its_mask_and_keeps_it_in_its_state(generator):
    router = Masked(6, 4, Config(vocab_size=6, frequent_share=0.4), generator)
    context = Context(token_ids_T=torch.tensor([0]))
    with pytest.raises(MixwellError, match="fit_tokens"):
        router(torch.zeros(1, 6), context)
    with pytest.raises(MixwellError, match="give a generator"):
        router.fit_tokens(torch.tensor([0, 1]))
    router.fit_tokens(torch.tensor([4, 4, 4, 0, 1, 2, 3]), generator)
    assert router.visible_VE.sum(1).tolist() == [1, 1, 1, 1, 4, 1]
    copy = Masked(6, 4, Config(vocab_size=6), generator)
    copy.load_state_dict(router.state_dict())
    assert torch.equal(copy(torch.ones(1, 6), context).indices_TK, router(torch.ones(1, 6), context).indices_TK)


@pytest.mark.parametrize("options, message", [
    ({"vocab_size": 0}, "at least 1"),
    ({"vocab_size": 2, "frequent_share": 1.5}, "0 to 1"),
    ({"vocab_size": 2, "frequencies": (1.0,)}, "one for each"),
])
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)


def test_refuses_more_visible_experts_than_there_are():
    with pytest.raises(ValueError, match="choose 1 to 4"):
        Masked(6, 4, Config(vocab_size=2, rare_visible=5))
