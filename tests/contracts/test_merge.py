"""What every rule that merges weights promises (room `merge`, methods that take tensors)."""

import dataclasses

import pytest
import torch

from mixwell.core import registry
from mixwell.core.errors import MixwellError
from mixwell.merge.merging import Model, Rule, merged
from tests.contracts._tools import fresh, poisoned_memory, same_config

OTHERS = {"checkpoints", "statistics"}
RULES = [entry for entry in registry.family("merge") if entry.family == "merge" and not entry.tags & OTHERS]
CASES = [pytest.param(entry, id=entry.name) for entry in RULES]
AVERAGES = [pytest.param(entry, id=entry.name) for entry in RULES if "averages" in entry.tags]
PIECED = [pytest.param(entry, id=entry.name) for entry in RULES if "elementwise" in entry.tags]
BIG = (300, 250)  # more entries than a piece has


def models_of(values):
    """The example's tensors as models of one tensor, and its base."""
    base = None if values["base"] is None else Model({"w": values["base"]}, "base")
    return [Model({"w": tensor}, f"model {place}") for place, tensor in enumerate(values["tensors"])], base


def lazily(entry, values):
    models, base = models_of(values)
    return merged(entry.name, models, base, values["config"])["w"]


def with_tensors(values, tensors, base):
    return {**values, "tensors": tensors, "base": None if values["base"] is None else base}


@pytest.mark.parametrize("entry", CASES)
def test_inputs_stay_and_the_result_repeats(entry):
    values = entry.module().example(fresh())
    before = [tensor.clone() for tensor in values["tensors"]]
    with poisoned_memory():
        first = lazily(entry, values)
        again = lazily(entry, values)
    assert torch.equal(first, again) and torch.isfinite(first).all()
    assert all(torch.equal(a, b) for a, b in zip(before, values["tensors"]))
    assert first.shape == values["tensors"][0].shape


