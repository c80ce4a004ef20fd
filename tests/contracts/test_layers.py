"""What every layer of the catalogue promises.

Tags: `tokenwise` (permuting tokens permutes the output); `non-causal` (a token sees later ones of its row);
`cross-example` (rows see each other); `router` (its config names a router, and any may serve).
"""

import contextlib
import dataclasses

import pytest
import torch

from mixwell.core.errors import MixwellError
from tests.contracts._tools import cases, double, example, fresh, poisoned_memory, same_config, seeded, widen

LAYERS = "experts.layers"


def build(entry):
    values = example(entry)
    layer = entry.load()(values["dim"], values["config"], fresh(1))
    return layer.eval(), values["x_TD"], values["context"]


@pytest.mark.parametrize("entry", cases(LAYERS))
def test_form(entry):
    layer, x, context = build(entry)
    before = x.clone()
    with poisoned_memory():
        mixed = layer(x, seeded(context))
    assert torch.equal(x, before)
    assert mixed.y_TD.shape == x.shape and mixed.y_TD.dtype == x.dtype
    assert torch.isfinite(mixed.y_TD).all()
    assert layer.flops_per_token() > 0
    assert mixed.aux is None or (mixed.aux.ndim == 0 and torch.isfinite(mixed.aux))
    assert all(loss.ndim == 0 for loss in mixed.losses.values())
    assert torch.equal(mixed.y_TD, layer(x, seeded(context)).y_TD)


@pytest.mark.parametrize("entry", cases(LAYERS))
def test_without_a_generator_nothing_is_drawn_in_secret(entry):
    layer, x, context = build(entry)
    context = dataclasses.replace(context, generator=None)
    with poisoned_memory(), contextlib.suppress(MixwellError):
        layer.train()(x, context)


@pytest.mark.parametrize("entry", cases(LAYERS))
def test_config_round_trips(entry):
    assert same_config(example(entry)["config"])


@pytest.mark.parametrize("entry", cases(LAYERS))
def test_float32_agrees_with_float64(entry):
    layer, x, context = build(entry)
    single, wide = layer(x, seeded(context)).y_TD, double(layer)(x.double(), seeded(widen(context))).y_TD
    torch.testing.assert_close(single.double(), wide, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("entry", cases(LAYERS))
def test_gradient_agrees_with_finite_differences(entry):
    layer, x, context = build(entry)
    layer, x, context = double(layer).train(), x.double(), widen(context)
    parameters = [p for p in layer.parameters() if p.requires_grad]
    probe = torch.randn(x.shape, generator=fresh(4), dtype=torch.float64)

    def objective(x_TD):
        drawn = dataclasses.replace(context, generator=fresh(2))
        mixed = layer(x_TD, drawn)
        return (mixed.y_TD * probe).sum()

    leaves = [x.clone().requires_grad_(), *parameters]
    gradients = torch.autograd.grad(objective(leaves[0]), leaves, allow_unused=True)
    assert any(g is not None and g.abs().max() > 0 for g in gradients)
    step = 1e-6
    for leaf, gradient in zip(leaves, gradients):
        direction = torch.randn(leaf.shape, generator=fresh(8), dtype=torch.float64)
        with torch.no_grad():
            leaf.add_(direction, alpha=step)
            above = objective(leaves[0])
            leaf.add_(direction, alpha=-2 * step)
            below = objective(leaves[0])
            leaf.add_(direction, alpha=step)
        expected = (above - below) / (2 * step)
        found = torch.zeros(()) if gradient is None else (gradient * direction).sum()
        torch.testing.assert_close(found.double(), expected, rtol=2e-4, atol=1e-7)


@pytest.mark.parametrize("entry", [p for p in cases(LAYERS) if "tokenwise" in p.values[0].tags])
def test_permuting_tokens_permutes_the_output(entry):
    layer, x, context = build(entry)
    order = torch.randperm(x.shape[0], generator=fresh(5))
    fields = {f.name: getattr(context, f.name)[order] for f in dataclasses.fields(context)
              if f.name.endswith("_T") and getattr(context, f.name) is not None}
    shuffled = layer(x[order], dataclasses.replace(context, **fields)).y_TD
    torch.testing.assert_close(layer(x, context).y_TD[order], shuffled, rtol=1e-4, atol=1e-6)


def swayed(layer, x, context, tokens):
    """Which tokens' outputs change when `tokens` do, bool [T]."""
    moved = x.clone()
    moved[tokens] += torch.randn(x[tokens].shape, generator=fresh(7), dtype=x.dtype)
    before, after = layer(x, context).y_TD, layer(moved, context).y_TD
    return (before - after).abs().amax(1) > 1e-9


def rows_of(x, context):
    """(layer input in two rows at least, their context and shape)."""
    shape = context.batch_shape or (2, x.shape[0] // 2)
    return x, dataclasses.replace(context, batch_shape=shape), shape


@pytest.mark.parametrize("entry", cases(LAYERS))
def test_tokens_see_later_ones_and_other_rows_where_the_tags_say_so(entry):
    layer, x, context = build(entry)
    layer, x = double(layer), x.double()
    x, context, shape = rows_of(x, widen(context))
    seen_later = seen_across = False
    for place in range(x.shape[0]):
        reached = swayed(layer, x, context, [place]).view(shape)
        row, position = divmod(place, shape[1])
        seen_later |= bool(reached[row, :position].any())
        reached[row] = False
        seen_across |= bool(reached.any())
    assert seen_later == ("non-causal" in entry.tags)
    assert seen_across == ("cross-example" in entry.tags)


@pytest.mark.parametrize("entry", [p for p in cases(LAYERS) if "router" in p.values[0].tags])
def test_any_router_may_serve(entry):
    values = example(entry, router={"method": "sinkhorn", "k": 1})
    layer = entry.load()(values["dim"], values["config"], fresh(1)).train()
    mixed = layer(values["x_TD"], dataclasses.replace(values["context"], generator=fresh(2)))
    assert torch.isfinite(mixed.y_TD).all() and mixed.routing is not None
    names = [type(m).__name__ for m in layer.modules()]
    assert "Sinkhorn" in names and "TopK" not in names
