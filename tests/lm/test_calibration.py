"""What layers see over calibration text, against a pass by hand; and what moves in a model, with its gradient."""

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.core.routing import Context
from mixwell.lm.calibration import TextCalibration
from mixwell.lm.model import LanguageModel
from tests.contracts._conversions import calibration, dense_model, sparse_model


def by_hand(checkpoint, tokens, shift=None):
    """What the channel mixers read, and the summed loss; `shift` is added to what the last one gives."""
    model = LanguageModel.from_checkpoint(checkpoint, dtype=torch.float32)
    x = model.embed(tokens)
    positions = torch.arange(tokens.shape[1])[None]
    read = []
    for number, layer in enumerate(model.layers):
        x = x + layer.sequence_mixer(layer.sequence_norm(x), positions, None, None, Context()).y_BTD
        h = layer.channel_norm(x).flatten(0, 1)
        read.append(h.detach())
        y = layer.channel_mixer(h, Context()).y_TD
        if shift is not None and number == len(model.layers) - 1:
            y = y + shift
        x = x + y.view_as(x)
    logits = model.head(model.norm(x))
    return read, torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(),
                                                   reduction="sum")


def test_layers_see_what_a_pass_by_hand_gives(generator):
    checkpoint, text = dense_model(generator), calibration()
    batches = list(text.seen(checkpoint))
    assert [len(batch) for batch in batches] == [2, 2] and [b.shape[0] for b in text.batches] == [4, 2]
    for tokens, batch in zip(text.batches, batches):
        read, _ = by_hand(checkpoint, tokens)
        for seen, x in zip(batch, read):
            torch.testing.assert_close(seen.x_TD, x)
            assert seen.grad_TD is None and torch.equal(seen.ids_T, tokens.flatten())
    assert batches[0][0].labels_T.view(4, 12)[:, 0].tolist() == [0, 1, 0, 1]


def test_gradients_are_those_of_the_summed_loss(generator):
    checkpoint, text = dense_model(generator), calibration()
    seen = next(text.seen(checkpoint, gradients=True))[-1]
    shift = torch.zeros_like(seen.x_TD, requires_grad=True)
    _, loss = by_hand(checkpoint, text.batches[0], shift)
    torch.testing.assert_close(seen.grad_TD, torch.autograd.grad(loss, shift)[0], rtol=1e-4, atol=1e-5)


def test_mixtures_tell_their_routing(generator):
    seen = next(calibration().seen(sparse_model(generator), gradients=True))[1]
    assert seen.routing.indices_TK.shape == (48, 2) and seen.grad_TD.abs().sum() > 0


def test_tensors_that_move_carry_a_gradient(generator):
    checkpoint, text = dense_model(generator), calibration()
    name = "layers.0.channel_mixer.down_proj"
    moving = (2 * checkpoint.tensors[name]).requires_grad_()
    logits = text.logits(checkpoint, text.batches[0], {name: moving})
    moved = checkpoint.derive(tensors={**checkpoint.tensors, name: moving.detach()})
    plain = LanguageModel.from_checkpoint(moved, dtype=torch.float32)(text.batches[0]).logits_BTV
    torch.testing.assert_close(logits, plain)
    assert torch.autograd.grad(logits.square().sum(), moving)[0].abs().sum() > 0


def test_models_need_somebody_who_finds_them():
    with pytest.raises(MixwellError, match="nobody said where models"):
        TextCalibration(torch.zeros(1, 4, dtype=torch.int64)).model("other")


def test_a_pass_for_inputs_counts_the_routed_tokens_too(generator, monkeypatch):
    checkpoint, other = sparse_model(generator), sparse_model(generator)
    text, fresh = calibration(), calibration()
    assert len(list(text.inputs(checkpoint, ["layers.0.channel_mixer.down_proj"]))) == 2
    wanted, others = fresh.routed(checkpoint), fresh.routed(other)
    assert {layer: load.tolist() for layer, load in text.routed(other).items()} == {
        layer: load.tolist() for layer, load in others.items()}
    monkeypatch.setattr(text, "_running", None)  # no second pass
    found = text.routed(checkpoint)
    assert found.keys() == wanted.keys() and all(torch.equal(found[layer], wanted[layer]) for layer in wanted)
    assert wanted.keys() and sum(int(load.sum()) for load in wanted.values()) % 72 == 0
