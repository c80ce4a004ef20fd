"""What every sequence mixer of the catalogue promises.

Tags choose the checks: `recurrent` (what it keeps of the past does not grow), `positions` (reads the positions it is
given), `router` (hands back a routing and its losses), `estimated-gradient` (its backward pass leaves a dependence out
on purpose, so that finite differences say nothing of it).
"""

import dataclasses

import pytest
import torch

from mixwell.core.routing import Context
from mixwell.mixing import SequenceMixed
from mixwell.sequence._parts import SequenceMixer
from tests.contracts._tools import cases, double, example, fresh, poisoned_memory, same_config

SEQUENCE = "sequence"
CASES = cases(SEQUENCE)


def build(entry):
    values = example(entry)
    mixer = entry.load()(values["dim"], values["config"], fresh(1))
    assert isinstance(mixer, SequenceMixer)
    return mixer.eval(), values["x_BTD"], values["context"]


def wide(entry):
    """The mixer in float64 with parameters of some size, so that no error hides behind small weights."""
    mixer, x, context = build(entry)
    mixer, draws = double(mixer), fresh(6)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draws, dtype=torch.float64) * 0.3)
    return mixer, x.double(), context


def part(context, x, rows=slice(None), positions=slice(None)):
    """What is known of some rows and positions of x."""
    shape = x.shape[:2]
    names = [f.name for f in dataclasses.fields(context) if f.name.endswith("_T")]
    known = {n: getattr(context, n).view(shape)[rows, positions].flatten() for n in names
             if getattr(context, n) is not None}
    return dataclasses.replace(context, batch_shape=None, **known)


def tagged(tag):
    return [p for p in CASES if tag in p.values[0].tags]


@pytest.mark.parametrize("entry", CASES)
def test_form(entry):
    mixer, x, context = build(entry)
    before = x.clone()
    with poisoned_memory():
        mixed = mixer(x, context=context)
    assert isinstance(mixed, SequenceMixed)
    assert torch.equal(x, before)
    assert mixed.y_BTD.shape == x.shape and mixed.y_BTD.dtype == x.dtype
    assert torch.isfinite(mixed.y_BTD).all()
    assert all(loss.ndim == 0 and torch.isfinite(loss) for loss in mixed.losses.values())
    assert mixed.aux is None or (mixed.aux.ndim == 0 and torch.isfinite(mixed.aux))
    assert 0 < mixer.flops_per_token(1) <= mixer.flops_per_token(64)


@pytest.mark.parametrize("entry", CASES)
def test_same_generator_same_bits(entry):
    one, x, context = build(entry)
    two = build(entry)[0]
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert torch.equal(one(x, context=context).y_BTD, two(x, context=context).y_BTD)


@pytest.mark.parametrize("entry", CASES)
def test_config_round_trips(entry):
    assert same_config(example(entry)["config"])


