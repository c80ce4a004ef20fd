"""One start for all: whatever the method, logits spread by one number and outputs have one size."""

import pytest
import torch

from mixwell.claims import starts
from mixwell.claims.experts._digits import Reader, two_mixers
from mixwell.claims.experts._synthetic import Clusters, build, known
from mixwell.core import registry
from mixwell.core.errors import MixwellError
from mixwell.core.rng import generator
from mixwell.core.routing import Context
from mixwell.mixing import Router


@pytest.mark.parametrize("entry", [pytest.param(e, id=e.name) for e in registry.family("experts.layers")])
def test_layers_start_at_one_size(entry):
    found = entry.module().example(generator(0, "example"))
    layer = entry.load()(found["dim"], found["config"], generator(0, "layer"))
    x_TD, context = found["x_TD"], found.get("context", Context())
    starts.level(layer, (x_TD, context), 0.3)
    y_TD = layer.eval()(x_TD, context).y_TD
    assert float(y_TD.detach().square().mean().sqrt()) == pytest.approx(0.3, rel=0.03)


ROUTERS = ({"method": "top_k", "k": 2}, {"method": "cosine", "k": 2}, {"method": "hyper_network", "k": 2},
           {"method": "recurrent", "k": 2}, {"method": "sinkhorn"}, {"method": "noisy_top_k", "k": 2},
           {"method": "conditioned", "condition": "label", "labels": 16}, {"method": "competition", "k": 2})


@pytest.mark.parametrize("router", [pytest.param(r, id=r["method"]) for r in ROUTERS])
def test_routers_start_with_one_spread(router):
    problem = Clusters(0)
    layer = build(0, {"router": router, "balance": {}}, problem=problem).eval()
    batch = problem(512, generator(5, "tokens"))
    logits = layer(batch.x_TD, known(batch)).routing.logits_TE
    assert float(logits.detach().std(1, correction=0).square().mean().sqrt()) == pytest.approx(1, rel=0.1)


def test_mixers_of_a_network_start_at_one_size():
    draws = generator(0, "reader")
    mixers = [*two_mixers("experts.layers.moe", draws, num_experts=4, hidden_dim=8),
              *two_mixers("experts.layers.swiglu", draws, hidden_dim=8)]
    x = torch.rand(32, 8, 8, generator=draws)
    model = Reader(mixers, draws).eval()
    starts.level_inside(mixers, lambda: model(x), 0.1)
    sizes = []
    for mixer in mixers:
        mixer.register_forward_hook(lambda mixer, given, mixed: sizes.append(float(mixed.y_TD.square().mean().sqrt())))
    with torch.no_grad():
        model(x)
    assert sizes == pytest.approx([0.1] * 4, rel=0.03)


def test_a_masked_logit_counts_in_no_spread():
    logits = torch.tensor([[1.0, 3.0, float("-inf")], [2.0, 2.0, 2.0]])
    assert starts.spread(logits) == pytest.approx((2 / 5) ** 0.5)


def test_a_layer_of_zeros_is_refused():
    layer = build(0, {"hidden_dim": 4})
    torch.nn.init.zeros_(layer.down_proj)
    with pytest.raises((ValueError, MixwellError), match="MoE gives zeros"):
        starts.level(layer, (torch.randn(8, 16), Context()), 0.3)


@pytest.mark.parametrize("spec", [{"method": "cartesian", "router": {"method": "top_k", "k": 1}},
                                  {"method": "stratified", "strata": (4, 4)}], ids=["cartesian", "stratified"])
def test_every_router_of_a_mixer_starts_with_the_spread(spec):
    problem = Clusters(0)
    layer = build(0, {**spec, "balance": {}}, problem=problem).eval()
    batch = problem(512, generator(5, "tokens"))
    logits = []
    for module in layer.modules():
        if isinstance(module, Router):
            module.register_forward_hook(lambda router, given, routing: logits.append(routing.logits_TE))
    layer(batch.x_TD, known(batch))
    spreads = [starts.spread(logits_TE.detach()) for logits_TE in logits]
    assert spreads == pytest.approx([1.0, 1.0], rel=0.1)
