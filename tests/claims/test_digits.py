"""Readers of digits start with mixers of one size, whatever their kind, and learn."""

import pytest

from mixwell.claims.experts._digits import SIZE, read, two_mixers
from mixwell.claims.starts import root_mean_square
from mixwell.core.rng import generator


@pytest.mark.parametrize("kind", ["swiglu", "soft_moe"])
def test_mixers_are_brought_to_one_size(kind):
    draws = generator(0, "reader")
    sizes = {"hidden_dim": 8} if kind == "swiglu" else {"hidden_dim": 8, "num_experts": 4}
    mixers = two_mixers(f"experts.layers.{kind}", draws, **sizes)
    found = {}
    for mixer in mixers:
        mixer.register_forward_hook(lambda module, given, mixed: found.update({module: mixed.y_TD.detach()}))
    read(0, mixers, draws, steps=0)
    assert [root_mean_square(found[mixer]) for mixer in mixers] == pytest.approx([SIZE, SIZE], rel=0.1)


def test_a_reader_learns_digits():
    draws = generator(0, "reader")
    mixers = two_mixers("experts.layers.swiglu", draws, hidden_dim=16)
    assert read(0, mixers, draws, steps=60, lr=1e-2) > 0.5
