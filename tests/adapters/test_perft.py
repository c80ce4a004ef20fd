"""PERFT's four variants against loops, their counts, their start, what they refuse."""

import pytest
import torch

from mixwell.adapters.perft import PERFT, Config
from mixwell.core.errors import MixwellError
from mixwell.core.routing import Context
from tests.contracts._adapters import TOKENS, logits, model, moved
from tests.contracts._tools import fresh

NAME = "layers.0.channel_mixer"


def top_two(weight, x):
    p = torch.softmax(weight @ x, 0)
    best = p.argsort(descending=True)[:2]
    return {int(e): p[e] / p[best].sum() for e in best}


@pytest.mark.parametrize("form", ["lora", "parallel"])
@pytest.mark.parametrize("variant", ["R", "E", "D", "S"])
def test_a_variant_agrees_with_a_loop(variant, form):
    config = Config(variant=variant, form=form, rank=3, alpha=6.0, num_adapters=3, router={"k": 2})
    there = moved(PERFT.attach(model(sparse=True), None, config, fresh()), size=0.3)
    there.model.double()
    mixer, own = there.model.layers[0].channel_mixer, there.adapters[NAME]
    x_TD = torch.randn(6, 16, generator=fresh(3), dtype=torch.float64)
    y = mixer(x_TD, Context()).y_TD
    A, B = own.A.detach(), own.B.detach()
    assert len(A) == {"R": 3, "E": 4, "D": 3, "S": 1}[variant]
    routers = {"R": getattr(own, "router", None), "E": mixer.router}
    base = own.base(x_TD, Context()).y_TD
    for t, x in enumerate(x_TD):
        g = top_two(routers[variant].weight, x) if variant in routers else dict.fromkeys(range(len(A)), 1.0)
        expected = base[t]
        for j, weight in g.items():
            hidden = A[j] @ x
            expected = expected + weight * B[j] @ (2 * hidden if form == "lora" else hidden * torch.sigmoid(hidden))
        torch.testing.assert_close(y[t], expected)


def test_the_start_is_the_base_to_a_millionth_but_not_to_the_bit():
    there = PERFT.attach(model(sparse=True), None, Config(rank=4), fresh())
    found, bare = logits(there.model), logits(model(sparse=True))
    torch.testing.assert_close(found, bare, rtol=0, atol=1e-3)
    assert not torch.equal(found, bare)
    own = there.adapters[NAME]
    assert 0.6 < own.A.std() < 0.8 and 0.8e-6 < own.B.std() < 1.2e-6  # sqrt(2 / 4), 1e-6


def test_losses_of_its_router_stand_beside_those_of_the_mixture():
    bare = model(sparse=True)(TOKENS)
    there = PERFT.attach(model(sparse=True), None, Config(rank=2, balance={"switch": 0.5}), fresh())
    found = there.model(TOKENS)
    assert set(found.losses) == {*bare.losses, "adapter_switch"}
    torch.testing.assert_close(found.aux, bare.aux + 2 * 0.5 * found.losses["adapter_switch"], rtol=1e-4, atol=1e-5)


def test_experts_without_tokens_do_not_move_their_adapters():
    there = PERFT.attach(model(sparse=True), None, Config(variant="E", rank=2), fresh())
    mixer, own = there.model.layers[0].channel_mixer, there.adapters[NAME]
    with torch.no_grad():
        mixer.router.weight[3] = -100 * torch.ones(16)
    mixed = mixer(torch.rand(6, 16, generator=fresh(3)), Context())
    assert mixed.routing.load_E()[3] == 0
    mixed.y_TD.sum().backward()
    assert not own.B.grad[3].any() and own.B.grad[mixed.routing.indices_TK[0, 0]].any()


def test_dropout_is_drawn_in_training_alone():
    there = moved(PERFT.attach(model(sparse=True), None, Config(rank=2, dropout=0.5), fresh()))
    there.model.eval()
    mixer, own = there.model.layers[0].channel_mixer, there.adapters[NAME]
    x_TD = torch.randn(6, 16, generator=fresh(3))
    assert torch.equal(mixer(x_TD, Context(generator=fresh(1))).y_TD, mixer(x_TD, Context()).y_TD)
    own.train()
    assert not torch.equal(mixer(x_TD, Context(generator=fresh(1))).y_TD, mixer(x_TD, Context()).y_TD)


def test_what_cannot_be_is_refused():
    with pytest.raises(MixwellError, match="has no router, which variant E takes over; choose R, D or S"):
        PERFT.attach(model(), None, Config(variant="E", rank=2), fresh())
    with pytest.raises(MixwellError, match=r"rank is 17 at layers\.0\.channel_mixer, which is 16 wide"):
        PERFT.attach(model(sparse=True), None, Config(rank=17), fresh())
    with pytest.raises(ValueError, match=r"dropout is -0\.1"):
        Config(dropout=-0.1)
