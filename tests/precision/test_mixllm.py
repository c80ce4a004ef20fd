"""MixLLM: scores by a loop, one ranking over all layers, rows of two widths, the ends of the share."""

import pytest
import torch

from mixwell.kernels.codes import plain_weight
from mixwell.precision._parts import nearest
from mixwell.precision.mixllm import Config, encode, example, highest, mixllm, promises, row_changes, scores
from tests.contracts._conversions import calibration, whole

DOWN = "layers.0.channel_mixer.down_proj"


def test_a_rows_change_by_a_loop(generator):
    G, D = (torch.randn(2, 3, 4, generator=generator).double() for _ in range(2))
    found = row_changes(G, D)
    for e in range(2):
        for o in range(3):
            a = sum(float(G[e, o, i]) * float(D[e, o, i]) for i in range(4))
            assert float(found[e, o]) == pytest.approx(abs(a + a * a / 2))


def test_scores_are_summed_over_windows_and_not_over_gradients(generator):
    checkpoint, text = whole(example(generator)["checkpoint"]), calibration(rows=3)
    change = {DOWN: torch.randn(3, 16, 8, generator=generator).double()}
    found = scores(checkpoint, change, text)[DOWN]
    tokens = torch.cat(list(text.batches))
    total = torch.zeros(3, 16, dtype=torch.float64)
    step = 1e-4
    for row in range(3):  # a_o of one row of one expert, by differences of the loss
        for e, o in ((0, 1), (2, 5)):
            nats = []
            for sign in (1, -1):
                moved = checkpoint.tensors[DOWN].double().clone()
                moved[e, o] += sign * step * change[DOWN][e, o]
                nats.append(_nats(checkpoint, moved, tokens[row : row + 1]))
            a = (nats[0] - nats[1]) / (2 * step)
            total[e, o] += abs(a + a * a / 2)
    for e, o in ((0, 1), (2, 5)):
        assert float(found[e, o]) == pytest.approx(float(total[e, o]), rel=1e-3, abs=1e-9)


def _nats(checkpoint, value, tokens):
    from tests.contracts._conversions import logits

    out = logits(checkpoint.derive(tensors={**checkpoint.tensors, DOWN: value}), tokens)[:, :-1]
    return float(-out.log_softmax(-1).gather(-1, tokens[:, 1:, None]).mean())


def test_the_ranking_is_over_all_weights():
    score = {"a": torch.tensor([1.0, 9.0]), "b": torch.tensor([[8.0, 7.0], [0.0, 2.0]])}
    high = highest(score, 0.5)
    assert high["a"].tolist() == [False, True] and high["b"].tolist() == [[True, True], [False, False]]
    assert not any(bool(value.any()) for value in highest(score, 0.0).values())
    assert all(bool(value.all()) for value in highest(score, 1.0).values())


def test_rows_have_their_widths(generator):
    weight = torch.randn(2, 4, 16, generator=generator)
    high = torch.tensor([[True, False, False, True], [False, False, False, False]])
    found = encode(weight, high, Config(low=3, high=6, group_size=8)).weight().dequantised(torch.float32)
    few, many = (nearest(weight, bits, 8, False).weight().dequantised(torch.float32) for bits in (3, 6))
    assert torch.equal(found, torch.where(high.unsqueeze(-1), many, few))


def test_a_checkpoint_spends_its_share(generator):
    checkpoint = whole(example(generator)["checkpoint"])
    config = Config(low=2, high=8, share=0.25, group_size=8, input_bits=8)
    after = mixllm(checkpoint, config, generator, calibration()).tensors
    bits = torch.cat([value.flatten() for name, value in after.items() if name.endswith(".bits")])
    assert int((bits == 8).sum()) == round(0.25 * len(bits)) and int((bits == 2).sum()) == len(bits) - int(
        (bits == 8).sum())
    assert after[f"{DOWN}.input_bits"].item() == 8
    assert plain_weight(after, DOWN).shape == (3, 16, 8)


def test_refusals():
    with pytest.raises(ValueError, match="low is 8 and high 8; expected 2 <= low < high <= 8"):
        Config(low=8)
    with pytest.raises(ValueError, match="share is 2; expected 0 to 1"):
        Config(share=2)
    with pytest.raises(ValueError, match="input_bits is 1"):
        Config(input_bits=1)
    assert promises(Config(max_kl_nats=0.5)) == {"kl_nats": 0.5}
