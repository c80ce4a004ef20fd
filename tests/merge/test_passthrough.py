"""Pass through: the tensor itself, or times a number."""

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.merge.merging import Model, merged
from mixwell.merge.passthrough import Config, passthrough


def test_the_tensor_itself_or_times_a_number(generator):
    only = torch.randn(3, 4, generator=generator)
    found = passthrough([only], None, Config(), generator)
    assert torch.equal(found, only) and found.data_ptr() != only.data_ptr()
    assert torch.equal(passthrough([only], None, Config(scale=-0.5), generator), -only / 2)
    with pytest.raises(MixwellError, match="2 models beside the base; expected 1"):
        merged("passthrough", [Model({"w": only}, "m")] * 2, None, Config())
