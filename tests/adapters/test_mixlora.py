"""MixLoRA against a loop over tokens and experts, its start, its losses, what it refuses."""

import pytest
import torch

from mixwell.adapters.mixlora import Config, MixLoRA
from mixwell.core.errors import MixwellError
from mixwell.core.routing import Context
from tests.contracts._adapters import TOKENS, model, moved
from tests.contracts._tools import fresh

OPTIONS = {"num_experts": 3, "rank": 2, "alpha": 6.0}
NAME = "layers.0.channel_mixer"


def beside(size=0.3, **options):
    there = moved(MixLoRA.attach(model(), None, Config(**OPTIONS | options), fresh()), size=size)
    there.model.double().eval()
    return there.model.layers[0].channel_mixer, there.adapters[NAME]


def block(x, gate_up, down):
    g, u = (gate_up @ x).chunk(2)
    return down @ (g / (1 + torch.exp(-g)) * u)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_it_is_a_sum_of_whole_blocks_with_changed_weights(k):
    mixer, own = beside(router={"method": "top_k", "k": k, "constant": True, "renormalise": True})
    x_TD = torch.randn(5, 16, generator=fresh(3), dtype=torch.float64)
    found = mixer(x_TD, Context())
    for t, x in enumerate(x_TD):
        p = torch.softmax(own.router.weight @ x, 0)
        best = p.argsort(descending=True)[:k]
        expected = 0
        for e in best:
            gate_up = mixer.gate_up_proj + 3 * own.into_B[e] @ own.into_A[e]
            down = mixer.down_proj + 3 * own.out_B[e] @ own.out_A[e]
            expected = expected + p[e] / p[best].sum() * block(x, gate_up, down)
        torch.testing.assert_close(found.y_TD[t], expected)


def test_gradients_agree_with_differences():
    mixer, own = beside(router={"method": "top_k", "k": 2}, num_experts=2)
    x_TD = torch.randn(3, 16, generator=fresh(3), dtype=torch.float64)
    for part in (own.into_A, own.out_B, own.router.weight):
        def result(change, part=part):
            with torch.no_grad():
                part += change
                y = mixer(x_TD, Context()).y_TD.square().sum()
                part -= change
            return y
        (grad,) = torch.autograd.grad(mixer(x_TD, Context()).y_TD.square().sum(), part)
        way = torch.randn(part.shape, generator=fresh(4), dtype=torch.float64)
        slope = (result(1e-5 * way) - result(-1e-5 * way)) / 2e-5
        torch.testing.assert_close((grad * way).sum(), slope, rtol=1e-5, atol=1e-7)


def test_balance_is_an_output_and_one_where_experts_share_evenly():
    there = MixLoRA.attach(model(), None, Config(**OPTIONS, balance={"switch": 0.25}), fresh())
    with torch.no_grad():
        for adapter in there.adapters.values():
            adapter.router.weight.zero_()
    result = there.model(TOKENS)
    torch.testing.assert_close(result.losses["adapter_switch"], torch.tensor(1.0))
    torch.testing.assert_close(result.aux, torch.tensor(0.5))  # of two layers


def test_dropout_is_drawn_in_training_alone():
    mixer, own = beside(dropout=0.5)
    x_TD = torch.randn(5, 16, generator=fresh(3), dtype=torch.float64)
    still = mixer(x_TD, Context(generator=fresh())).y_TD
    assert torch.equal(still, mixer(x_TD, Context()).y_TD)
    own.train()
    first, second = (mixer(x_TD, Context(generator=fresh(seed))).y_TD for seed in (1, 2))
    assert not torch.equal(first, second) and torch.equal(first, mixer(x_TD, Context(generator=fresh(1))).y_TD)


@pytest.mark.parametrize("options, message", [
    ({"rank": 17}, "rank is 17 at layers.0.channel_mixer, which is 16 wide at its least"),
    ({"router": {"method": "loss_free_bias"}}, "router loss_free_bias learns outside the gradient")])
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(MixwellError, match=message):
        MixLoRA.attach(model(), None, Config(**OPTIONS | options), fresh())
    with pytest.raises(MixwellError, match="is MoE; MixLoRA stands at a dense SwiGLU block"):
        MixLoRA.attach(model(sparse=True), None, Config(**OPTIONS), fresh())
    with pytest.raises(ValueError, match=r"dropout is 1\.0; expected 0 up to 1"):
        Config(dropout=1.0)
