"""Plan, dispatch and combine against a loop over tokens and slots."""

import pytest
import torch

from mixwell.core import routing
from mixwell.core.routing import Routing, combine, dispatch, plan

T, D, E, K = 13, 6, 5, 3


def choices(generator: torch.Generator, empty: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices [T, K] with empty slots, one token without any expert and one expert without any token; weights."""
    indices = torch.rand(T, E - 1, generator=generator).topk(K).indices
    indices[torch.rand(T, K, generator=generator) < empty] = -1
    indices[4] = -1
    weights = torch.rand(T, K, generator=generator, dtype=torch.float64)
    return indices, weights * (indices >= 0)


@pytest.mark.parametrize("few", [0, 10_000])
def test_plan_sorts_slots_by_expert_and_keeps_token_order(monkeypatch, generator, few):
    monkeypatch.setattr(routing, "_FEW", few)
    indices, _ = choices(generator)
    order = plan(indices, E)
    expected = [(e, t * K + k) for e in range(E) for t in range(T) for k in range(K) if indices[t, k] == e]
    assert order.slots_N.tolist() == [slot for _, slot in expected]
    assert order.tokens_N.tolist() == [slot // K for _, slot in expected]
    assert order.counts_E.tolist() == [(indices == e).sum().item() for e in range(E)]
    assert not order.full and plan(indices.clamp(min=0), E).full
    for row, (_, slot) in enumerate(expected):
        assert order.rows_TK.view(-1)[slot] == row
    assert (order.rows_TK == -1).equal(indices == -1)
    assert all(t.dtype == torch.int64 for t in (order.slots_N, order.tokens_N, order.counts_E, order.rows_TK))


@pytest.mark.parametrize("empty", [0.0, 0.3, 1.0])
def test_dispatch_and_combine_agree_with_a_loop(generator, empty):
    indices, weights = choices(generator, empty)
    if empty == 0.0:
        indices = indices.clamp(min=0)
    x = torch.randn(T, D, generator=generator, dtype=torch.float64, requires_grad=True)
    scale = torch.arange(1.0, E + 1, dtype=torch.float64)
    weights.requires_grad_()
    order = plan(indices, E)
    rows = dispatch(x, order) * scale.repeat_interleave(order.counts_E).unsqueeze(1)
    y = combine(rows, order, weights)
    expected = torch.stack([sum((weights[t, k] * scale[indices[t, k]] * x[t] for k in range(K) if indices[t, k] >= 0),
                                torch.zeros(D, dtype=torch.float64)) for t in range(T)])
    torch.testing.assert_close(y, expected)
    if empty == 1.0:
        assert not y.any()
        return
    grad = torch.randn(T, D, generator=generator, dtype=torch.float64)
    for got, want in zip(torch.autograd.grad(y, (x, weights), grad), torch.autograd.grad(expected, (x, weights), grad)):
        torch.testing.assert_close(got, want)
    assert not got[indices < 0].any()


def test_gradients_match_finite_differences(generator):
    indices, weights = choices(generator)
    order = plan(indices, E)
    x = torch.randn(T, D, generator=generator, dtype=torch.float64, requires_grad=True)
    rows = torch.randn(order.slots_N.numel(), D, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: dispatch(x, order), x)
    assert torch.autograd.gradcheck(lambda y, w: combine(y, order, w), (rows, weights.requires_grad_()))


def test_combine_sums_half_width_rows_in_float32(generator):
    """Sixty-four slots of 1 + 2^-8 each: a sum in bfloat16 would stop growing on the way."""
    indices = torch.arange(64).view(1, 64)
    rows = torch.full((64, 4), 1.0078125, dtype=torch.bfloat16)
    y = combine(rows, plan(indices, 64), torch.ones(1, 64))
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), torch.full((1, 4), 64.5))


def test_rows_that_no_slot_names_leave_no_trace():
    """A token without experts gets zeros even where the rows hold infinities."""
    order = plan(torch.tensor([[0], [-1]]), 1)
    y = combine(torch.full((1, 3), float("inf")), order, torch.tensor([[1.0], [0.0]]))
    assert y[0].isinf().all() and not y[1].any()


def test_same_bits_each_time_and_inputs_untouched(generator):
    indices = torch.rand(512, 8, generator=generator).topk(2).indices
    x, weights = torch.randn(512, 32, generator=generator), torch.rand(512, 2, generator=generator)
    before = x.clone(), weights.clone()

    def once() -> list[torch.Tensor]:
        leaf, w = x.clone().requires_grad_(), weights.clone().requires_grad_()
        order = plan(indices, 8)
        y = combine(dispatch(leaf, order), order, w)
        return [y, *torch.autograd.grad(y.square().sum(), (leaf, w))]

    assert all(a.equal(b) for a, b in zip(once(), once()))
    assert x.equal(before[0]) and weights.equal(before[1])


def test_a_second_derivative_is_refused_rather_than_wrong():
    order = plan(torch.tensor([[0]]), 1)
    x = torch.ones(1, 2, requires_grad=True)
    (first,) = torch.autograd.grad(dispatch(x, order).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_routing_counts_and_spreads_its_slots(generator):
    indices, weights = choices(generator)
    r = Routing(indices, weights, torch.rand(T, E, generator=generator))
    mask = torch.arange(T) % 2 == 0
    assert r.num_experts == E
    assert r.load_E().tolist() == [(indices == e).sum().item() for e in range(E)]
    assert r.load_E(mask).tolist() == [(indices[mask] == e).sum().item() for e in range(E)]
    dense = r.dense_TE()
    for t in range(T):
        for e in range(E):
            assert dense[t, e] == weights[t][indices[t] == e].sum()
    assert dict(r.with_loss("z", torch.tensor(1.0)).losses) == {"z": 1.0} and not r.losses
