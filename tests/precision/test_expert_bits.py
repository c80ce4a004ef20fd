"""Bits by expert: shares, weights and errors against loops over tokens, and who gets the bits."""

import dataclasses

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.lm.model import LanguageModel
from mixwell.precision._parts import nearest
from mixwell.precision.expert_bits import Config, errors, example, expert_bits, importances, promises, sensitivities
from tests.contracts._conversions import calibration, silu, whole

NAME = "layers.0.channel_mixer"


@pytest.fixture
def checkpoint(generator):
    return whole(example(generator)["checkpoint"])


def routings(checkpoint, text):
    """(expert, weight) of every slot of every token, and what the mixture reads."""
    model = LanguageModel.from_checkpoint(checkpoint, dtype=torch.float64).eval()
    slots, inputs = [], []
    model.layers[0].channel_mixer.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
    for tokens in text.batches:
        with torch.no_grad():
            (routing,) = [own for own in model(tokens).routings if own is not None]
        slots += [(int(e), float(w)) for e, w in zip(routing.indices_TK.flatten(), routing.weights_TK.flatten())]
    return slots, torch.cat(inputs)


def test_importances_are_those_of_a_loop_over_tokens(checkpoint):
    text = calibration()
    slots, _ = routings(checkpoint, text)
    tokens = sum(batch.numel() for batch in text.batches)
    config = Config(alpha=0.5, beta=2.0)
    raw = [(sum(e == own for e, _ in slots) / tokens) ** 0.5 * (sum(w for e, w in slots if e == own) / tokens) ** 2
           for own in range(3)]
    found = importances(text.routed(checkpoint)[0], text.gates(checkpoint)[0], tokens, config)
    assert found.tolist() == pytest.approx([value / sum(raw) for value in raw], rel=1e-5)
    assert len({round(value, 6) for value in found.tolist()}) == 3


def test_errors_are_those_of_a_loop_over_tokens(checkpoint):
    text, config = calibration(), Config(group_size=8, widths=(2, 4))
    places = [(f"{NAME}.gate_up_proj", 1), (f"{NAME}.down_proj", 2)]
    found = errors(checkpoint, places, text, config)
    _, x_TD = routings(checkpoint, text)
    weights = [checkpoint.tensors[name][expert].double() for name, expert in places]
    halves = x_TD @ checkpoint.tensors[places[0][0]][2].double().mT
    hidden = silu(halves[:, :8]) * halves[:, 8:]
    for unit, (weight, inputs) in enumerate(zip(weights, (x_TD, hidden))):
        for place, width in enumerate(config.widths):
            moved = nearest(weight, width, 8, True).weight().dequantised(torch.float64)
            wrong = right = 0.0
            for x in inputs:
                wrong += float((moved @ x - weight @ x).square().sum())
                right += float((weight @ x).square().sum())
            assert float(found[unit, place]) == pytest.approx((wrong / right) ** 0.5, rel=1e-4)


def test_harm_is_importance_times_a_power_of_the_error(checkpoint):
    text = calibration()
    one = Config(group_size=8, alpha=1.0, beta=0.0, gamma=1.0)
    base = sensitivities(checkpoint, one, torch.Generator(), text).harm_UB
    squared = sensitivities(checkpoint, dataclasses.replace(one, gamma=2.0), torch.Generator(), text)
    eps = errors(checkpoint, squared.places, text, one)
    torch.testing.assert_close(squared.harm_UB, base * eps)
    dense = [place for place, (_, expert) in enumerate(squared.places) if expert is None]
    torch.testing.assert_close(base[dense], eps[dense])
    experts = [place for place, (name, _) in enumerate(squared.places) if name.endswith("down_proj")]
    assert float((base[experts] / eps[experts])[:, 0].sum()) == pytest.approx(1)


def test_of_equal_experts_the_busier_gets_the_bits(generator):
    """Three copies of one expert, of which the router prefers the last: the promise of the paper."""
    checkpoint = whole(example(generator)["checkpoint"])
    tensors = dict(checkpoint.tensors)
    for name in ("gate_up_proj", "down_proj"):
        first = tensors[f"{NAME}.{name}"][:1]
        tensors[f"{NAME}.{name}"] = first.expand(3, -1, -1).contiguous()
    tensors[f"{NAME}.router.weight"] = torch.tensor([[0.1], [0.5], [4.0]]) * tensors[f"{NAME}.router.weight"]
    copies, text = checkpoint.derive(tensors=tensors), calibration()
    config = Config(group_size=8, widths=(2, 3, 4), bits_per_weight=3.0)
    tokens = sum(batch.numel() for batch in text.batches)
    imp = importances(text.routed(copies)[0], text.gates(copies)[0], tokens, config).tolist()
    rank = sorted(range(3), key=lambda expert: imp[expert])
    assert imp[rank[2]] > 3 * imp[rank[0]]
    bits = expert_bits(copies, config, generator, text).lineage[-1]["bits"]
    own = bits[f"{NAME}.gate_up_proj"]
    assert own[rank[0]] <= own[rank[1]] <= own[rank[2]] and own[rank[0]] < own[rank[2]]


def test_even_exponents_of_nothing_leave_errors_alone():
    found = importances(torch.tensor([5, 1]), torch.tensor([3.0, 0.5]), 6, Config(alpha=0, beta=0))
    assert found.tolist() == [0.5, 0.5]


def test_refusals(checkpoint, generator):
    with pytest.raises(ValueError, match="no expert is chosen with a weight above 0"):
        importances(torch.zeros(3), torch.zeros(3), 6, Config())
    with pytest.raises(ValueError, match="alpha is -1; expected 0 or more"):
        Config(alpha=-1)
    with pytest.raises(ValueError, match="gamma is 0; expected a number above 0"):
        Config(gamma=0)

    class Unrouted(type(calibration())):
        def routed(self, checkpoint):
            return {}

    text = Unrouted(torch.cat(list(calibration().batches)))
    with pytest.raises(MixwellError, match="chooses among 0 experts, the stack has 3; how often"):
        expert_bits(checkpoint, Config(group_size=8), generator, text)
    assert promises(Config(max_kl_nats=0.5)) == {"kl_nats": 0.5}
