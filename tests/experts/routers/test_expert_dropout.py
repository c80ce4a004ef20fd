"""Expert dropout: what survives, the choice among survivors against a loop, and plain top-k in evaluation."""

import math

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.core.routing import Context
from mixwell.experts.routers.expert_dropout import Config, ExpertDropout, route, survivors
from mixwell.experts.routers.top_k import Config as TopKConfig
from mixwell.experts.routers.top_k import route as top_k


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
@pytest.mark.parametrize("over", ["batch", "token"])
@pytest.mark.parametrize("renormalise", [None, False])
def test_agrees_with_a_loop(generator, scores, over, renormalise):
    config = Config(k=2, scores=scores, over=over, rate=0.4, renormalise=renormalise)
    logits = torch.randn(9, 6, generator=generator, dtype=torch.float64)
    alive = survivors(6, 9, config, generator)
    found = route(logits, config, alive)
    for t, (h, lives) in enumerate(zip(logits.tolist(), alive.expand(9, 6).tolist())):
        s = [math.exp(v) for v in h]
        mass = sum(v for v, a in zip(s, lives) if a) if over == "batch" else sum(s)
        p = [v / mass for v in s] if scores == "softmax" else [1 / (1 + math.exp(-v)) for v in h]
        chosen = sorted((e for e in range(6) if lives[e]), key=lambda e: -p[e])[:2]
        scale = sum(p[e] for e in chosen) if renormalise is None else 1
        pairs = zip(found.indices_TK[t].tolist(), found.weights_TK[t].tolist())
        assert {e: w for e, w in pairs if e >= 0} == pytest.approx({e: p[e] / scale for e in chosen})


@pytest.mark.parametrize("over", ["batch", "token"])
def test_gradient(generator, over):
    config = Config(rate=0.4, over=over)
    logits = torch.randn(5, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    alive = survivors(6, 5, config, generator)
    assert torch.autograd.gradcheck(lambda h: route(h, config, alive).dense_TE(), (logits,))


@pytest.mark.parametrize("clusters, rate, left", [(1, 0.25, 9), (3, 0.5, 2), (4, 0.34, 1), (1, 0.9, 1), (3, 0.0, 4)])
def test_the_same_number_survives_in_every_cluster(generator, clusters, rate, left):
    """MoEC: each cluster keeps members, so that no token loses all its suitable experts."""
    seen = torch.zeros(12)
    for _ in range(200):
        alive = survivors(12, 1, Config(k=1, rate=rate, clusters=clusters), generator)
        assert alive.view(clusters, -1).sum(1).tolist() == [left] * clusters
        seen += alive[0]
    assert (seen > 0).all()


def test_each_token_draws_for_itself_at_the_rate(generator):
    alive = survivors(8, 4000, Config(rate=0.3, over="token"), generator)
    assert abs(alive.float().mean().item() - 0.7) < 0.01 and len(alive.unique(dim=0)) > 100


def test_a_token_without_survivors_has_empty_slots():
    found = route(torch.zeros(2, 3), Config(over="token"), torch.tensor([[False] * 3, [True, False, False]]))
    assert found.indices_TK.tolist() == [[-1, -1], [0, -1]] and found.weights_TK.tolist() == [[0, 0], [1, 0]]


def test_drops_in_training_only(generator):
    router = ExpertDropout(5, 4, Config(rate=0.5), generator)
    x = torch.randn(30, 5, generator=generator)
    assert len(router.train()(x, Context(generator=generator)).indices_TK.unique()) == 2
    expected = top_k(x @ router.weight.T, TopKConfig())
    torch.testing.assert_close(router.eval()(x, Context()).dense_TE(), expected.dense_TE())
    with pytest.raises(MixwellError, match="draws while training"):
        router.train()(x, Context())


@pytest.mark.parametrize("options, message", [
    ({"rate": 1.0}, "0 up to 1"), ({"clusters": 0}, "at least 1"), ({"over": "token", "clusters": 2}, "1 over token"),
    ({"k": 1, "renormalise": True}, "without a gradient"),
])
def test_config_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)


def test_refuses_too_few_survivors():
    with pytest.raises(ValueError, match="1 of 4 experts survive"):
        ExpertDropout(5, 4, Config(rate=0.75))
    with pytest.raises(ValueError, match="into 3 clusters"):
        ExpertDropout(5, 4, Config(clusters=3))