@pytest.mark.parametrize("entry", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_type_is_kept_and_the_sum_is_taken_in_float32_or_better(entry, dtype):
    values = entry.module().example(fresh())
    tensors = [tensor.to(dtype) for tensor in values["tensors"]]
    base = None if values["base"] is None else values["base"].to(dtype)
    found = lazily(entry, with_tensors(values, tensors, base))
    assert found.dtype == dtype
    wide = with_tensors(values, [t.double() for t in tensors], None if base is None else base.double())
    precise = lazily(entry, wide)
    room = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    torch.testing.assert_close(found.double(), precise, rtol=room, atol=room)


@pytest.mark.parametrize("entry", AVERAGES)
def test_copies_of_one_model_give_it_back(entry):
    values = entry.module().example(fresh())
    one = values["tensors"][0]
    found = lazily(entry, with_tensors(values, [one.clone() for _ in values["tensors"]], values["base"]))
    torch.testing.assert_close(found, one)


@pytest.mark.parametrize("entry", CASES)
def test_copies_of_the_base_give_it_back(entry):
    values = entry.module().example(fresh())
    one = values["tensors"][0] if values["base"] is None else values["base"]
    found = lazily(entry, with_tensors(values, [one.clone() for _ in values["tensors"]], one))
    torch.testing.assert_close(found, one)


@pytest.mark.parametrize("entry", CASES)
def test_the_order_of_models_counts_for_nothing_unless_declared(entry):
    values = entry.module().example(fresh())
    config = values["config"]
    tuples = {f.name: tuple(reversed(getattr(config, f.name))) for f in dataclasses.fields(config)
              if isinstance(getattr(config, f.name), tuple)}
    turned = {**values, "tensors": values["tensors"][::-1], "config": dataclasses.replace(config, **tuples)}
    found, other = lazily(entry, values), lazily(entry, turned)
    if "ordered" not in entry.tags:
        torch.testing.assert_close(found, other)
    elif len(values["tensors"]) > 1:
        one_sided = {**turned, "config": config}
        assert not torch.allclose(found, lazily(entry, one_sided))


@pytest.mark.parametrize("entry", PIECED)
def test_pieces_give_the_bits_of_the_whole(entry):
    values = entry.module().example(fresh())
    draws = fresh(5)
    base = torch.randn(BIG, generator=draws)
    tensors = [base + torch.randn(BIG, generator=draws) for _ in values["tensors"]]
    large = with_tensors(values, tensors, base)
    rule = Rule(entry)
    whole = rule(large["tensors"], large["base"], large["config"], fresh(9))
    torch.testing.assert_close(lazily(entry, large), whole, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("entry", CASES)
def test_a_number_that_is_none_is_named(entry):
    values = entry.module().example(fresh())
    tensors = [tensor.clone() for tensor in values["tensors"]]
    tensors[-1][2, 3] = float("nan")
    with pytest.raises(MixwellError, match=f"model {len(tensors) - 1}: w holds nan; expected finite"):
        lazily(entry, with_tensors(values, tensors, values["base"]))


@pytest.mark.parametrize("entry", CASES)
def test_the_number_of_models_and_the_base_are_checked(entry):
    values = entry.module().example(fresh())
    models, base = models_of(values)
    allowed = entry.module().MODELS
    for count in {allowed.start - 1, allowed.stop} - {0, 1000}:
        wrong = (models * 3)[:count]
        with pytest.raises(MixwellError, match=f"{count} models beside the base; expected {allowed.start}"):
            merged(entry.name, wrong, base, values["config"])
    if "base" in entry.tags:
        with pytest.raises(MixwellError, match="beyond a base; name the model"):
            merged(entry.name, models, None, values["config"])
    elif "optional-base" in entry.tags:
        without = lazily(entry, {**values, "base": None})
        assert not torch.allclose(without, lazily(entry, values))
    else:
        with pytest.raises(MixwellError, match="takes no base"):
            merged(entry.name, models, models[0], values["config"])


@pytest.mark.parametrize("entry", PIECED)
def test_what_is_looked_at_first_is_declared(entry):
    assert hasattr(entry.module(), "survey") == ("surveys" in entry.tags)
    assert hasattr(entry.module(), "overview") == ("overviews" in entry.tags)


@pytest.mark.parametrize("entry", CASES)
def test_config_round_trips(entry):
    assert same_config(entry.module().example(fresh())["config"])


STATISTICS = [pytest.param(entry, id=entry.name) for entry in registry.family("merge") if "statistics" in entry.tags]


@pytest.mark.parametrize("entry", STATISTICS)
def test_merges_by_statistics_keep_inputs_copies_and_order(entry):
    values = entry.module().example(fresh())
    before = [{name: tensor.clone() for name, tensor in model.items()} for model in values["models"]]
    found = entry.load()(**values)
    assert same_config(values["config"])
    for model, kept in zip(values["models"], before):
        assert all(torch.equal(model[name], kept[name]) for name in kept)
    twins = {**values, "models": [values["models"][0]] * len(before)}
    torch.testing.assert_close(entry.load()(**twins)["w"], before[0]["w"], rtol=1e-4, atol=1e-4)
    turned = {**values, "models": values["models"][::-1], "statistics": values["statistics"][::-1]}
    torch.testing.assert_close(entry.load()(**turned)["w"], found["w"], rtol=1e-3, atol=1e-4)


CHECKPOINTS = [pytest.param(entry, id=entry.name) for entry in registry.family("merge") if "checkpoints" in entry.tags]


@pytest.mark.parametrize("entry", CHECKPOINTS)
def test_merges_of_checkpoints_keep_inputs_and_give_copies_back(entry):
    values = entry.module().example(fresh())
    before = [{name: tensor.clone() for name, tensor in one.tensors.items()} for one in values["checkpoints"]]
    found = entry.load()(**values)
    again = entry.load()(**{**values, "generator": fresh(0)})
    assert same_config(values["config"]) and found.arch == values["checkpoints"][0].arch
    for one, kept in zip(values["checkpoints"], before):
        assert all(torch.equal(one.tensors[name], kept[name]) for name in kept)
    for name, tensor in found.tensors.items():
        assert tensor.dtype == before[0][name].dtype and torch.isfinite(tensor).all()
        assert again.tensors[name].shape == tensor.shape
    one = values["checkpoints"][0]
    config = dataclasses.replace(values["config"], **({"centre": False} if hasattr(values["config"], "centre") else {}))
    twins = entry.load()(**{**values, "checkpoints": [one, one], "config": config})
    for name, tensor in one.tensors.items():
        torch.testing.assert_close(twins.tensors[name], tensor)
