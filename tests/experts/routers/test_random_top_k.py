"""Random routing: uniform, blind to the token, whole."""

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.core.routing import Context
from mixwell.experts.routers.random_top_k import Config, RandomTopK


@pytest.mark.parametrize("k", [1, 3])
def test_draws_are_uniform_and_distinct(generator, k):
    router = RandomTopK(6, 4, Config(k=k)).train()
    routing = router(torch.zeros(8000, 6), Context(generator=generator))
    assert (routing.load_E() - 8000 * k / 4).abs().max() < 200
    assert all(len(set(row)) == k for row in routing.indices_TK[:50].tolist())
    assert (routing.weights_TK == 1 / k).all()
    pairs = torch.bincount(routing.indices_TK[:-1, 0] * 4 + routing.indices_TK[1:, 0], minlength=16)
    assert (pairs - 500).abs().max() < 110  # neighbours draw independently


def test_the_token_does_not_matter(generator):
    router, x = RandomTopK(6, 4, Config()).train(), torch.randn(20, 6, generator=generator)
    one, two = (router(v, Context(generator=torch.Generator().manual_seed(5))) for v in (x, -x))
    assert torch.equal(one.indices_TK, two.indices_TK)


@pytest.mark.parametrize("inference, width", [("all", 4), ("draw", 2)])
def test_inference(generator, inference, width):
    router = RandomTopK(6, 4, Config(k=2, inference=inference)).eval()
    routing = router(torch.zeros(5, 6), Context(generator=generator))
    assert routing.indices_TK.shape == (5, width)
    torch.testing.assert_close(routing.weights_TK.sum(1), torch.ones(5))


def test_every_expert_drawn_is_the_average(generator):
    routing = RandomTopK(6, 4, Config(k=4)).train()(torch.zeros(3, 6), Context(generator=generator))
    torch.testing.assert_close(routing.dense_TE(), routing.scores_TE)


def test_refuses():
    with pytest.raises(ValueError, match="at least 1"):
        Config(k=0)
    with pytest.raises(MixwellError, match=r"give Context\(generator"):
        RandomTopK(6, 4, Config()).train()(torch.zeros(2, 6), Context())
