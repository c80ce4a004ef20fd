"""BECoTTA against a loop, its synergy loss, what it refuses."""

import math

import pytest
import torch
from torch.nn.functional import gelu

from mixwell.adapters.becotta import BECoTTA, Config, synergy
from mixwell.core.errors import MixwellError
from mixwell.core.routing import Context
from tests.contracts._adapters import SPARSE, TOKENS, model, moved
from tests.contracts._tools import fresh

NAME = "layers.0.channel_mixer"


def beside(**options):
    config = Config(**{"num_domains": 2, "num_experts": 3, "rank": 2, "router": {"k": 2}} | options)
    return moved(BECoTTA.attach(model(), None, config, fresh()), size=0.3)


def test_a_token_goes_by_the_router_of_its_domain():
    there = beside()
    there.model.double()
    mixer, own = there.model.layers[0].channel_mixer, there.adapters[NAME]
    x_TD = torch.randn(6, 16, generator=fresh(3), dtype=torch.float64)
    labels = torch.tensor([1, 0, 0, 1, 1, 0])
    y = mixer(x_TD, Context(labels_T=labels)).y_TD
    base = own.base(x_TD, Context()).y_TD
    for t, x in enumerate(x_TD):
        p = torch.softmax(own.routers[labels[t]].weight @ x, 0)
        best = p.argsort(descending=True)[:2]
        expected = base[t]
        for e in best:
            hidden = gelu(own.down[e] @ x + own.down_bias[e])
            expected = expected + p[e] / p[best].sum() * (own.up[e] @ hidden + own.up_bias[e])
        torch.testing.assert_close(y[t], expected)


def test_synergy_is_minus_the_mutual_information():
    labels = torch.tensor([0, 0, 1, 1])
    tied = torch.eye(2)[labels]
    torch.testing.assert_close(synergy(tied, labels, 2), torch.tensor(-math.log(2)))
    torch.testing.assert_close(synergy(tied.mean(0).expand(4, 2), labels, 2), torch.tensor(0.0))


def test_padding_has_no_part_and_a_routers_own_loss_is_handed_on():
    there = beside(router={"method": "noisy_top_k", "k": 2, "load": 0.25})
    there.model.train()
    mask_BT = torch.ones_like(TOKENS, dtype=torch.bool)
    mask_BT[2] = False
    labels_B = torch.tensor([1, 1, 0])
    found = there.model(TOKENS, labels_B=labels_B, mask_BT=mask_BT, generator=fresh(4))
    torch.testing.assert_close(found.losses["adapter_synergy"], torch.tensor(0.0), atol=1e-6, rtol=0)
    assert found.losses["adapter_load"] > 0 and found.aux > 0.9 * found.losses["adapter_load"]


def test_a_routers_own_loss_does_not_replace_the_mixtures():
    noisy = {"method": "noisy_top_k", "k": 2, "load": 0.25}
    network = model(channel_mixer=SPARSE | {"router": noisy}, num_layers=1).train()
    before = network(TOKENS, generator=fresh(4))
    BECoTTA.attach(network, None, Config(num_domains=1, num_experts=3, rank=2, router=noisy), fresh())
    found = network(TOKENS, generator=fresh(4))
    assert torch.equal(found.losses["load"], before.losses["load"])
    own = found.losses["adapter_load"] + 5e-4 * found.losses["adapter_synergy"]
    assert own > 0
    torch.testing.assert_close(found.aux, before.aux + own)


def test_losses_are_outputs_and_every_router_learns():
    there = beside(synergy=0.5)
    there.model.train()
    labels_B = torch.tensor([1, 0, 1])
    found = there.model(TOKENS, labels_B=labels_B)
    torch.testing.assert_close(found.aux, 2 * 0.5 * found.losses["adapter_synergy"])
    found.aux.backward()
    assert found.losses["adapter_synergy"] < 0
    assert all(router.weight.grad.any() for router in there.adapters[NAME].routers)


def test_what_cannot_be_is_refused():
    there = beside()
    mixer = there.model.layers[0].channel_mixer
    with pytest.raises(MixwellError, match="has routers for 2 domains and got no labels"):
        mixer(torch.zeros(2, 16), Context())
    with pytest.raises(MixwellError, match="knows the domains 0 to 1 and got 0 to 2"):
        mixer(torch.zeros(2, 16), Context(labels_T=torch.tensor([0, 2])))
    with pytest.raises(ValueError, match="synergy is -1"):
        Config(synergy=-1)
