"""Rotary frequencies against their formulas, number by number."""

import math

import pytest
import torch

from mixwell.kernels.rope import attention_factor, check_rope_scaling, yarn_scale
from mixwell.kernels.rotary import rotary_angles

WIDTH, THETA = 8, 100.0
DYNAMIC = {"type": "dynamic", "factor": 3.0, "original_max_position_embeddings": 10}
LONG = {"type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 3.0, 4.0, 5.0], "factor": 4.0,
        "original_max_position_embeddings": 10}


def angles(last, scaling):
    return rotary_angles(torch.arange(last + 1).unsqueeze(0), WIDTH, THETA, scaling)[0, 1].tolist()


@pytest.mark.parametrize("last", [5, 9, 10, 24])
def test_dynamic_grows_with_the_longest_position(last):
    over = max(last + 1, 10) / 10
    theta = THETA * (3 * over - 2) ** (WIDTH / (WIDTH - 2))
    assert angles(last, DYNAMIC) == pytest.approx([theta ** (-2 * i / WIDTH) for i in range(4)], rel=1e-5)


@pytest.mark.parametrize(("last", "name"), [(5, "short_factor"), (9, "short_factor"), (10, "long_factor")])
def test_longrope_has_other_factors_beyond_its_length(last, name):
    assert angles(last, LONG) == pytest.approx([THETA ** (-2 * i / WIDTH) / LONG[name][i] for i in range(4)], rel=1e-5)


def test_factors_on_queries_and_keys():
    assert attention_factor(None) == attention_factor(DYNAMIC) == 1
    assert attention_factor(LONG) == pytest.approx(math.sqrt(1 + math.log(4) / math.log(10)))
    assert attention_factor(LONG | {"attention_factor": 1.7}) == 1.7
    yarn = {"type": "yarn", "factor": 8.0, "original_max_position_embeddings": 10}
    assert attention_factor(yarn) == pytest.approx(0.1 * math.log(8) + 1)
    weighed = attention_factor(yarn | {"mscale": 0.7, "mscale_all_dim": 1.3})
    assert weighed == pytest.approx((0.07 * math.log(8) + 1) / (0.13 * math.log(8) + 1))
    assert yarn_scale(0.5) == 1


@pytest.mark.parametrize(("scaling", "message"), [
    ({"type": "ntk", "factor": 2.0}, "'ntk' is not supported; expected none, linear, dynamic, llama3, yarn, longrope"),
    ({"type": "linear"}, "linear needs factor; got nothing"),
    (DYNAMIC | {"beta_fast": 2.0}, "dynamic needs factor, original_max_position_embeddings; got beta_fast"),
    (LONG | {"short_factor": [1.0, -1.0]}, r"short_factor is \[1.0, -1.0\]"),
    (DYNAMIC | {"factor": True}, "factor is True"),
])
def test_refuses(scaling, message):
    with pytest.raises(ValueError, match=message):
        check_rope_scaling(scaling)
