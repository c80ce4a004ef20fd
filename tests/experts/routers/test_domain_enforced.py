"""Domain-enforced routing: forced ids against slicing an expert out, and the choice inside a domain against a loop."""

import math

import pytest
import torch

from mixwell.core.routing import Context, Routing
from mixwell.experts.layers.moe import Config as MoEConfig
from mixwell.experts.layers.moe import MoE
from mixwell.experts.routers.domain_enforced import Config, DomainEnforced, route

LABELS = torch.tensor([0, 1, 1, 0, 1, 0])
DOMAINS = ((0, 1), (1, 2, 3))


@pytest.mark.parametrize("k, renormalise", [(1, None), (2, None), (2, False), (3, True)])
@pytest.mark.parametrize("learnt_token", [False, True])
def test_agrees_with_a_loop(generator, k, renormalise, learnt_token):
    config = Config(k=k, renormalise=renormalise, domains=DOMAINS, learnt_token=learnt_token)
    router = DomainEnforced(5, 4, config, generator).double()
    x = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    found = router(x, Context(labels_T=LABELS))
    for t in range(6):
        own = DOMAINS[LABELS[t]]
        h = (router.weight @ (x[t] + (router.token[LABELS[t]] if learnt_token else 0))).tolist()
        total = sum(math.exp(h[e]) for e in own)
        p = {e: math.exp(h[e]) / total for e in own}
        chosen = sorted(own, key=lambda e: -p[e])[:k]
        scale = sum(p[e] for e in chosen) if (k > 1 if renormalise is None else renormalise) else 1
        pairs = zip(found.indices_TK[t].tolist(), found.weights_TK[t].tolist())
        assert {e: w for e, w in pairs if e >= 0} == pytest.approx({e: p[e] / scale for e in chosen})
        assert [found.scores_TE[t, e].item() for e in range(4)] == pytest.approx([p.get(e, 0) for e in range(4)])


def test_gradient(generator):
    logits = torch.randn(5, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    allowed = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1], [1, 1, 1, 1], [0, 0, 1, 0], [0, 1, 1, 1]]).bool()
    assert torch.autograd.gradcheck(lambda h: route(h, allowed, 2).dense_TE(), (logits,))


def test_a_forced_id_is_slicing_out_that_expert(generator):
    layer = MoE(5, MoEConfig(num_experts=3, hidden_dim=4, router={"method": "domain_enforced"}, balance={}), generator)
    x = torch.randn(6, 5, generator=generator)
    labels = torch.tensor([0, 1, 2, 2, 0, 1])
    y = layer(x, Context(labels_T=labels)).y_TD
    for t, e in enumerate(labels.tolist()):
        gate, up = (layer.gate_up_proj[e] @ x[t]).chunk(2)
        torch.testing.assert_close(y[t], layer.down_proj[e] @ (torch.nn.functional.silu(gate) * up))


def test_enforced_routing_learns_nothing_and_reads_no_token(generator):
    router = DomainEnforced(5, 3, Config(), generator)
    found = router(torch.randn(4, 5, generator=generator), Context(labels_T=torch.tensor([2, 0, 1, 2])))
    assert found.indices_TK[:, 0].tolist() == [2, 0, 1, 2] and (found.weights_TK == 1).all()
    assert not list(router.parameters())


def test_a_free_domain_is_plain_top_k(generator):
    """Uni-MoE's last stage: every domain may use every expert."""
    router = DomainEnforced(5, 4, Config(k=2, domains=((0, 1, 2, 3),)), generator)
    x = torch.randn(6, 5, generator=generator)
    weights, indices = (x @ router.weight.T).topk(2, dim=-1)
    found = router(x, Context(labels_T=torch.zeros(6, dtype=torch.int64)))
    assert torch.equal(found.indices_TK, indices)
    torch.testing.assert_close(found.weights_TK, weights.softmax(-1))


def test_a_small_domain_leaves_slots_empty(generator):
    router = DomainEnforced(5, 4, Config(k=2, domains=((0,), (1, 2))), generator)
    found: Routing = router(torch.randn(2, 5, generator=generator), Context(labels_T=torch.tensor([0, 1])))
    assert found.indices_TK[0].tolist() == [0, -1] and found.weights_TK[0].tolist() == [1, 0]
    assert (found.indices_TK[1] >= 1).all()


@pytest.mark.parametrize("options, message", [
    ({"domains": ((),)}, "at least one"), ({"domains": ((1, 1),)}, "all different"),
    ({"learnt_token": True}, "a choice of experts"), ({"k": 1, "renormalise": True}, "without a gradient"),
])
def test_config_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)


def test_refuses_missing_and_unknown_domains(generator):
    router = DomainEnforced(5, 3, Config(), generator)
    with pytest.raises(ValueError, match=r"give Context\.labels_T"):
        router(torch.zeros(2, 5), Context())
    for strange in (3, -1):
        with pytest.raises(ValueError, match="expected 0 to 2"):
            router(torch.zeros(2, 5), Context(labels_T=torch.tensor([0, strange])))
    with pytest.raises(ValueError, match="expert 5 of 4"):
        DomainEnforced(5, 4, Config(domains=((5,),)))
    with pytest.raises(ValueError, match="largest domain has 1"):
        DomainEnforced(5, 4, Config(k=2))
