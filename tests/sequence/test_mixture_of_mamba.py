"""Mixture-of-Mamba against the loop with a map chosen token by token, and against dense Mamba."""

import pytest
import torch

from mixwell.core.config import from_dict, to_dict
from mixwell.core.errors import MixwellError
from mixwell.core.routing import Context
from mixwell.sequence._routed import StackedLinear
from mixwell.sequence.mamba import Config as DenseConfig
from mixwell.sequence.mamba import Mamba
from mixwell.sequence.mixture_of_mamba import Config, MixtureOfMamba, example
from tests.sequence.scan_loop import gradients, inputs, loop, shake

DIM = 4
LABELS = torch.tensor([[0, 2, 2, 0, 2], [2, 0, 0, 0, 2]])  # modality 1 has no token


def build(**options):
    config = Config(**{"num_modalities": 3, "state_dim": 2, "chunk_size": 2, **options})
    return shake(MixtureOfMamba(DIM, config, torch.Generator().manual_seed(1)))


def known(labels_BT):
    return Context(labels_T=labels_BT.flatten())


def chosen_maps(layer, labels_BT):
    def maps(name, row, position, x):
        module = getattr(layer, name)
        weight, bias = module.weight, module.bias
        if weight.ndim == 3:
            m = labels_BT[row, position]
            weight, bias = weight[m], None if bias is None else bias[m]
        return weight @ x + (0 if bias is None else bias)

    return maps


@pytest.mark.parametrize("split", [("in", "x", "dt", "out"), ("in",), ("x", "dt"), ("out",), ()])
def test_agrees_with_the_loop(split):
    layer, x = build(split=split), inputs(2, 5, DIM).requires_grad_()
    y, expected = layer(x, context=known(LABELS)).y_BTD, loop(layer, x, chosen_maps(layer, LABELS))
    torch.testing.assert_close(y, expected)
    for got, wanted in zip(gradients(y, layer, x), gradients(expected, layer, x)):
        torch.testing.assert_close(got, wanted)


def test_equal_copies_reproduce_dense_mamba_exactly():
    layer, x = build(), inputs(2, 5, DIM)
    layer.equal_copies()
    dense = Mamba(DIM, DenseConfig(state_dim=2, chunk_size=2)).double()
    dense.load_state_dict({k: v[0] if "_proj" in k or k == "out.weight" else v for k, v in layer.state_dict().items()})
    torch.testing.assert_close(layer(x, context=known(LABELS)).y_BTD, dense(x).y_BTD)


def test_the_scan_over_the_interleaved_sequence_is_shared():
    """A later token of one modality hears of an earlier one of the other."""
    layer, x = build(), inputs(1, 5, DIM)
    labels = torch.tensor([[0, 0, 0, 0, 2]])
    changed = x.clone()
    changed[:, 0] += 1
    before, after = layer(x, context=known(labels)).y_BTD, layer(changed, context=known(labels)).y_BTD
    assert (before[:, 4] - after[:, 4]).abs().min() > 1e-6


def test_a_modality_without_tokens_gets_no_gradient():
    layer = build()
    layer(inputs(2, 5, DIM), context=known(LABELS)).y_BTD.sum().backward()
    for module in layer.modules():
        if isinstance(module, StackedLinear):
            assert module.weight.grad[1].abs().max() == 0 and module.weight.grad[[0, 2]].abs().amax((1, 2)).min() > 0


@pytest.mark.parametrize("cuts", [(1,) * 5, (2, 3)])
def test_split_and_carry_equals_whole(cuts):
    layer, x = build(), inputs(2, 5, DIM)
    cache = layer.new_cache()
    pieces = zip(x.split(list(cuts), 1), LABELS.split(list(cuts), 1))
    parts = [layer(piece, cache=cache, context=known(labels)).y_BTD for piece, labels in pieces]
    torch.testing.assert_close(torch.cat(parts, 1), layer(x, context=known(LABELS)).y_BTD)


def test_no_token_sees_the_future_nor_its_label():
    layer, x = build(), inputs(2, 5, DIM)
    changed, labels = x.clone(), LABELS.clone()
    changed[:, 3:] += 1
    labels[:, 3:] = 1
    before, after = layer(x, context=known(LABELS)).y_BTD, layer(changed, context=known(labels)).y_BTD
    torch.testing.assert_close(before[:, :3], after[:, :3])
    assert (before[:, 3:] - after[:, 3:]).abs().min() > 0


def test_labels_route_and_leave_no_loss():
    mixed = build()(inputs(2, 5, DIM), context=known(LABELS))
    assert mixed.losses == {} and mixed.aux is None and mixed.routing is None


def test_one_modality_needs_no_labels():
    layer, x = build(num_modalities=1), inputs(2, 5, DIM)
    torch.testing.assert_close(layer(x).y_BTD, loop(layer, x, chosen_maps(layer, torch.zeros_like(LABELS))))


def test_refuses():
    layer, x = build(), inputs(2, 5, DIM)
    with pytest.raises(MixwellError, match="3 modalities by label and got none; give Context"):
        layer(x)
    with pytest.raises(MixwellError, match="knows 3 modalities and got labels 0 to 4; set num_modalities"):
        layer(x, context=known(LABELS * 2))
    with pytest.raises(MixwellError, match=r"labels of shape \[4\] for 10 tokens"):
        layer(x, context=known(LABELS[:, :2]))
    with pytest.raises(ValueError, match="num_modalities is 0"):
        Config(num_modalities=0)
    with pytest.raises(ValueError, match="each projection once"):
        Config(num_modalities=2, split=("in", "in"))
    with pytest.raises(ValueError, match="state_dim is 0"):
        Config(num_modalities=2, state_dim=0)
    with pytest.raises(MixwellError, match="'conv' is not one of in, x, dt, out"):
        from_dict(Config, {"num_modalities": 2, "split": ["conv"]})


def test_config_round_trips_and_the_example_runs():
    config = Config(num_modalities=2, split=("x",))
    assert from_dict(Config, to_dict(config)) == config
    arguments = example(torch.Generator().manual_seed(0))
    x, context = arguments.pop("x_BTD"), arguments.pop("context")
    assert MixtureOfMamba(**arguments)(x, context=context).y_BTD.shape == x.shape
