"""What every method that stores weights in few bits promises."""

import dataclasses

import pytest
import torch

from mixwell.core import registry
from mixwell.core.checkpoint import Checkpoint, channel_mixers
from mixwell.core.errors import MixwellError
from mixwell.formats.tensors import size_bytes
from mixwell.kernels.codes import parts_of, plain_weight, real_scale
from mixwell.lm.conversion import account_of, convert
from mixwell.lm.model import LanguageModel, load
from mixwell.precision.bits import best_widths
from tests.contracts._conversions import VOCAB, calibration, whole
from tests.contracts._tools import cases, fresh

ENTRIES = [e for e in cases("precision") if "codes" in e.values[0].tags]
NEAREST = [e for e in ENTRIES if "nearest" in e.values[0].tags]


def made(entry):
    values = entry.module().example(fresh())
    source = whole(values["checkpoint"])
    return source, convert(entry, source, values["config"], fresh(1), calibration())


def coded_names(result):
    return [name for name in result.tensors if f"{name}.bits" in result.tensors]


@pytest.fixture(scope="module")
def results():
    return {}


def cached(results, entry):
    if entry.name not in results:
        results[entry.name] = made(entry)
    return results[entry.name]


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_expert_is_in_few_bits(results, entry):
    source, result = cached(results, entry)
    names = set(coded_names(result))
    wanted = {name for name in source.tensors if name.startswith("layers.")
              and name.endswith(("gate_up_proj", "down_proj", "qkv.weight", "out.weight"))}
    assert wanted <= names
    for name in wanted:
        assert result.tensors[f"{name}.bits"].shape == source.tensors[name].shape[:-1]
        whole_bits = int(result.tensors[f"{name}.bits"].sum()) * source.tensors[name].shape[-1]
        assert result.tensors[name].numel() * 8 == whole_bits


@pytest.mark.parametrize("entry", ENTRIES)
def test_saves_and_loads_bit_equal_and_counts_its_weights(results, entry, tmp_path):
    source, result = cached(results, entry)
    model = LanguageModel.from_checkpoint(result)
    model.save(tmp_path / "m")
    again = load(tmp_path / "m")
    tokens = torch.randint(0, VOCAB, (2, 9), generator=fresh(3))
    assert torch.equal(model(tokens).logits_BTV, again(tokens).logits_BTV)
    assert model.num_parameters() == LanguageModel.from_checkpoint(source).num_parameters()
    back = again.to_checkpoint()
    assert back.tensors.keys() == result.tensors.keys()
    assert all(torch.equal(value, back.tensors[name]) for name, value in result.tensors.items())


@pytest.mark.parametrize("entry", ENTRIES)
def test_float32_agrees_with_float64(results, entry):
    _, result = cached(results, entry)
    for name in coded_names(result):
        narrow = plain_weight(result.tensors, name)
        wide = plain_weight(result.tensors, name, torch.float64)
        torch.testing.assert_close(narrow.double(), wide, rtol=1e-6, atol=0)


def levels(result, name):
    """Every value that each row's groups can take [..., O, C, levels], and the codes' scale."""
    parts = dict(parts_of(result.tensors, name))
    bits = int(parts["bits"].max())
    codes = torch.arange(2**bits).double()
    scale = real_scale(parts["scale"]).double().unsqueeze(-1)
    if "table" in parts:
        return scale * parts["table"].double()[..., None, None, :]
    if "zero" in parts:
        return scale * (codes - parts["zero"].double().unsqueeze(-1))
    return scale * (codes - 2 ** (bits - 1))[1:]


@pytest.mark.parametrize("entry", NEAREST)
def test_each_weight_is_at_the_nearest_level_of_its_group(results, entry):
    source, result = cached(results, entry)
    for name in coded_names(result):
        weight = source.tensors[name].double()
        own = levels(result, name)
        groups = own.shape[-2]
        away = (weight.unflatten(-1, (groups, -1)).unsqueeze(-1) - own.unsqueeze(-2)).abs().amin(-1)
        found = (weight - plain_weight(result.tensors, name, torch.float64)).abs().unflatten(-1, (groups, -1))
        assert bool((found <= away * (1 + 1e-6) + 1e-9).all())


