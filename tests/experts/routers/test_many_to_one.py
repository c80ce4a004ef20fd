"""Rows that share experts: against top-k over rows and experts computed apart, with gradient; refusals."""

import pytest
import torch

from mixwell.core.routing import Context
from mixwell.experts.routers.many_to_one import Config, ManyToOne, joined, route

MEMBERS = (0, 1, 1, 2, 0)


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
@pytest.mark.parametrize("k, renormalise, scale", [(1, None, 1.0), (3, None, 2.0), (3, False, 1.0), (5, None, 1.0)])
def test_an_expert_gets_the_weights_of_its_rows(generator, scores, k, renormalise, scale):
    logits = torch.randn(4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    config = Config(members=MEMBERS, k=k, scores=scores, renormalise=renormalise, scale=scale)
    dense = route(logits, config, 3).dense_TE()
    for t in range(4):
        p = torch.softmax(logits[t], 0) if scores == "softmax" else torch.sigmoid(logits[t])
        chosen = sorted(range(5), key=lambda r: -p[r].item())[:k]
        whole = p[chosen].sum() if k > 1 and renormalise is None else 1
        wanted = [sum(p[r] / whole * scale for r in chosen if MEMBERS[r] == e) for e in range(3)]
        torch.testing.assert_close(dense[t], torch.stack([torch.as_tensor(w, dtype=torch.float64) for w in wanted]))
    assert torch.autograd.gradcheck(lambda x: route(x, config, 3).dense_TE(), logits)


def test_an_expert_chosen_twice_is_visited_once():
    indices, weights = joined(torch.tensor([[1, 0, 1], [2, 1, 0]]), torch.tensor([[0.5, 0.3, 0.2], [0.6, 0.3, 0.1]]))
    assert indices.tolist() == [[1, 0, -1], [2, 1, 0]]
    torch.testing.assert_close(weights, torch.tensor([[0.7, 0.3, 0.0], [0.6, 0.3, 0.1]]))


def test_weight_of_1_where_one_row_is_taken_and_that_is_wanted(generator):
    router = ManyToOne(6, 3, Config(members=MEMBERS, k=1, renormalise=True, constant=True), generator)
    assert router(torch.ones(2, 6), Context()).weights_TK.tolist() == [[1.0], [1.0]]
    assert router.experts_per_token == 1 and ManyToOne(6, 3, Config(members=MEMBERS, k=5)).experts_per_token == 3


def test_refuses_what_cannot_be(generator):
    with pytest.raises(ValueError, match="members name experts 0 to 2 of 2"):
        ManyToOne(6, 2, Config(members=MEMBERS), generator)
    for options in ({"k": 6}, {"k": 0}, {"scale": 0.0}, {"k": 1, "renormalise": True}):
        with pytest.raises(ValueError, match=r"expected|renormalise"):
            Config(members=MEMBERS, **options)
