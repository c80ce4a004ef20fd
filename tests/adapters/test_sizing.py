"""The rank that a size asks for, against counts worked out by hand."""

import pytest

from mixwell.adapters import flora, ia3, lora, mos
from mixwell.adapters.sizing import sized
from mixwell.core.errors import MixwellError
from tests.contracts._adapters import model


def test_the_rank_is_that_of_the_nearest_size():
    network = model()
    each = 2 * (16 + 16)  # numbers of one rank at `out` of both layers
    for wanted, rank in ((each, 1), (5 * each + 10, 5), (5 * each - 10, 5)):
        found = sized(lora.LoRA, network, "out", lora.Config(alpha=3.0), wanted)
        assert found == lora.Config(alpha=3.0, rank=rank)
    both = sized(flora.FLoRA, network, "out", flora.Config(), 2 * (3 * 32 + 9))
    assert (both.rank_in, both.rank_out) == (3, 3)
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_a_size_that_no_rank_gives_is_refused():
    network = model()
    with pytest.raises(MixwellError, match="this adapter has rank 1 at the nearest, which trains 64"):
        sized(lora.LoRA, network, "out", lora.Config(), 20)
    with pytest.raises(MixwellError, match="has rank 16 at the nearest, which trains 1024"):
        sized(lora.LoRA, network, "out", lora.Config(), 4000)
    with pytest.raises(MixwellError, match="this adapter has one size only, which trains 32"):
        sized(ia3.IA3, network, "out", ia3.Config(), 100)
    assert sized(ia3.IA3, network, "out", ia3.Config(), 33) == ia3.Config()


def test_what_is_trained_as_it_is_counts():
    network = model()
    norms = 2 * 16  # gains before attention of both layers
    found = sized(lora.LoRA, network, "out", lora.Config(), 3 * 64 + norms, ["sequence_norm"])
    assert found.rank == 3
    with pytest.raises(MixwellError, match=rf"has rank 1 at the nearest, which trains {64 + norms}"):
        sized(lora.LoRA, network, "out", lora.Config(), 64, ["sequence_norm"])


def test_a_budget_is_the_size():
    network = model()
    config = mos.Config(rank=4, budget=3)
    each = 2 * 3 * (16 + 16)  # the pools of `out` are those of rank 3 at both layers
    assert sized(mos.MoS, network, "out", config, each) == config
    with pytest.raises(MixwellError, match=rf"is as large as its budget says, which trains {each}"):
        sized(mos.MoS, network, "out", config, 2 * each)


def test_no_rank_is_looked_at_twice(monkeypatch):
    seen = []

    def counted(method, model, targets, config, trained):
        seen.append(config.rank)
        return 64 * config.rank

    monkeypatch.setattr("mixwell.adapters.sizing._count", counted)
    assert sized(lora.LoRA, model(), "out", lora.Config(), 64 * 5 + 10).rank == 5
    assert len(seen) == len(set(seen)) > 5