@pytest.mark.parametrize("entry", NEAREST)
def test_idempotent(entry, generator):
    module = entry.module()
    config = module.example(fresh())["config"]
    weight = torch.randn(3, 32, 64, generator=generator)
    weight[0, 0] = 0
    once = module.encode(weight, config).weight().dequantised(torch.float32)
    again = module.encode(once, config).weight().dequantised(torch.float32)
    assert torch.equal(once, again)
    assert bool((once[0, 0] == 0).all())


@pytest.mark.parametrize("entry", NEAREST)
def test_states_its_bits(entry, generator):
    module = entry.module()
    config = module.example(fresh())["config"]
    stored = module.encode(torch.randn(8, 64, generator=generator), config).stored("w")
    counted = sum(stored[name].nbytes * 8 for name in ("w", "w.scale", "w.zero") if name in stored)
    assert counted / (8 * 64) == module.bits_per_weight(config, 64)


@pytest.mark.parametrize("entry", [e for e in ENTRIES if "calibrated" in e.values[0].tags])
def test_receipt_lists_the_tokens_of_each_expert(results, entry):
    source, result = cached(results, entry)
    told = account_of(source, result)["calibration"]
    assert told["tokens_shown_to_every_expert"] == 72
    assert sum(told["tokens_routed_by_expert"]["0"]) == 2 * 72


BUDGETED = [e for e in ENTRIES if "budgeted" in e.values[0].tags]


def mean_bits(source, result):
    """Bits of the codes over all numbers in codes."""
    names = coded_names(result)
    total = sum(int(result.tensors[f"{name}.bits"].sum()) * source.tensors[name].shape[-1] for name in names)
    return total / sum(source.tensors[name].numel() for name in names)


def within(entry, **changes):
    values = entry.module().example(fresh())
    config = dataclasses.replace(values["config"], **changes)
    source = whole(values["checkpoint"])
    return source, convert(entry, source, config, fresh(1), calibration())


@pytest.mark.parametrize("entry", BUDGETED)
def test_keeps_its_budget_of_bits_and_says_which(entry):
    source, result = within(entry, widths=(2, 4, 8), bits_per_weight=3.5)
    assert 2.5 < mean_bits(source, result) <= 3.5
    told = result.lineage[-1]["bits"]
    for name, own in told.items():
        rows = result.tensors[f"{name}.bits"].reshape(len(own), -1)
        assert [row.unique().tolist() for row in rows] == [[width] for width in own]
    assert len({width for own in told.values() for width in own}) > 1


@pytest.mark.parametrize("entry", BUDGETED)
def test_keeps_its_budget_of_bytes(entry):
    limit = 3210
    result = within(entry, widths=(2, 4, 8), max_bytes=limit)[1]
    assert 0.9 * limit < size_bytes(result.tensors) <= limit
    with pytest.raises(MixwellError, match="max_bytes is 900; scales and what stays whole take"):
        within(entry, max_bytes=900)
    with pytest.raises(MixwellError, match=r"max_bytes: the budget is .*; the smallest widths take"):
        within(entry, widths=(7, 8), bits_per_weight=8, max_bytes=limit)


@pytest.mark.parametrize("entry", BUDGETED)
def test_budgets_that_are_none(entry):
    for change, message in ({"bits_per_weight": 1}, "bits_per_weight is 1; expected at least 2"), (
            {"widths": (1,)}, r"widths is \(1,\)"), ({"max_bytes": -1}, "max_bytes is -1"), ({"tokens": 0}, "tokens"):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(entry.module().example(fresh())["config"], **change)


