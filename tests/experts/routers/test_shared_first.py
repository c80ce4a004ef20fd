"""An always-on first expert: weights against a loop with gradient, what an unsure choice leaves to it, noise."""

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.core.routing import Context
from mixwell.experts.routers.shared_first import Config, SharedFirst, route


def test_weights_against_a_loop_with_gradient(generator):
    logits = torch.randn(3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    routing = route(logits, 2)
    for t in range(3):
        p = logits[t].exp() / logits[t].exp().sum()
        first, second = sorted(range(4), key=lambda i: -p[i].item())[:2]
        total = p[first].exp() + p[second].exp()
        assert routing.indices_TK[t].tolist() == [0, 1 + first, 1 + second]
        wanted = torch.stack([1 - p[first], p[first] * p[first].exp() / total, p[first] * p[second].exp() / total])
        torch.testing.assert_close(routing.weights_TK[t], wanted)
    assert torch.autograd.gradcheck(lambda x: route(x, 2).weights_TK, logits)


def test_the_surest_choice_leaves_the_first_expert_nothing_and_an_even_one_the_most():
    sure, even = route(torch.tensor([[90.0, 0, 0]]), 1), route(torch.zeros(1, 3), 3)
    assert sure.weights_TK.tolist() == [[0.0, 1.0]]
    torch.testing.assert_close(even.weights_TK, torch.tensor([[2 / 3, 1 / 9, 1 / 9, 1 / 9]]))


@pytest.mark.parametrize("noise", [True, False])
def test_noise_is_drawn_in_training_alone(generator, noise):
    router = SharedFirst(6, 4, Config(routed=2, noise=noise), generator)
    x = torch.randn(50, 6, generator=generator)
    still = router.eval()(x, Context()).weights_TK
    moved = router.train()(x, Context(generator=generator)).weights_TK
    assert torch.equal(still, moved) != noise
    if noise:
        with pytest.raises(MixwellError, match="draws while training"):
            router(x, Context())
    assert router.experts_per_token == 3


def test_refuses_more_than_there_are(generator):
    with pytest.raises(ValueError, match="choose 1 to 3"):
        SharedFirst(6, 4, Config(routed=4), generator)
    with pytest.raises(ValueError, match="expected at least 1"):
        Config(routed=0)
