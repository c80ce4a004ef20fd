"""float16 weights: every floating tensor is numpy's nearest, nothing else changes, what is too large is refused."""

import numpy as np
import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.precision.half import Config, example, half, promises, rounded


def test_every_tensor_is_the_nearest_half(generator):
    values = example(generator)
    after = half(**values)
    for name, weight in values["checkpoint"].tensors.items():
        wanted = weight.numpy().astype(np.float16)
        assert after.tensors[name].dtype == torch.float16
        assert (after.tensors[name].numpy() == wanted).all()
    assert promises(Config(max_kl_nats=0.5)) == {"kl_nats": 0.5}


def test_ties_go_to_the_even_number():
    assert rounded(torch.tensor([2049.0, 2051.0, 2.0**-25, 3 * 2.0**-25])).tolist() == [2048, 2052, 0, 2.0**-23]


def test_refuses_what_float16_does_not_hold(generator):
    values = example(generator)
    values["checkpoint"].tensors["layers.0.channel_mixer.down_proj"][0, 0, 0] = 7e4
    with pytest.raises(MixwellError, match=r"down_proj holds 70000; float16 ends at 65504; keep the type"):
        half(**values)
    with pytest.raises(ValueError, match="above 0"):
        Config(max_kl_nats=0.0)
