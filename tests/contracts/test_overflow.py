"""What every overflow rule of the catalogue promises.

Tags: `draws` (depends on the generator); `drops` (an unserved slot is emptied and never moved); `positional` (goes by
the order of tokens); `permutation-equivariant` (does not).
"""

import dataclasses

import pytest
import torch

from mixwell.core.routing import Context, Routing
from tests.contracts._tools import cases, example, fresh, poisoned_memory, same_config, seeded

OVERFLOW = "experts.overflow"
CASES = cases(OVERFLOW)


def crowded(tokens=12, experts=4, k=2):
    """A routing that prefers the first experts, with one empty slot."""
    logits = torch.randn(tokens, experts, generator=fresh(1), dtype=torch.float64) - torch.arange(experts)
    scores = logits.softmax(-1)
    weights, indices = scores.topk(k, dim=-1)
    indices[-1, -1], weights[-1, -1] = -1, 0
    return Routing(indices, weights, scores, logits)


def apply(entry, routing, capacity, context=None, **changes):
    values = example(entry, **changes)
    return entry.load()(routing, values["config"], capacity, context or seeded(values["context"]))


@pytest.mark.parametrize("entry", CASES)
@pytest.mark.parametrize("capacity", [0, 1, 3, 6])
def test_no_expert_above_capacity(entry, capacity):
    routing = crowded()
    before = routing.indices_TK.clone(), routing.weights_TK.clone()
    with poisoned_memory():
        result = apply(entry, routing, capacity)
    assert torch.equal(routing.indices_TK, before[0]) and torch.equal(routing.weights_TK, before[1])
    assert result.load_E().max() <= capacity
    empty = result.indices_TK < 0
    assert (result.weights_TK[empty] == 0).all() and (result.weights_TK[~empty] > 0).all()
    assert (empty | (routing.indices_TK >= 0)).all(), "an empty slot was filled"
    for row in result.indices_TK.tolist():
        chosen = [e for e in row if e >= 0]
        assert len(chosen) == len(set(chosen)), "an expert stands twice in one token's slots"
    assert torch.equal(result.scores_TE, routing.scores_TE)


@pytest.mark.parametrize("entry", CASES)
@pytest.mark.parametrize("capacity", [2, 4])
def test_kept_slots_keep_their_weights_and_experts_fill_up(entry, capacity):
    routing = crowded()
    result = apply(entry, routing, capacity)
    same = (result.indices_TK == routing.indices_TK) & (routing.indices_TK >= 0)
    assert torch.equal(result.weights_TK[same], routing.weights_TK[same])
    assert (result.load_E() >= routing.load_E().clamp(max=capacity)).all()
    if "drops" in entry.tags:
        assert torch.equal(result.load_E(), routing.load_E().clamp(max=capacity))
        assert (same | (result.indices_TK < 0)).all()


@pytest.mark.parametrize("entry", CASES)
def test_ample_capacity_changes_nothing(entry):
    routing = crowded()
    result = apply(entry, routing, 12)
    assert torch.equal(result.indices_TK, routing.indices_TK) and torch.equal(result.weights_TK, routing.weights_TK)


@pytest.mark.parametrize("entry", CASES)
def test_same_generator_same_bits(entry):
    first, second = apply(entry, crowded(), 3), apply(entry, crowded(), 3)
    assert torch.equal(first.indices_TK, second.indices_TK) and torch.equal(first.weights_TK, second.weights_TK)
    silent = apply(entry, crowded(), 3, Context())
    assert silent.load_E().max() <= 3
    assert same_config(example(entry)["config"])


@pytest.mark.parametrize("entry", CASES)
def test_padding_is_served_last(entry):
    routing = crowded()
    mask = torch.arange(12) >= 6
    result = apply(entry, routing, 4, Context(mask_T=mask, generator=fresh(3)))
    alone = {f: getattr(routing, f)[mask] for f in ("indices_TK", "weights_TK", "scores_TE", "logits_TE")}
    real = apply(entry, Routing(**alone), 4, Context(generator=fresh(3)))
    if "draws" not in entry.tags:
        assert torch.equal(result.indices_TK[mask], real.indices_TK)
    assert torch.equal((result.indices_TK[mask] >= 0).sum(), (real.indices_TK >= 0).sum())


@pytest.mark.parametrize("entry", CASES)
def test_gradient_flows_through_kept_weights_only(entry):
    logits = crowded().logits_TE.requires_grad_()
    scores = logits.softmax(-1)
    weights, indices = scores.topk(2, dim=-1)
    routing = Routing(indices, weights, scores, logits)
    result = apply(entry, routing, 3)
    (gradient,) = torch.autograd.grad(result.weights_TK.sum(), weights)
    assert torch.equal(gradient, (result.indices_TK >= 0).to(gradient.dtype))


@pytest.mark.parametrize("entry", [p for p in CASES if "permutation-equivariant" in p.values[0].tags])
def test_permuting_tokens_permutes_what_is_kept(entry):
    routing = crowded()
    order = torch.randperm(12, generator=fresh(5))
    fields = ("indices_TK", "weights_TK", "scores_TE", "logits_TE")
    shuffled = apply(entry, dataclasses.replace(routing, **{f: getattr(routing, f)[order] for f in fields}), 3)
    assert torch.equal(apply(entry, routing, 3).indices_TK[order], shuffled.indices_TK)


@pytest.mark.parametrize("entry", [p for p in CASES if "positional" in p.values[0].tags])
def test_a_prefix_is_served_as_if_nothing_followed(entry):
    routing = crowded(k=1)
    whole = apply(entry, routing, 2)
    cut = {f: getattr(routing, f)[:7] for f in ("indices_TK", "weights_TK", "scores_TE", "logits_TE")}
    assert torch.equal(whole.indices_TK[:7], apply(entry, Routing(**cut), 2).indices_TK)


@pytest.mark.parametrize("entry", CASES)
def test_refuses_a_negative_capacity(entry):
    with pytest.raises(ValueError, match="0 or more slots"):
        apply(entry, crowded(), -1)
