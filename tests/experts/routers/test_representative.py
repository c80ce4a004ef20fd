"""Representative units: scores against a loop, full weights at the start, a bias that follows the load."""

import pytest
import torch

from mixwell.core.routing import Context
from mixwell.experts.routers.representative import Config, Representative, route, unit_scores


def test_scores_against_a_loop_with_gradient(generator):
    x, gate, up = (torch.randn(*s, generator=generator, dtype=torch.float64, requires_grad=True)
                   for s in ((3, 4), (5, 4), (5, 4)))
    found = unit_scores(x, gate, up)
    for t in range(3):
        for e in range(5):
            g, u = sum(x[t, d] * gate[e, d] for d in range(4)), sum(x[t, d] * up[e, d] for d in range(4))
            torch.testing.assert_close(found[t, e], (u * g / (1 + torch.exp(-g))).abs())
    assert torch.autograd.gradcheck(unit_scores, (x, gate, up))


def test_the_bias_decides_who_is_chosen_and_never_what_counts():
    units = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    nothing = torch.zeros(4)
    plain = route(units, nothing, nothing, 2)
    assert plain.indices_TK.tolist() == [[0, 1]] and plain.weights_TK.tolist() == [[1.0, 1.0]]
    v = torch.tensor([0.0, 0.0, 0.0, 2.0])
    shifted = route(units, v, torch.tensor([0.0, 0.0, 0.0, 9.0]), 2)
    share = torch.softmax(units, -1)[0, 3]
    assert shifted.indices_TK.tolist() == [[3, 0]]
    torch.testing.assert_close(shifted.weights_TK, torch.tensor([[1 + 2 * share, 1.0]]))
    everything = route(units, nothing, nothing, 4)
    assert everything.dense_TE().tolist() == [[1.0] * 4]


def test_the_bias_moves_towards_an_even_load(generator):
    router = Representative(6, 4, Config(update_rate=0.5), generator)
    router.update(torch.tensor([8, 0, 4, 4]))
    assert router.bias.tolist() == [-0.5, 0.5, 0.0, 0.0]
    with pytest.raises(ValueError, match="one count for each of 4 experts"):
        router.update(torch.tensor([1, 2]))


def test_refuses_a_k_beyond_the_experts_and_rates_of_nothing(generator):
    with pytest.raises(ValueError, match="choose 1 to 4"):
        Representative(6, 4, Config(k=5), generator)
    for options in ({"k": 0}, {"update_rate": 0.0}):
        with pytest.raises(ValueError, match="expected"):
            Config(**options)
    assert Representative(6, 4)(torch.ones(2, 6), Context()).indices_TK.shape == (2, 2)
