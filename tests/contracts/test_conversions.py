"""What every function from checkpoint to checkpoint promises (rooms `convert` and `precision`)."""

import pytest
import torch

from mixwell.lm.receipt import Receipt
from tests.contracts._tools import cases, fresh, same_config

ENTRIES = [*cases("convert"), *cases("precision")]


def run(entry):
    values = entry.module().example(fresh())
    values["generator"] = fresh(1)
    return values, entry.load()(**values)


@pytest.mark.parametrize("entry", ENTRIES)
def test_input_stays_and_result_repeats(entry):
    values, result = run(entry)
    untouched = entry.module().example(fresh())["checkpoint"]
    assert dict(values["checkpoint"].arch) == dict(untouched.arch)
    assert values["checkpoint"].tensors.keys() == untouched.tensors.keys()
    assert all(torch.equal(t, untouched.tensors[n]) for n, t in values["checkpoint"].tensors.items())
    again = run(entry)[1]
    assert result.tensors.keys() == again.tensors.keys() and result.arch == again.arch
    for name, tensor in result.tensors.items():
        assert torch.equal(tensor, again.tensors[name]) and tensor.dtype == again.tensors[name].dtype
    assert all(torch.isfinite(t.float()).all() for t in result.tensors.values())


@pytest.mark.parametrize("entry", ENTRIES)
def test_config_round_trips_and_promises_name_receipt_fields(entry):
    config = entry.module().example(fresh())["config"]
    assert same_config(config)
    for name, limit in entry.module().promises(config).items():
        assert name in Receipt.__dataclass_fields__ and limit >= 0
