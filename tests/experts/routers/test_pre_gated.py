"""Pre-gated routing over a stack of layers: who decides, when, and what learns from it."""

import pytest
import torch

from mixwell.core.routing import Context
from mixwell.experts.routers.pre_gated import Config, PreGated
from mixwell.experts.routers.top_k import Config as TopKConfig
from mixwell.experts.routers.top_k import route


def stack(generator, **options):
    return [PreGated(6, 4, Config(**options), generator).double() for _ in range(3)]


def run(routers, inputs):
    state, routings = None, []
    for layer, (router, x) in enumerate(zip(routers, inputs)):
        routings.append(router(x, Context(layer=layer, state=state)))
        state = routings[-1].state
    return routings


def loop(weight, x, k):
    """Each token's experts by a double loop."""
    chosen = []
    for row in x.tolist():
        h = [sum(w * v for w, v in zip(line, row)) for line in weight.tolist()]
        chosen.append(sorted(range(len(h)), key=lambda e: -h[e])[:k])
    return chosen


def test_next_a_layer_is_decided_by_the_input_of_the_one_before(generator):
    routers = stack(generator)
    x = torch.randn(3, 5, 6, generator=generator, dtype=torch.float64)
    first, second, third = run(routers, x)
    assert first.indices_TK.tolist() == loop(routers[0].weight, x[0], 2)
    assert second.indices_TK.tolist() == loop(routers[0].next_weight, x[0], 2)
    assert third.indices_TK.tolist() == loop(routers[1].next_weight, x[1], 2)
    torch.testing.assert_close(second.weights_TK, route(x[0] @ routers[0].next_weight.T, TopKConfig()).weights_TK)


def test_next_needs_nothing_of_the_layers_own_input(generator):
    """The paper's point: layer l + 1's experts can be fetched while layer l computes."""
    routers = stack(generator)
    x = torch.randn(3, 5, 6, generator=generator, dtype=torch.float64)
    changed = torch.stack([x[0], -x[1], x[2]])
    assert torch.equal(run(routers, x)[1].indices_TK, run(routers, changed)[1].indices_TK)


def test_all_layers_follow_the_first(generator):
    routers = stack(generator, ahead="all", k=1)
    x = torch.randn(3, 5, 6, generator=generator, dtype=torch.float64)
    first, second, third = run(routers, x)
    assert first.indices_TK.tolist() == loop(routers[0].weight, x[0], 1)
    for later in (second, third):
        assert torch.equal(first.indices_TK, later.indices_TK) and torch.equal(first.weights_TK, later.weights_TK)
    assert not hasattr(routers[0], "next_weight")


def test_gradient_of_a_layers_gate_comes_from_the_layer_it_decides_for(generator):
    routers = stack(generator)
    x = torch.randn(3, 5, 6, generator=generator, dtype=torch.float64)
    probe = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    later = run(routers, x)[1]
    (gradient,) = torch.autograd.grad((later.dense_TE() * probe).sum(), routers[0].next_weight)
    assert gradient.abs().max() > 1e-6
    router = routers[0]
    inputs = x[0].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda a: (router(a, Context()).dense_TE(), router(a, Context()).state), (inputs,))


def test_one_layer_is_plain_top_k(generator):
    router = stack(generator, renormalise=False)[0]
    x = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    expected = route(x @ router.weight.T, TopKConfig(renormalise=False))
    torch.testing.assert_close(router(x, Context()).dense_TE(), expected.dense_TE())


def test_refusals(generator):
    with pytest.raises(ValueError, match="from the pre-gated router of an earlier layer"):
        stack(generator)[0](torch.zeros(2, 6).double(), Context(state=torch.zeros(2, 9).double()))
    with pytest.raises(ValueError, match="choose 1 to 4"):
        PreGated(6, 4, Config(k=5))
    with pytest.raises(ValueError, match="without a gradient"):
        Config(k=1, renormalise=True)
