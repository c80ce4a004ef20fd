"""Half fine-tuning: the rule in each layer, what stays to the bit, its gradient, and other choices by seed."""

import pytest
import torch

from mixwell.adapters.half import Config, HalfFineTuning, Unit, half_of
from mixwell.core.errors import MixwellError
from mixwell.kernels.linear import Linear
from tests.contracts._adapters import TOKENS, model, moved
from tests.contracts._tools import fresh

DEEP = {"num_layers": 4}
# rows of each matrix of the small models: name of the parameter, first row, end
ATTENTION = {"q": ("qkv.weight", 0, 16), "k": ("qkv.weight", 16, 32), "v": ("qkv.weight", 32, 48),
             "o": ("out.weight", 0, 16)}
BLOCK = {"gate": ("gate_up_proj", 0, 24), "up": ("gate_up_proj", 24, 48), "down": ("down_proj", 0, 16)}


def moving(there):
    """Entries that a move of all that is trained moves."""
    before = there.base_tensors()
    before = {name: value.clone() for name, value in before.items()}
    moved(there).merge()
    after = there.model.state_dict()
    return {name: after[name] != value for name, value in before.items()}


def trained(entries, layer, mixer, matrices):
    found = set()
    for label, (name, first, end) in matrices.items():
        rows = entries[f"layers.{layer}.{mixer}.{name}"][..., first:end, :]
        assert rows.all() or not rows.any(), f"{label} is trained in part"
        if rows.all():
            found.add(label)
    return found


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("others", [False, True])
def test_half_of_each_layer_is_trained(sparse, others):
    entries = moving(HalfFineTuning.attach(model(sparse, **DEEP), None, Config(others=others), fresh(1)))
    fewer = 0
    for layer in range(4):
        attention = trained(entries, layer, "sequence_mixer", ATTENTION)
        assert len(attention) == 2
        biases = entries[f"layers.{layer}.sequence_mixer.qkv.bias"].view(3, 16)
        assert {"qkv"[i] for i in range(3) if biases[i].all()} == attention - {"o"}
        assert biases.any(1).equal(biases.all(1))
        assert entries[f"layers.{layer}.sequence_mixer.out.bias"].all() == ("o" in attention)
        norms = [entries[f"layers.{layer}.{name}_norm.weight"] for name in ("sequence", "channel")]
        assert sorted(bool(norm.all()) for norm in norms) == [False, True]
        if sparse:
            shared = {f"shared {label}": (f"shared_{name}", first, end) for label, (name, first, end) in BLOCK.items()}
            assert len(trained(entries, layer, "channel_mixer", BLOCK | shared)) == 3
            assert entries[f"layers.{layer}.channel_mixer.router.weight"].all() == others
        else:
            fewer += len(trained(entries, layer, "channel_mixer", BLOCK)) == 1
    assert sparse or fewer == 2
    for name in ("embed.weight", "head.weight", "norm.weight"):
        assert bool(entries[name].all()) == others == bool(entries[name].any())


def test_what_is_trained_has_the_gradient_of_full_training():
    there = HalfFineTuning.attach(model(), None, Config(), fresh(2))
    full = model().train()
    for network in (there.model.train(), full):
        network.loss(TOKENS[:, :-1], TOKENS[:, 1:]).nats.backward()
    grads = {name: parameter.grad for name, parameter in full.named_parameters()}
    assert there.adapters and there.trained
    for name, adapter in there.adapters.items():
        torch.testing.assert_close(adapter.entries.grad, grads[name][adapter.indices])
        if adapter.shifts is not None:
            bias = grads[name.removesuffix("weight") + "bias"]
            torch.testing.assert_close(adapter.shifts.grad, bias[adapter.indices])
    for name, parameter in there.trained.items():
        torch.testing.assert_close(parameter.grad, grads[name])


def test_another_round_draws_another_half():
    halves = {tuple(HalfFineTuning.attach(model(**DEEP), None, Config(), fresh(seed)).tensors()) for seed in range(4)}
    assert len(halves) > 1


def test_each_unit_is_drawn_as_often_as_the_others():
    counts = torch.zeros(3)
    for seed in range(400):
        units = [Unit(str(i), group=f"block {layer}") for layer in range(2) for i in range(3)]
        for unit in half_of(units, fresh(seed)):
            counts[int(unit.name)] += 1
    torch.testing.assert_close(counts / 800, torch.full((3,), 0.5), atol=0.06, rtol=0)


def test_targets_narrow_what_is_drawn_from():
    there = HalfFineTuning.attach(model(), "layers.1.*", Config(), fresh())
    assert all(name.startswith("layers.1.") for name in [*there.adapters, *there.trained])


def test_refuses_what_has_no_layers():
    with pytest.raises(MixwellError, match="none of the targets lies in a layer"):
        HalfFineTuning.attach(Linear(4, 4, False, fresh()), None, Config())
    with pytest.raises(MixwellError, match="no parameter of the model fits 'layer'"):
        HalfFineTuning.attach(model(), "layer", Config())
