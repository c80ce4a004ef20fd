"""MoLoRA and MoV against loops, the single expert, routers that keep fewer, what they refuse."""

import pytest
import torch

from mixwell.adapters.ia3 import IA3
from mixwell.adapters.ia3 import Config as Factors
from mixwell.adapters.lora import Config as Thin
from mixwell.adapters.lora import LoRA
from mixwell.adapters.molora import Config, MoLoRA
from mixwell.core.errors import MixwellError
from mixwell.kernels.linear import Linear
from tests.contracts._adapters import TOKENS, logits, model, moved
from tests.contracts._tools import fresh


def beside(bias=False, **options):
    network = Linear(6, 5, bias, fresh(1))
    there = moved(MoLoRA.attach(network, None, Config(**{"num_experts": 3, "rank": 2} | options), fresh()), size=0.5)
    return network.double(), there.adapters["weight"].double()


def test_low_rank_changes_are_mixed_by_the_softmax_of_what_comes_in():
    network, own = beside(alpha=4.0)
    x = torch.randn(2, 3, 6, generator=fresh(4), dtype=torch.float64)
    y = network(x)
    for b in range(2):
        for t in range(3):
            p = torch.softmax(own.router.weight @ x[b, t], 0)
            matrix = network.weight + 2 * sum(p[e] * own.B[e] @ own.A[e] for e in range(3))  # soft merging
            torch.testing.assert_close(y[b, t], matrix @ x[b, t])


@pytest.mark.parametrize("inputs", [(), ("weight",)])
def test_vectors_are_mixed_before_they_scale(inputs):
    network, own = beside(bias=True, form="vectors", inputs=inputs)
    torch.nn.init.normal_(network.bias, generator=fresh(2))
    x = torch.randn(4, 6, generator=fresh(4), dtype=torch.float64)
    y = network(x)
    for t in range(4):
        seen = x[t] if inputs else network.weight @ x[t]
        p = torch.softmax(own.router.weight @ seen, 0)
        scaled = seen * sum(p[e] * own.factors[e] for e in range(3))
        expected = (network.weight @ scaled if inputs else scaled) + network.bias
        torch.testing.assert_close(y[t], expected)


def test_the_gradient_reaches_the_router_and_agrees_with_differences():
    network, own = beside()
    x = torch.randn(4, 6, generator=fresh(4), dtype=torch.float64)
    (grad,) = torch.autograd.grad(network(x).square().sum(), own.router.weight)
    step = torch.zeros_like(grad)
    step[1, 2] = 1e-6
    with torch.no_grad():
        own.router.weight += step
        more = network(x).square().sum()
        own.router.weight -= 2 * step
        slope = (more - network(x).square().sum()) / 2e-6
    torch.testing.assert_close(grad[1, 2], slope, rtol=1e-5, atol=1e-7)


def test_a_single_expert_is_lora_and_a_single_vector_is_ia3():
    one = moved(MoLoRA.attach(model(), None, Config(num_experts=1, rank=2, alpha=6.0), fresh()))
    lora = LoRA.attach(model(), None, Thin(rank=2, alpha=6.0), fresh())
    with torch.no_grad():
        for name, adapter in one.adapters.items():
            lora.adapters[name].A.copy_(adapter.A[0])
            lora.adapters[name].B.copy_(adapter.B[0])
    torch.testing.assert_close(logits(one.model), logits(lora.model))
    targets = ["out", "down_proj"]
    single = moved(MoLoRA.attach(model(), targets, Config(num_experts=1, form="vectors"), fresh()))
    factors = IA3.attach(model(), targets, Factors(), fresh())
    with torch.no_grad():
        for name, adapter in single.adapters.items():
            factors.adapters[name].factors.copy_(adapter.factors[0])
    torch.testing.assert_close(logits(single.model), logits(factors.model))


def test_a_router_that_keeps_fewer_still_starts_at_the_base():
    few = {"method": "top_k", "k": 1}
    there = MoLoRA.attach(model(), None, Config(form="vectors", router=few), fresh())
    assert torch.equal(logits(there.model), logits(model()))


def test_a_router_that_draws_in_training_draws_nothing_beside_a_model_that_does_not_train():
    noisy = {"method": "noisy_top_k", "k": 2}
    there = MoLoRA.attach(model(), None, Config(num_experts=3, rank=2, router=noisy), fresh())
    assert torch.equal(logits(there.model), logits(model()))
    there.model.train()
    with pytest.raises(MixwellError, match="NoisyTopK draws while training"):
        logits(there.model)


def test_a_routers_own_loss_is_an_output_and_reaches_the_router():
    noisy = {"method": "noisy_top_k", "k": 2, "load": 0.25}
    there = MoLoRA.attach(model(), None, Config(num_experts=3, rank=2, router=noisy), fresh())
    found = there.model.train()(TOKENS, generator=fresh(4))
    loss = found.losses["adapter_load"]  # each mixer's sum over its two matrices, averaged over the mixers
    assert loss > 0
    torch.testing.assert_close(found.aux, 4 * loss)
    found.aux.backward()
    assert all(adapter.router.weight.grad.any() for adapter in there.adapters.values())


def test_losses_that_nothing_can_carry_are_refused():
    network, _ = beside(router={"method": "bi_level", "k": 1, "nodes": 3})
    with pytest.raises(MixwellError, match="an adapter at Linear has auxiliary losses"):
        network(torch.zeros(4, 6, dtype=torch.float64))


def test_what_cannot_be_is_refused():
    with pytest.raises(MixwellError, match="gate_up_proj is a stack of 4 experts, whose rows are sorted away"):
        MoLoRA.attach(model(sparse=True), "gate_up_proj", Config(), fresh())
    with pytest.raises(MixwellError, match=r"rank is 17 at .*qkv\.weight"):
        MoLoRA.attach(model(), "qkv", Config(rank=17), fresh())
    with pytest.raises(ValueError, match="num_experts is 0"):
        Config(num_experts=0)
