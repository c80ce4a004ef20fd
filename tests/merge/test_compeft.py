"""ComPEFT: signs and one size, the code back and forth and near its bound, merges of ternary changes."""

import pytest
import torch

from mixwell.merge.compeft import Config, bits_per_weight, compeft, decoded, encoded
from mixwell.merge.merging import Model, merged


def test_signs_of_the_largest_times_the_deviation(generator):
    base = torch.randn(10, 10, generator=generator)
    own = base + torch.randn(10, 10, generator=generator)
    found = compeft([own], base, Config(density=0.3, alpha=1.5), generator) - base
    delta = own - base
    least = sorted(delta.abs().flatten().tolist())[-30]
    expected = 1.5 * delta.double().std() * delta.sign() * (delta.abs() >= least)
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-5)
    assert not (compeft([own], base, Config(density=0.0), generator) - base).any()


def test_threshold_and_size_are_of_the_whole_model_and_changes_add_up(generator):
    base = Model({"a": torch.zeros(50), "b": torch.zeros(50)}, "base")
    first = {"a": torch.randn(50, generator=generator), "b": 1e-3 * torch.randn(50, generator=generator)}
    second = {"a": torch.randn(50, generator=generator), "b": torch.randn(50, generator=generator)}
    config = Config(density=0.2, weight=(1.0, -2.0), scale=0.5)
    both = merged("compeft", [Model(first, "m"), Model(second, "n")], base, config)
    one = merged("compeft", [Model(first, "m")], base, Config(density=0.2))
    other = merged("compeft", [Model(second, "n")], base, Config(density=0.2))
    assert int(one["a"].count_nonzero()) == 20 and not one["b"].any()
    torch.testing.assert_close(both["a"], 0.5 * (one["a"] - 2 * other["a"]))


@pytest.mark.parametrize("density", [0.02, 0.05, 0.2, 0.6])
def test_the_code_gives_the_entries_back_and_comes_near_its_bound(density, generator):
    draws = torch.rand(20_000, generator=generator)
    ternary = (draws < density).float() * torch.where(torch.rand(20_000, generator=generator) < 0.5, 1.0, -1.0)
    data = encoded(ternary)
    assert torch.equal(decoded(data, 20_000), ternary)
    bits = 8 * len(data) / 20_000
    assert bits_per_weight(density) * 0.97 < bits < bits_per_weight(density) * 1.12 + 0.01


def test_limits():
    assert encoded(torch.zeros(9))[:8] == bytes(8) and torch.equal(decoded(encoded(torch.zeros(9)), 9), torch.zeros(9))
    assert bits_per_weight(1.0) == 1.0 and bits_per_weight(0.0) == 0.0
    with pytest.raises(ValueError, match="density is -1"):
        Config(density=-1)
