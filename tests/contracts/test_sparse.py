"""What every method promises that trains towards zeros (family `precision.sparse`)."""

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy

from mixwell.core.errors import MixwellError
from tests.contracts._tools import cases, fresh, poisoned_memory, same_config

ENTRIES = cases("precision.sparse")
WEIGHTS = [e for e in ENTRIES if "weights" in e.values[0].tags]  # masks on matrices of any module
STATIC = [e for e in ENTRIES if "static" in e.values[0].tags]  # weights stay


def trained(entry, steps=30):
    """(method, model, batch) after a short training, before `finish`."""
    values = entry.module().example(fresh())
    model, x, y = values["model"], values["x"], values["y"]
    method = entry.load()(model, values["config"], values["generator"])
    optimizer = torch.optim.Adam(method.trained(), lr=2e-2)
    first = None
    for step in range(steps):
        method.advance(step / steps)
        loss = cross_entropy(model(x), y)
        first = float(loss.detach()) if first is None else first
        whole = loss + sum(method.losses().values())
        optimizer.zero_grad()
        whole.backward()
        optimizer.step()
    method.advance(1.0)
    return method, model, (x, y), first


@pytest.mark.parametrize("entry", WEIGHTS)
def test_learns_ends_sparse_and_leaves_the_model_as_it_was_built(entry):
    names = {name: value.shape for name, value in entry.module().example(fresh())["model"].state_dict().items()}
    with poisoned_memory():
        method, model, (x, y), first = trained(entry)
    inside = model(x)
    method.finish()
    assert {name: value.shape for name, value in model.state_dict().items()} == names
    assert float(cross_entropy(model(x), y).detach()) < first
    torch.testing.assert_close(model(x), inside)
    assert all(parameter.requires_grad for parameter in model.parameters())
    again, other, _, _ = trained(entry)
    again.finish()
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
    zero = sum(int((p == 0).sum()) for p in model.parameters() if p.ndim > 1)
    assert zero >= 0.45 * sum(p.numel() for p in model.parameters() if p.ndim > 1)


@pytest.mark.parametrize("entry", STATIC)
def test_weights_stay_bit_for_bit(entry):
    before = copy.deepcopy(entry.module().example(fresh())["model"]).state_dict()
    method, model, _, _ = trained(entry)
    method.finish()
    for name, value in model.state_dict().items():
        same = value == before[name]
        assert bool((same | (value == 0)).all()) and (value.ndim > 1 or bool(same.all()))


@pytest.mark.parametrize("entry", WEIGHTS)
def test_refuses_patterns_that_fit_nothing_and_weights_that_have_a_form(entry):
    values = entry.module().example(fresh())
    config = values["config"]
    with pytest.raises(MixwellError, match=r"no matrix of the model fits nowhere.*"):
        entry.load()(values["model"], type(config)(weights=("nowhere.*",)), fresh())
    entry.load()(values["model"], config, fresh())
    with pytest.raises(MixwellError, match="read through another form already"):
        entry.load()(values["model"], config, fresh())


@pytest.mark.parametrize("entry", ENTRIES)
def test_config_round_trips(entry):
    assert same_config(entry.module().example(fresh())["config"])


@pytest.mark.parametrize("entry", [e for e in ENTRIES if "format" in e.values[0].tags])
def test_a_format_gives_back_what_went_in_and_computes_with_it(entry):
    values = entry.module().example(fresh())
    before = values["weight"].clone()
    with poisoned_memory():
        stored = entry.load()(**values)
        dense = stored.dense()
    assert torch.equal(values["weight"], before) and torch.equal(dense, before.half())
    x = torch.randn(4, before.shape[1], generator=fresh(1))
    torch.testing.assert_close(stored.product(x), x @ dense.float().T, rtol=1e-5, atol=1e-4)
    assert stored.size_bytes < dense.nbytes


@pytest.mark.parametrize("entry", [e for e in ENTRIES if "search" in e.values[0].tags])
def test_a_search_repeats_and_never_ends_with_worse_than_it_met(entry):
    with poisoned_memory():
        found = entry.load()(**entry.module().example(fresh()))
    assert found == entry.load()(**entry.module().example(fresh()))
    ends = {"energy": min, "flops": max}
    name = next(name for name in ends if hasattr(found, name))
    assert ends[name](found.history) in (found.history[-1], getattr(found, name))
