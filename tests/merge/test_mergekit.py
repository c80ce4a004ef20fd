"""The same numbers as mergekit, whose results on small tensors are stored (`expected.py` says how)."""

import json
from unittest import mock

import pytest
import torch

from mixwell.core.config import from_dict
from mixwell.merge.merging import Model, merged
from mixwell.merge.naming import method_of
from tests.merge.expected import CASES, COLUMNS, FILE, ROWS, tensors, uniform

EXPECTED = json.loads(FILE.read_text())
RENAMED = {"lambda": "scale"}


@pytest.mark.parametrize("case", CASES)
def test_the_same_numbers(case):
    name, shared, own, has_base, count = CASES[case]
    entry, row = method_of(name)
    options = row | {RENAMED.get(key, key): value for key, value in {**shared, **own}.items()}
    if name == "passthrough":
        options["scale"] = options["scale"][0]
    config = from_dict(entry.module().Config, options)
    base, models = tensors(count)
    ground = Model({"w": base}, "base") if has_base else None
    given = [Model({"w": tensor}, f"model {place}") for place, tensor in enumerate(models)]
    with mock.patch("torch.rand", lambda *shape, generator: uniform(*shape)):
        found = merged(entry.name, given, ground, config)["w"]
    expected = torch.tensor(EXPECTED[case]).view(ROWS, COLUMNS)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