@pytest.mark.parametrize("entry", [e for e in BUDGETED if hasattr(e.values[0].module(), "sensitivities")])
def test_more_bits_do_no_more_harm(entry):
    """The widths chosen are those that the harms told, and the harm falls as the budget grows."""
    values = entry.module().example(fresh())
    source = whole(values["checkpoint"])
    found = entry.module().sensitivities(source, values["config"], fresh(1), calibration())
    assert found.harm_UB.shape == (len(found.places), len(values["config"].widths))
    assert bool((found.harm_UB.isfinite()).all())
    harms = []
    for budget in (2.0, 3.0, 5.0, 8.0):
        config = dataclasses.replace(values["config"], bits_per_weight=budget)
        widths = best_widths(source, found, config)
        places = [config.widths.index(width) for width in widths]
        harms.append(float(found.harm_UB[range(len(places)), places].sum()))
    assert harms == sorted(harms, reverse=True) and harms[0] > harms[-1]


@pytest.mark.parametrize("entry", ENTRIES)
def test_refusals(entry):
    source, result = made(entry)
    config = entry.module().example(fresh())["config"]
    with pytest.raises(MixwellError, match="quantised already"):
        convert(entry, result, config, fresh(1), calibration())
    odd = source.derive(tensors={**source.tensors, "layers.0.channel_mixer.weird": torch.ones(3, 8, 8)})
    with pytest.raises(MixwellError, match=r"would stay whole|does not know what it reads"):
        entry.load()(odd, config, fresh(1), *([calibration()] if hasattr(entry.module(), "needs") else []))
    narrow = Checkpoint(source.arch, {**source.tensors, "layers.0.channel_mixer.down_proj": torch.ones(3, 16, 6)})
    with pytest.raises(MixwellError, match="rows of 6; expected a multiple of 8"):
        entry.load()(narrow, config, fresh(1), *([calibration()] if hasattr(entry.module(), "needs") else []))
    with pytest.raises(ValueError, match="above 0"):
        type(config)(max_kl_nats=0.0)


NARROWER = [e for e in cases("precision") if "narrower" in e.values[0].tags]


@pytest.mark.parametrize("entry", NARROWER)
def test_a_narrower_model_loads_decodes_and_has_experts_of_one_width(results, entry, tmp_path):
    source, result = cached(results, entry)
    model = LanguageModel.from_checkpoint(result)
    again = load(model.save(tmp_path / "m"))
    tokens = torch.randint(0, VOCAB, (2, 9), generator=fresh(3))
    assert torch.equal(model(tokens).logits_BTV, again(tokens).logits_BTV)
    whole_model = LanguageModel.from_checkpoint(source)
    assert model.num_parameters() < whole_model.num_parameters()
    cache = model.new_cache()
    steps = [model(tokens[:, i : i + 1], cache=cache).logits_BTV for i in range(9)]
    torch.testing.assert_close(torch.cat(steps, 1), model(tokens).logits_BTV, rtol=1e-4, atol=1e-5)
    for layer, spec in enumerate(channel_mixers(result.arch)):
        wide = result.tensors[f"layers.{layer}.channel_mixer.down_proj"].shape
        assert wide[-1] == spec["hidden_dim"] and wide[0] == spec["num_experts"]
    assert account_of(source, result)["calibration"]["tokens_shown_to_every_expert"] == 72


@pytest.mark.parametrize("entry", NARROWER)
def test_what_is_quantised_is_not_cut(entry):
    config = entry.module().example(fresh())["config"]
    source = whole(entry.module().example(fresh())["checkpoint"])
    few = registry.find("precision.integers")
    coded = convert(few, source, few.module().Config(group_size=8), fresh())
    with pytest.raises(MixwellError, match="is quantised"):
        convert(entry, coded, config, fresh(1), calibration())


@pytest.mark.parametrize("entry", [e for e in cases("precision") if "zeros" in e.values[0].tags])
def test_the_share_that_was_asked_for_is_zero_and_only_weights_of_blocks_are(results, entry):
    source, result = cached(results, entry)
    names = {name for name in source.tensors
             if name.startswith("layers.") and "norm" not in name and "router" not in name}
    gone = sum(int((result.tensors[name] == 0).sum()) for name in names)
    config = entry.module().example(fresh())["config"]
    assert gone == round(config.share * sum(source.tensors[name].numel() for name in names))
    assert all(torch.equal(result.tensors[name], source.tensors[name]) for name in source.tensors.keys() - names)
    assert not any(torch.equal(result.tensors[name], source.tensors[name]) for name in names)
