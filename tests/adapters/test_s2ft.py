"""S2FT against training in place with everything else put back, coupled structures permuted, slices that add up."""

import pytest
import torch

from mixwell.adapters import files
from mixwell.adapters.s2ft import S2FT, Config
from mixwell.adapters.selected import Entries, Slice
from mixwell.adapters.targets import find
from mixwell.core.errors import MixwellError
from mixwell.lm.training.optimizer import decays
from tests.contracts._adapters import TOKENS, logits, model, moved
from tests.contracts._tools import fresh

ALL = Config(out=0.25, down=0.1, value=0.25, up=0.1)
GROUPED = {"method": "attention", "num_heads": 4, "num_kv_heads": 2, "bias": True}


def loss(network):
    return network.loss(TOKENS[:, :-1], TOKENS[:, 1:]).nats


@pytest.mark.parametrize("sparse", [False, True])
def test_it_is_training_in_place_with_all_else_put_back(sparse):
    """Weight decay included: the slices hold the weights' own numbers."""
    there = S2FT.attach(model(sparse, sequence_mixer=GROUPED).train(), None, ALL, fresh(3))
    whole = model(sparse, sequence_mixer=GROUPED).train()
    base = {name: value.clone() for name, value in whole.state_dict().items()}
    masks = {name: torch.zeros_like(value, dtype=torch.bool) for name, value in base.items()}
    for name, adapter in there.adapters.items():
        for place in (range(4) if adapter.target.stack else [None]):
            mask, indices = masks[name], adapter.indices
            mask, indices = (mask, indices) if place is None else (mask[place], indices[place])
            (mask if adapter.axis == "rows" else mask.T)[indices] = True
        if adapter.shifts is not None:
            masks[name.removesuffix("weight") + "bias"][adapter.indices] = True
    assert sum(int(mask.sum()) for mask in masks.values()) == there.num_parameters
    own = [p for p in there.model.parameters() if p.requires_grad]
    bare = [p for n, p in whole.named_parameters() if n.endswith("bias")]
    free = [a.shifts for a in there.adapters.values() if a.shifts is not None]
    for a, b in ((own, free), (list(whole.parameters()), bare)):
        pulled = [p for p in a if not any(p is q for q in b)]
        groups = [{"params": pulled, "weight_decay": 0.1}, {"params": b, "weight_decay": 0.0}]
        optimiser = torch.optim.AdamW(groups, lr=0.01)
        network = there.model if a is own else whole
        for _ in range(3):
            optimiser.zero_grad()
            loss(network).backward()
            optimiser.step()
            if network is whole:
                with torch.no_grad():
                    for name, value in whole.state_dict().items():
                        value.copy_(torch.where(masks[name], value, base[name]))
    there.merge()
    for name, value in there.model.state_dict().items():
        torch.testing.assert_close(value, whole.state_dict()[name], rtol=1e-4, atol=1e-5)
        assert torch.equal(value[~masks[name]], base[name][~masks[name]])
    assert decays("entries", own[0]) and not any(decays("shifts", shifts) for shifts in free)


def test_heads_and_channels_are_whole():
    there = S2FT.attach(model(sequence_mixer=GROUPED, num_layers=4), None, ALL, fresh(5))
    heads = values = 0
    for name, adapter in there.adapters.items():
        indices = adapter.indices.tolist()
        if name.endswith("out.weight"):
            assert adapter.axis == "columns"
            starts = indices[::4]
            assert indices == [start + i for start in starts for i in range(4)] and all(s % 4 == 0 for s in starts)
            heads += len(starts)
        if name.endswith("qkv.weight"):
            starts = indices[::4]
            assert adapter.axis == "rows" and set(starts) <= {24, 28}
            values += len(starts)
        if name.endswith("gate_up_proj"):
            assert min(indices) >= 24
    assert (heads, values) == (4, 2)


def test_permuting_coupled_channels_leaves_the_model_and_moves_the_slice():
    """The published form: the drawn channels first, a dense slice; here they are gathered where they stand."""
    network, permuted = model(), model()
    there = moved(S2FT.attach(network, "layers.0.channel_mixer.down_proj", Config(out=0, down=0.25), fresh(1)))
    (adapter,) = there.adapters.values()
    chosen = adapter.indices.tolist()
    order = chosen + [f for f in range(24) if f not in chosen]
    mixer = permuted.layers[0].channel_mixer
    with torch.no_grad():
        mixer.gate_up_proj.copy_(mixer.gate_up_proj[order + [24 + f for f in order]])
        mixer.down_proj.copy_(mixer.down_proj[:, order])
    torch.testing.assert_close(logits(permuted), logits(model()))
    with torch.no_grad():
        mixer.down_proj[:, : len(chosen)] = adapter.entries
    torch.testing.assert_close(logits(permuted), logits(network))


def test_disjoint_slices_of_two_tasks_add_up():
    base = model()
    name = "layers.0.channel_mixer.down_proj"
    changes = []
    for columns in ([1, 5, 7], [0, 2]):
        (target,) = find(base, [name])
        part = Slice(target, Entries("columns", torch.tensor(columns)))
        part.begin()
        with torch.no_grad():
            part.entries += 1.0
        changes.append(part.delta_weight())
    both = sum(changes)
    expected = torch.zeros(16, 24)
    expected[:, [0, 1, 2, 5, 7]] = 1
    torch.testing.assert_close(both, expected)


def test_no_drawn_part_of_a_layer_no_slice():
    there = S2FT.attach(model(num_layers=4), None, Config(out=0.0, down=1e-3), fresh())
    assert len(there.adapters) == 1 and there.num_parameters == 16


@pytest.mark.parametrize("options, message", [
    ({"out": 1.5}, "out is 1.5; expected a share, 0 to 1"), ({"up": -0.1}, "up is -0.1"),
    ({"out": 0.0, "down": 0.0}, "out, down, value and up are all 0")])
def test_refuses_what_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)


def test_channels_that_another_base_lacks_are_refused(tmp_path):
    there = moved(S2FT.attach(model(), None, Config(out=0.0, down=0.0, up=0.9), fresh(3)))
    files.save(there, tmp_path / "saved")
    narrow = model(channel_mixer={"method": "swiglu", "hidden_dim": 12})
    with pytest.raises(MixwellError, match=r"gate_up_proj has 24 rows, and number [234]\d was chosen"):
        files.load(tmp_path / "saved", narrow, other_base=True)
    assert torch.isfinite(logits(narrow)).all()


def test_refuses_a_share_of_what_is_not_there():
    with pytest.raises(MixwellError, match=r"value is 0\.5, and no target has such a part"):
        S2FT.attach(model(), "down_proj", Config(out=0, value=0.5))
