"""PEFTDebias: swapped texts against a loop, and the roles of adapter and model turned."""

import pytest
import torch

from mixwell.adapters import lora, mosa
from mixwell.adapters.protocols.debias import Config, debias, swapped, turn
from mixwell.core.errors import MixwellError
from tests.contracts._adapters import TOKENS, logits, model, moved
from tests.contracts._tools import fresh

PAIRS = ((3, 7), (5, 9))


def other(token):
    return {3: 7, 7: 3, 5: 9, 9: 5}.get(token, token)


@pytest.mark.parametrize("both", [True, False])
def test_words_of_a_pair_take_each_others_place(both):
    tokens = TOKENS.clone()
    tokens[0], tokens[1, 4], tokens[2, 2] = 1, 3, 9
    found = debias(tokens, Config(pairs=PAIRS, both=both))
    concerned = [row for row in tokens.tolist() if any(token in (3, 5, 7, 9) for token in row)]
    expected = [[other(token) for token in row] for row in concerned]
    assert found.tolist() == (tokens.tolist() if both else []) + expected and len(concerned) == 2
    assert torch.equal(swapped(swapped(tokens, PAIRS), PAIRS), tokens)


def sgd(network, lr=0.1):
    loss = network.loss(TOKENS[:, :-1], TOKENS[:, 1:])
    network.zero_grad()
    loss.nats.backward()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter -= lr * parameter.grad


@pytest.mark.parametrize("norms", [True, False])
def test_the_adapter_is_frozen_and_the_model_trained_with_it_in_place(norms):
    there = moved(mosa.MoSA.attach(model(), None, mosa.Config(rank=2), fresh()))
    before = {name: value.clone() for name, value in there.model.state_dict().items()}
    free = turn(there, norms=norms)
    sgd(there.model)
    now = there.model.state_dict()
    changed = {name for name in now if not torch.equal(now[name], before[name])}
    assert changed == set(free) and "layers.0.channel_mixer.down_proj" in changed
    assert ("norm.weight" in changed) == norms
    assert there.num_parameters == 0  # nothing of the adapter is trained any more
    with_it = logits(there.model)
    there.detach()
    assert not torch.allclose(with_it, logits(there.model))  # it was in place


def test_norms_behind_the_mixers_are_left_as_they_are_too():
    there = lora.LoRA.attach(model(norm_place="around"), None, lora.Config(rank=2), fresh())
    free = turn(there)
    behind = {f"layers.{i}.{mixer}_norm_after.weight" for i in range(2) for mixer in ("sequence", "channel")}
    assert behind <= dict(there.model.named_parameters()).keys() and not [name for name in free if "norm" in name]
    assert behind <= set(turn(there, norms=True))


def test_beside_a_matrix_change_the_model_moves_as_the_merged_one_does():
    there = moved(lora.LoRA.attach(model(), None, lora.Config(rank=2), fresh()))
    merged = moved(lora.LoRA.attach(model(), None, lora.Config(rank=2), fresh()))
    merged.merge()
    for parameter in merged.model.parameters():
        parameter.requires_grad_(True)
    turn(there, norms=True)
    for network in (there.model, merged.model):
        sgd(network)
    torch.testing.assert_close(logits(there.model), logits(merged.model), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_is_refused():
    there = lora.LoRA.attach(model(), None, lora.Config(rank=2), fresh())
    there.merge()
    with pytest.raises(MixwellError, match="the adapter is merged"):
        turn(there)
    with pytest.raises(MixwellError, match="no row holds a word of the pairs"):
        debias(torch.ones(2, 3, dtype=torch.long), Config(pairs=PAIRS))
    for pairs in ((), ((1, 1),), ((1, 2), (2, 3)), ((-1, 2),)):
        with pytest.raises(ValueError, match="pairs are"):
            Config(pairs=pairs)
