"""Averages against a loop; one partition is itself; integers stay; ranks of subsets; refusals."""

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.data import partition_merge as merging


def merged(states, *partitions):
    return merging.partition_merge(states, merging.Config(partitions=partitions))


def test_agrees_with_a_loop_and_keeps_integers(generator):
    states = merging.example(generator)["states"]
    states["prose"]["steps"] = torch.tensor(9)
    found = merged(states, "code", "docs", "prose")
    for row in range(3):
        for column in range(2):
            values = [float(states[name]["weight"][row, column]) for name in states]
            assert float(found["weight"][row, column]) == pytest.approx(sum(values) / 3, abs=1e-6)
    assert found["steps"] == 7 and found["steps"].dtype == torch.int64
    assert merged(states, "prose")["steps"] == 9


def test_one_partition_is_exact_and_narrow_types_are_summed_wide():
    values = {"a": 60000.0, "b": 50016.0}
    half = {name: {"w": torch.full((2,), value, dtype=torch.float16)} for name, value in values.items()}
    assert torch.equal(merged(half, "a")["w"], half["a"]["w"])
    assert merged(half, "a", "b")["w"].tolist() == [55008.0] * 2  # the sum would be beyond float16
    merged(half, "a")["w"].zero_()
    assert half["a"]["w"][0] == 60000.0


def test_subsets_rank_as_models_of_their_union_for_a_quadratic_loss():
    """Branches that end at their own minimum: the union's least squares solution is the average."""
    ends = {"a": [0.0, 0.0], "b": [1.0, 0.0], "c": [4.0, 4.0]}
    states = {name: {"w": torch.tensor(value)} for name, value in ends.items()}
    target = torch.tensor([0.5, 0.0])
    candidates = list(merging.subsets(tuple(ends)))
    assert len(candidates) == 7 and list(merging.subsets(tuple(ends), 2, 2)) == candidates[3:6]
    found = merging.ranked(states, candidates, lambda state: float(((state["w"] - target) ** 2).sum()))
    assert found[0] == (0.0, ("a", "b")) and found[-1][1] == ("c",)


def test_refusals(generator):
    states = merging.example(generator)["states"]
    with pytest.raises(MixwellError, match="no partition 'x'; there are code, docs, prose"):
        merged(states, "x")
    states["docs"]["weight"] = torch.ones(2, 2)
    with pytest.raises(MixwellError, match="the model of 'docs' has other tensors than that of 'code'"):
        merged(states, "code", "docs")
    for partitions in ((), ("a", "a")):
        with pytest.raises(ValueError, match="at least one, and each once"):
            merging.Config(partitions=partitions)
