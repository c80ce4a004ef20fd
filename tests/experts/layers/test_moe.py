"""The sparse mixture against a double loop over tokens and experts, forward and gradient."""

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.core.routing import Context
from mixwell.experts.layers.moe import Config, MoE
from mixwell.experts.layers.swiglu import Config as DenseConfig
from mixwell.experts.layers.swiglu import SwiGLU


def silu(x):
    return x * torch.sigmoid(x)


def loop(x, gate_up, down, weights_TE, shared=None):
    """Token by token, expert by expert."""
    rows = []
    for t in range(x.shape[0]):
        total = torch.zeros_like(x[t])
        for e in range(gate_up.shape[0]):
            if weights_TE[t, e] != 0:
                gate, up = (gate_up[e] @ x[t]).chunk(2)
                total = total + weights_TE[t, e] * (down[e] @ (silu(gate) * up))
        if shared:
            gate, up = (shared[0] @ x[t]).chunk(2)
            total = total + shared[1] @ (silu(gate) * up)
        rows.append(total)
    return torch.stack(rows)


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("shared", [0, 2])
@pytest.mark.parametrize("tokens", [1, 3, 17])
def test_agrees_with_a_double_loop_forward_and_gradient(generator, k, shared, tokens):
    config = Config(num_experts=4, hidden_dim=5, router={"method": "top_k", "k": k}, shared_experts=shared,
                    shared_hidden_dim=3 if shared else None)
    layer = MoE(6, config, generator).double()
    with torch.no_grad():
        for p in layer.parameters():
            p.mul_(20)  # away from the small initial values, where errors hide
    x = torch.randn(tokens, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    probe = torch.randn(tokens, 6, generator=generator, dtype=torch.float64)
    mixed = layer(x, Context())
    extra = (layer.shared_gate_up_proj, layer.shared_down_proj) if shared else None
    expected = loop(x, layer.gate_up_proj, layer.down_proj, layer.router(x, Context()).dense_TE(), extra)
    torch.testing.assert_close(mixed.y_TD, expected)
    leaves = [x, *layer.parameters()]
    found = torch.autograd.grad((mixed.y_TD * probe).sum(), leaves)
    wanted = torch.autograd.grad((expected * probe).sum(), leaves)
    for a, b in zip(found, wanted):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("tokens", [1, 9])
def test_a_gate_of_the_shared_expert_and_clamped_experts_with_biases(tokens, generator):
    config = Config(num_experts=3, hidden_dim=5, shared_experts=1, shared_gate=True, clamp=0.8, alpha=1.3)
    layer = MoE(6, config, generator).double().eval()
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
    x = torch.randn(tokens, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    weights_TE, rows = layer.router(x, Context()).dense_TE(), []
    for t in range(tokens):
        gate, up = (layer.shared_gate_up_proj @ x[t]).chunk(2)
        total = torch.sigmoid(layer.shared_gate[0] @ x[t]) * (layer.shared_down_proj @ (silu(gate) * up))
        for e in range(3):
            gate, up = (layer.gate_up_proj[e] @ x[t] + layer.gate_up_bias[e]).chunk(2)
            gate, up = gate.clamp(max=0.8), up.clamp(-0.8, 0.8)
            y = layer.down_proj[e] @ (gate * torch.sigmoid(1.3 * gate) * (up + 1)) + layer.down_bias[e]
            total = total + weights_TE[t, e] * y
        rows.append(total)
    expected, found = torch.stack(rows), layer(x, Context()).y_TD
    torch.testing.assert_close(found, expected)
    with torch.no_grad():
        torch.testing.assert_close(layer(x, Context()).y_TD, expected)
    leaves = [x, *layer.parameters()]
    got, wanted = (torch.autograd.grad(y.square().sum(), leaves) for y in (found, expected))
    for a, b in zip(got, wanted):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("options", "message"), [
    ({"shared_gate": True}, "shared_gate needs shared_experts"),
    ({"clamp": 0.0}, "clamp is 0.0"),
    ({"clamp": 1.0, "expert_dropout": 0.1}, "expert_dropout is not made for experts with a clamp"),
])
def test_refuses_what_does_not_go_together(options, message):
    with pytest.raises(ValueError, match=message):
        Config(num_experts=4, hidden_dim=5, **options)


def test_a_router_that_asks_for_responses_takes_no_clamp():
    with pytest.raises(ValueError, match="it takes no clamp"):
        MoE(6, Config(num_experts=4, hidden_dim=5, clamp=1.0, router={"method": "competition"}))


def test_equal_experts_make_the_dense_block(generator):
    """Copies behind any renormalised router compute what the dense block computes: why upcycling preserves."""
    dense = SwiGLU(6, DenseConfig(hidden_dim=5), generator)
    layer = MoE(6, Config(num_experts=4, hidden_dim=5), generator)
    with torch.no_grad():
        layer.gate_up_proj.copy_(dense.gate_up_proj.expand_as(layer.gate_up_proj))
        layer.down_proj.copy_(dense.down_proj.expand_as(layer.down_proj))
    x = torch.randn(9, 6, generator=generator)
    torch.testing.assert_close(layer(x, Context()).y_TD, dense(x, Context()).y_TD)


def test_an_expert_without_tokens_is_harmless(generator):
    layer = MoE(6, Config(num_experts=4, hidden_dim=5, router={"k": 1}), generator)
    with torch.no_grad():
        layer.router.weight.zero_()
        layer.router.weight[2, 0] = 1.0
    x = torch.randn(9, 6, generator=generator).abs()
    layer(x, Context()).y_TD.sum().backward()
    assert torch.isfinite(layer.gate_up_proj.grad).all()
    assert layer.gate_up_proj.grad[2].abs().max() > 0
    assert layer.gate_up_proj.grad[[0, 1, 3]].abs().max() == 0


def test_no_tokens_at_all(generator):
    layer = MoE(6, Config(num_experts=4, hidden_dim=5), generator)
    assert layer(torch.zeros(0, 6), Context()).y_TD.shape == (0, 6)


def test_losses_are_outputs_and_a_coefficient_that_is_set_is_on(generator):
    x = torch.randn(9, 6, generator=generator)
    layer = MoE(6, Config(num_experts=4, hidden_dim=5, balance={"switch": 0.5, "z_loss": 0.0}), generator)
    mixed = layer(x, Context())
    assert set(mixed.losses) == {"switch", "z_loss"}
    torch.testing.assert_close(mixed.aux, 0.5 * mixed.losses["switch"])
    assert MoE(6, Config(num_experts=4, hidden_dim=5, balance={}), generator)(x, Context()).aux is None


@pytest.mark.parametrize("options, message", [
    ({"router": {"method": "topk"}}, "Did you mean 'top_k'"),
    ({"router": {"method": "top_k", "kk": 2}}, "unknown key 'kk'"),
    ({"router": {"k": 9}}, "choose 1 to 4"),
    ({"balance": {"swich": 0.1}}, "Did you mean 'switch'"),
    ({"balance": {"switch": -1}}, "0 or more"),
])
def test_refuses(options, message):
    with pytest.raises(MixwellError, match=message):
        MoE(6, Config(num_experts=4, hidden_dim=5, **options))


def test_refuses_bad_sizes():
    with pytest.raises(ValueError, match="at least 1"):
        Config(num_experts=0, hidden_dim=5)
    with pytest.raises(ValueError, match="give both"):
        Config(num_experts=2, hidden_dim=5, shared_hidden_dim=3)


@pytest.mark.parametrize("rule", ["drop", "priority", "recycle"])
def test_capacity_bounds_what_an_expert_takes(generator, rule):
    x = torch.randn(24, 6, generator=generator) + 1
    config = Config(num_experts=4, hidden_dim=5, capacity_factor=0.5, overflow={"method": rule}, router={"k": 2})
    mixed = MoE(6, config, generator)(x, Context(generator=generator))
    assert mixed.routing.load_E().max() <= 6  # 0.5 * 24 * 2 / 4
    free = MoE(6, Config(num_experts=4, hidden_dim=5, router={"k": 2}), torch.Generator().manual_seed(1))
    ample = MoE(6, Config(num_experts=4, hidden_dim=5, router={"k": 2}, capacity_factor=4.0, overflow={"method": rule}),
                torch.Generator().manual_seed(1))
    torch.testing.assert_close(free(x, Context()).y_TD, ample(x, Context(generator=generator)).y_TD)


def test_balance_is_measured_on_what_the_router_wished(generator):
    x = torch.randn(24, 6, generator=generator) + 1
    layers = [MoE(6, Config(num_experts=4, hidden_dim=5, capacity_factor=c), torch.Generator().manual_seed(1))
              for c in (None, 0.25)]
    free, tight = (layer(x, Context()).losses["switch"] for layer in layers)
    torch.testing.assert_close(free, tight)


def test_a_competition_router_is_given_the_experts_responses(generator):
    layer = MoE(6, Config(num_experts=4, hidden_dim=5, router={"method": "competition"}), generator)
    x = torch.randn(9, 6, generator=generator)
    expected = torch.stack([loop(x, layer.gate_up_proj[[e]], layer.down_proj[[e]], torch.ones(9, 1)).norm(dim=-1)
                            for e in range(4)], dim=-1)
    torch.testing.assert_close(layer.responses(x), expected)
    assert torch.isfinite(layer.train()(x, Context(generator=generator)).y_TD).all()


def test_routers_that_learn_nothing_get_no_balance_rule(generator):
    layer = MoE(6, Config(num_experts=4, hidden_dim=5, router={"method": "random_top_k"}), generator)
    assert layer(torch.randn(9, 6, generator=generator), Context(generator=generator)).losses == {}


def test_dropout_inside_experts_acts_in_training_only(generator):
    x = torch.randn(40, 6, generator=generator)
    plain, dropping = (MoE(6, Config(num_experts=4, hidden_dim=50, expert_dropout=rate),
                           torch.Generator().manual_seed(1)) for rate in (0.0, 0.4))
    torch.testing.assert_close(dropping.eval()(x, Context()).y_TD, plain.eval()(x, Context()).y_TD)
    torch.testing.assert_close(dropping.train()(x, Context()).y_TD, plain(x, Context()).y_TD)  # no generator, no draw
    draws = [dropping(x, Context(generator=torch.Generator().manual_seed(i))).y_TD for i in range(200)]
    assert not torch.equal(draws[0], draws[1])
    expected = plain(x, Context()).y_TD
    assert (torch.stack(draws).mean(0) - expected).norm() < 0.2 * expected.norm()  # right in the mean
    with pytest.raises(MixwellError, match="0 up to 1"):
        MoE(6, Config(num_experts=4, hidden_dim=5, expert_dropout=1.0))


def test_the_global_batch_loss_gathers_the_load_over_the_passes_of_a_step(generator):
    layer = MoE(6, Config(num_experts=4, hidden_dim=5, balance={"global_batch": 0.01}), generator).train()
    parts = torch.randn(2, 30, 6, generator=generator) + torch.tensor([[[2.0]], [[-2.0]]])
    first, second = (layer(part, Context(generator=generator, step=3)) for part in parts)
    loads = torch.stack([m.routing.load_E() for m in (first, second)]).double()
    mean = second.routing.scores_TE.double().mean(0)
    expected = 4 * (loads.sum(0) / loads.sum() * mean).sum()
    torch.testing.assert_close(second.losses["global_batch"].double(), expected, rtol=1e-5, atol=1e-6)
    layer.eval()(parts[0], Context(step=3))  # measuring leaves the buffer alone
    again = layer.train()(parts[1], Context(generator=generator, step=4)).losses["global_batch"].double()
    torch.testing.assert_close(again, 4 * (loads[1] / loads[1].sum() * mean).sum(), rtol=1e-5, atol=1e-6)


def test_flops_are_counted_by_hand():
    layer = MoE(6, Config(num_experts=8, hidden_dim=5, router={"method": "top_k", "k": 3}, shared_experts=2,
                          shared_hidden_dim=7))
    experts, shared, router = 3 * 3 * 2 * 6 * 5, 2 * 3 * 2 * 6 * 7, 2 * 6 * 8  # three products each, two FLOPs an entry
    assert layer.flops_per_token() == experts + shared + router
