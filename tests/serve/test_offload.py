"""A model whose experts wait on disk says the same; the expert used longest ago goes; the foreseen is read once."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors import safe_open

from mixwell.core.errors import MixwellError
from mixwell.core.rng import generator
from mixwell.kernels.packing import CHANGES
from mixwell.lm.model import load
from mixwell.serve.larger import read_apart
from mixwell.serve.offload import Config, Offload, Residents, example, spill
from tests.serve.conftest import MOE, engine, row, small_model

WIDE = {**MOE, "num_experts": 6}


def answers(model, **limits):
    """What two rows are told, together."""
    made = engine(model, **limits)
    rows = [row(model, [3, 5, 7, 9]), row(model, [11, 2, 4])]
    for each in rows:
        made.submit(each)
    while made.busy:
        made.step()
    return [each.said for each in rows]


def test_answers_are_the_same_with_two_experts_of_six_in_memory(tmp_path):
    expected = answers(small_model(channel_mixer=WIDE))
    for ahead in (0, 1):
        model = small_model(channel_mixer=WIDE)
        held = sum(parameter.numel() for parameter in model.parameters() if parameter.device.type != "meta")
        fetch = spill(model, tmp_path / f"experts{ahead}.safetensors")
        offload = Offload(model, fetch, Config(resident=2, ahead=ahead))
        left = sum(parameter.numel() for parameter in model.parameters() if parameter.device.type != "meta")
        assert held - left == 2 * 6 * 3 * 8 * 16
        assert answers(model) == expected
        counts = offload.counts()
        assert all(len(each.kept) <= 2 for each in offload.residents.values())
        assert counts["hits"] > 0 and counts["misses"] > 0 and (counts["foreseen"] > 0) == (ahead > 0)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_a_model_is_read_without_its_experts_ever_being_in_memory_together(tmp_path, stored):
    """What it says is what the whole model says in float32, of which two experts of six are there."""
    source = small_model(channel_mixer=WIDE, dtype=stored)
    path = source.save(tmp_path / "model")
    expected = answers(load(path, "fp32").eval())
    model, fetch = read_apart(path, tmp_path)
    experts = sum(parameter.numel() for parameter in model.parameters() if parameter.device.type == "meta")
    assert experts == 2 * 6 * 3 * 8 * 16
    offload = Offload(model, fetch, Config(resident=2))
    assert answers(model) == expected and model.files == load(path).files
    assert offload.counts()["misses"] > 0
    assert all(number.dtype == torch.float32 for number in fetch(1, 5))
    with safe_open(tmp_path / "1.safetensors", "pt") as file:
        assert file.get_tensor("down_proj").dtype == stored


def test_what_cannot_be_read_apart_is_refused(tmp_path):
    dense = small_model(channel_mixer={"method": "experts.layers.swiglu", "hidden_dim": 8}, dtype=torch.float32)
    with pytest.raises(MixwellError, match="serve it as it is"):
        read_apart(dense.save(tmp_path / "dense"), tmp_path)


class Reads:
    """Experts by number, and the numbers that were read."""

    def __init__(self):
        self.numbers = []
        self.fetch_one = example(generator(0))["fetch"]

    def __call__(self, layer, expert):
        self.numbers.append(expert)
        return self.fetch_one(layer, expert)


def residents(most):
    reads = Reads()
    return reads, Residents(0, reads, most, ThreadPoolExecutor(1))


def test_the_expert_that_was_used_longest_ago_goes():
    """Against a list that is kept by hand."""
    reads, kept = residents(3)
    asked = [0, 1, 2, 0, 3, 1, 0, 4, 2, 0, 0, 5]
    recent, expected = [], []
    for expert in asked:
        if expert not in recent:
            expected.append(expert)
        recent = [expert] + [other for other in recent if other != expert]
        recent = recent[:3]
        kept.get(expert)
    assert reads.numbers == expected
    assert kept.counts == {"hits": len(asked) - len(expected), "misses": len(expected)}


def test_what_is_foreseen_is_read_once_and_kept_when_it_is_used():
    reads, kept = residents(2)
    kept.get(0)
    kept.expect([0, 3, 4])
    kept.expect([3, 5])
    kept.reader.shutdown(wait=True)
    assert list(kept.kept) == [0] and set(kept.coming) == {3, 5} and sorted(reads.numbers) == [0, 3, 4, 5]
    torch.testing.assert_close(kept.get(3)[0], reads.fetch_one(0, 3)[0])
    assert reads.numbers.count(3) == 1 and kept.counts["foreseen"] == 1 and list(kept.kept) == [0, 3]


def test_rows_meet_their_experts():
    draws = generator(4)
    reads, kept = residents(2)
    rows = torch.randn(7, 3, generator=draws)
    counts = torch.zeros(16, dtype=torch.int64)
    counts[[2, 5, 9]] = torch.tensor([3, 1, 3])
    found = kept.run(rows, counts, None)
    for place, expert in enumerate([2, 2, 2, 5, 9, 9, 9]):
        gate_up, down = (part.double() for part in reads.fetch_one(0, expert))
        gate, up = (gate_up @ rows[place].double()).chunk(2)
        expected = down @ (gate / (1 + (-gate).exp()) * up)
        torch.testing.assert_close(found[place].double(), expected, rtol=1e-4, atol=1e-5)


def test_a_model_without_experts_is_refused(tmp_path):
    model = small_model(channel_mixer={"method": "experts.layers.swiglu", "hidden_dim": 8})
    with pytest.raises(MixwellError, match="no sparse mixture"):
        Offload(model, lambda layer, expert: None, Config())
    beside = small_model(channel_mixer=WIDE)
    beside.layers[0].channel_mixer.add_module(CHANGES, torch.nn.ModuleDict({"down_proj": torch.nn.Identity()}))
    with pytest.raises(MixwellError, match="merge the adapter first"):
        Offload(beside, lambda layer, expert: None, Config())
    with pytest.raises(ValueError, match="resident is 0"):
        Config(resident=0)
    assert Config(foreseen=1).foreseen == 1
