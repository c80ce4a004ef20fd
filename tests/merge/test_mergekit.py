"""The same numbers as mergekit, whose results on small tensors are stored (`expected.py` says how)."""

import json
from unittest import mock

import numpy as np
import pytest
import torch

from mixwell.core.config import from_dict
from mixwell.merge.merging import Model, merged
from mixwell.merge.naming import method_of
from tests.merge.expected import CASES, COLUMNS, FILE, HALVES, ROWS, tensors, uniform

EXPECTED = json.loads(FILE.read_text())
ROUNDED = json.loads(HALVES.read_text())
BFLOAT16 = 5 * 2**-8  # what five roundings of numbers between 1 and 2 come to: mergekit rounds every step, we the last
CLOSE_VOTES = {"ties, sum": 14}  # where the changes' sum is nearly zero, and its sign a matter of rounding
RENAMED = {"lambda": "scale"}


def words(bits, count):
    """The table of draws as whole numbers."""
    return (uniform(count).double().numpy() * 2**32).astype(np.uint32)


def ours(case, dtype):
    name, shared, own, has_base, count = CASES[case]
    entry, row = method_of(name)
    options = row | {RENAMED.get(key, key): value for key, value in {**shared, **own}.items()}
    if name == "passthrough":
        options["scale"] = options["scale"][0]
    config = from_dict(entry.module().Config, options)
    base, models = tensors(count)
    ground = Model({"w": base.to(dtype)}, "base") if has_base else None
    given = [Model({"w": tensor.to(dtype)}, f"model {place}") for place, tensor in enumerate(models)]
    with (mock.patch("torch.rand", lambda *shape, generator: uniform(*shape)),
          mock.patch("mixwell.merge._sparsify.drawn", words)):
        return merged(entry.name, given, ground, config)["w"]


@pytest.mark.parametrize("case", CASES)
def test_the_same_numbers(case):
    expected = torch.tensor(EXPECTED[case]).view(ROWS, COLUMNS)
    torch.testing.assert_close(ours(case, torch.float32), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_the_same_numbers_to_rounding_in_bfloat16(case):
    found = ours(case, torch.bfloat16)
    assert found.dtype == torch.bfloat16
    expected = torch.tensor(ROUNDED[case]).view(ROWS, COLUMNS)
    apart = (found.float() - expected).abs().flatten()
    far = (apart > BFLOAT16).nonzero().flatten().tolist()
    assert far == ([CLOSE_VOTES[case]] if case in CLOSE_VOTES else [])
