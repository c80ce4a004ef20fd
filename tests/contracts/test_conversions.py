"""What every function from checkpoint to checkpoint promises (rooms `convert` and `precision`)."""

from collections import Counter
from collections.abc import Mapping

import pytest
import torch

from mixwell.convert.calibration import asked
from mixwell.core import registry
from mixwell.core.errors import MixwellError
from mixwell.core.registry import Entry
from mixwell.lm.conversion import account_of, convert
from mixwell.lm.receipt import Receipt, measure
from tests.contracts._conversions import VOCAB, calibration, dense_model, whole
from tests.contracts._tools import cases, fresh, poisoned_memory, same_config

ENTRIES = [e for e in (*cases("convert"), *cases("precision")) if e.values[0].family in ("convert", "precision")]
WHOLE = cases("convert")  # whose examples are all of a model's channel mixers


def other(name):
    """A model that an example names; those of one shape differ by name."""
    return dense_model(fresh(sum(map(ord, name))))


def run(entry, complete=False):
    values = entry.module().example(fresh())
    runs = complete or hasattr(entry.module(), "needs")
    source = whole(values["checkpoint"]) if runs else values["checkpoint"]
    text = calibration(models=other)
    return source, convert(entry, source, values["config"], fresh(1), text)


def asked_of(entry):
    values = entry.module().example(fresh())
    return asked(entry.module(), values["config"])


@pytest.mark.parametrize("entry", ENTRIES)
def test_input_stays_and_result_repeats(entry):
    source, result = run(entry)
    with poisoned_memory():
        untouched, again = run(entry)
    assert dict(source.arch) == dict(untouched.arch)
    assert source.tensors.keys() == untouched.tensors.keys()
    assert all(torch.equal(t, untouched.tensors[n]) for n, t in source.tensors.items())
    assert result.tensors.keys() == again.tensors.keys() and result.arch == again.arch
    for name, tensor in result.tensors.items():
        assert torch.equal(tensor, again.tensors[name]) and tensor.dtype == again.tensors[name].dtype
    assert all(torch.isfinite(t.float()).all() for t in result.tensors.values())


@pytest.mark.parametrize("entry", WHOLE)
def test_a_whole_model_runs_and_keeps_what_was_promised(entry):
    source, result = run(entry, complete=True)
    config = entry.module().example(fresh())["config"]
    tokens = torch.randint(0, VOCAB, (4, 16), generator=fresh(2))
    weighed = measure(source, result, tokens, entry.name, entry.module().promises(config)).check()
    assert 0 < weighed.active_after <= weighed.parameters_after
    account = account_of(source, result)
    assert account["copied"] + account["used"] + len(account["dropped"]) == len(source.tensors)
    assert result.tensors["embed.weight"].dtype == source.tensors["embed.weight"].dtype


@pytest.mark.parametrize("entry", ENTRIES)
def test_config_round_trips_and_promises_name_receipt_fields(entry):
    config = entry.module().example(fresh())["config"]
    assert same_config(config)
    for name, limit in entry.module().promises(config).items():
        assert name in Receipt.__dataclass_fields__ and limit >= 0


@pytest.mark.parametrize("entry", [e for e in ENTRIES if asked_of(e.values[0]).tokens])
def test_what_looks_at_text_says_so(entry):
    values = entry.module().example(fresh())
    with pytest.raises(MixwellError, match="looks at text with these options"):
        convert(entry, whole(values["checkpoint"]), values["config"], fresh(1))


class Planted:
    """A conversion that goes wrong in one way."""

    def __init__(self, change):
        self.change = change

    def example(self):
        return dense_model(fresh())


def planted(change):
    """An entry whose method hands back what `change` makes of the tensors."""
    class Stub(Entry):
        def module(self):
            return Planted(change)

        def load(self):
            return lambda checkpoint, config, generator: checkpoint.derive(tensors=change(dict(checkpoint.tensors)))

    return Stub("convert.planted", "planted", "Planted", (), 2026, frozenset(), None)


def unfilled(tensors):
    experts = torch.empty(3, 16, 6)
    experts[:2] = tensors["layers.0.channel_mixer.gate_up_proj"]
    return tensors | {"layers.0.channel_mixer.gate_up_proj": experts}


def zeroed(tensors):
    experts = torch.zeros(3, 16, 6)
    experts[[0, 2]] = tensors["layers.0.channel_mixer.gate_up_proj"]
    return tensors | {"layers.0.channel_mixer.gate_up_proj": experts}


def lost(tensors):
    return {name: value for name, value in tensors.items() if "layers.1.channel_mixer" not in name}


@pytest.mark.parametrize("change, message", [
    (unfilled, r"left layers.0.channel_mixer.gate_up_proj with values that are not finite, in expert 2"),
    (zeroed, r"left expert 1 of layers.0.channel_mixer.gate_up_proj at zero"),
    (lost, r"lost layers.1.channel_mixer.* without a rule"),
])
def test_a_conversion_that_leaves_something_out_is_refused(change, message):
    with pytest.raises(MixwellError, match=message):
        convert(planted(change), dense_model(fresh()), None, fresh())


class Counted(Mapping):
    """Tensors that are read anew whenever they are asked for."""

    def __init__(self, tensors):
        self.tensors, self.read = tensors, Counter()

    def __getitem__(self, name):
        self.read[name] += 1
        return self.tensors[name].clone()

    def __iter__(self):
        return iter(self.tensors)

    def __len__(self):
        return len(self.tensors)


def test_a_source_that_lies_on_a_disk_is_read_once():
    source = dense_model(fresh())
    counted = Counted(source.tensors)
    entry = registry.find("convert.upcycle")
    config = entry.module().Config(num_experts=2)
    found = convert(entry, source.derive(tensors=counted), config, fresh(1))
    plain = convert(entry, source, config, fresh(1))
    assert counted.read == dict.fromkeys(source.tensors, 1)
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in plain.tensors.items())