@pytest.mark.parametrize("entry", CASES)
def test_float32_agrees_with_float64(entry):
    mixer, x, context = build(entry)
    single, exact = mixer(x, context=context).y_BTD, double(mixer)(x.double(), context=context).y_BTD
    torch.testing.assert_close(single.double(), exact, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("entry", CASES)
def test_no_position_sees_a_later_one(entry):
    mixer, x, context = wide(entry)
    changed = x.clone()
    changed[:, 3:] += 1
    before, after = mixer(x, context=context).y_BTD, mixer(changed, context=context).y_BTD
    torch.testing.assert_close(before[:, :3], after[:, :3])
    assert (before[:, 3:] - after[:, 3:]).abs().min() > 0
    earlier = x.clone()
    earlier[:, 0] += 1
    assert (mixer(earlier, context=context).y_BTD[:, 1:] - before[:, 1:]).abs().amax() > 1e-3, "nothing is mixed"


@pytest.mark.parametrize("cuts", [(1, 1, 1, 1, 1), (3, 2), (1, 4)], ids=["step by step", "3+2", "1+4"])
@pytest.mark.parametrize("entry", CASES)
def test_split_and_carry_equals_the_whole(entry, cuts):
    mixer, x, context = wide(entry)
    cache, done, start = mixer.new_cache(), [], 0
    for size in cuts:
        at = slice(start, start + size)
        done.append(mixer(x[:, at], cache=cache, context=part(context, x, positions=at)).y_BTD)
        start += size
    torch.testing.assert_close(torch.cat(done, 1), mixer(x, context=context).y_BTD, rtol=1e-5, atol=1e-6)
    assert cache.length == x.shape[1]


@pytest.mark.parametrize("entry", CASES)
def test_rows_do_not_see_each_other(entry):
    mixer, x, context = wide(entry)
    whole = mixer(x, context=context).y_BTD
    for row in range(x.shape[0]):
        at = slice(row, row + 1)
        alone = mixer(x[at], context=part(context, x, rows=at)).y_BTD
        torch.testing.assert_close(alone, whole[at])


@pytest.mark.parametrize("entry", CASES)
def test_padding_on_the_left_changes_nothing(entry):
    mixer, x, context = wide(entry)
    B, T, _ = x.shape
    padded = torch.cat((torch.full_like(x[:, :2], 9.0), x), 1)
    mask = torch.arange(T + 2).expand(B, -1) >= 2
    positions = (torch.arange(T + 2) - 2).clamp_min(0).unsqueeze(0)
    labels = None if context.labels_T is None else torch.cat(
        (context.labels_T.new_zeros(B, 2), context.labels_T.view(B, T)), 1).flatten()
    found = mixer(padded, positions, None, mask, Context(mask_T=mask.flatten(), labels_T=labels))
    plain = mixer(x, context=context)
    torch.testing.assert_close(found.y_BTD[:, 2:], plain.y_BTD, rtol=1e-5, atol=1e-6)
    assert found.losses.keys() == plain.losses.keys()
    for name, loss in plain.losses.items():
        torch.testing.assert_close(found.losses[name], loss)


@pytest.mark.parametrize("entry", CASES)
def test_gradient_reaches_every_parameter_and_agrees_with_finite_differences(entry):
    mixer, x, context = wide(entry)
    probe = torch.randn(x.shape, generator=fresh(4), dtype=torch.float64)
    x.requires_grad_()
    leaves = [x, *mixer.parameters()]

    def objective():
        return (mixer(x, context=context).y_BTD * probe).sum()

    gradients = torch.autograd.grad(objective(), leaves)
    assert all(gradient.abs().max() > 0 for gradient in gradients)
    if "estimated-gradient" in entry.tags:
        return
    step = 1e-6
    for leaf, gradient in zip(leaves, gradients, strict=True):
        direction = torch.randn(leaf.shape, generator=fresh(8), dtype=torch.float64)
        with torch.no_grad():
            leaf.add_(direction, alpha=step)
            above = objective()
            leaf.add_(direction, alpha=-2 * step)
            below = objective()
            leaf.add_(direction, alpha=step)
        torch.testing.assert_close((gradient * direction).sum(), (above - below) / (2 * step), rtol=2e-4, atol=1e-7)


@pytest.mark.parametrize("entry", tagged("recurrent"))
def test_what_is_kept_of_the_past_does_not_grow(entry):
    mixer, x, context = build(entry)
    cache, sizes = mixer.new_cache(), set()
    for t in range(x.shape[1]):
        mixer(x[:, t : t + 1], cache=cache, context=part(context, x, positions=slice(t, t + 1)))
        sizes.add(sum(v.numel() for v in vars(cache).values() if isinstance(v, torch.Tensor)))
    assert len(sizes) == 1 and min(sizes) > 0


@pytest.mark.parametrize("entry", CASES)
def test_positions_are_read_where_the_tag_says_so(entry):
    mixer, x, context = wide(entry)
    positions = torch.arange(x.shape[1]).unsqueeze(0)
    plain = mixer(x, positions, context=context).y_BTD
    torch.testing.assert_close(plain, mixer(x, context=context).y_BTD)
    spread = mixer(x, 3 * positions, context=context).y_BTD
    assert torch.allclose(plain, spread) != ("positions" in entry.tags)


@pytest.mark.parametrize("entry", CASES)
def test_a_routing_comes_back_where_the_tag_says_so(entry):
    mixer, x, context = build(entry)
    mixed = mixer(x, context=context)
    if "router" not in entry.tags:
        assert mixed.routing is None and mixed.aux is None and not mixed.losses
        return
    assert mixed.routing.indices_TK.shape[0] == x.shape[0] * x.shape[1]
    assert mixed.losses and mixed.aux > 0
