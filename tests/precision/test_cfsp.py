"""CFSP: budgets and scores against loops, the released normaliser's cancellation, a cut that equals a mask."""

import math
from itertools import pairwise

import pytest
import torch

from mixwell.core.checkpoint import channel_mixers
from mixwell.core.errors import MixwellError
from mixwell.precision.cfsp import PUBLISHED, Config, cfsp, example, importance, kept_shares, promises, scores
from mixwell.precision.cutting import Block, blocks, cosines, widths
from tests.contracts._conversions import calibration, dense_model, logits, sparse_model, whole

TOKENS = torch.randint(0, 13, (3, 10), generator=torch.Generator().manual_seed(4))


def test_importance_is_the_mean_angle_between_what_a_layer_reads_and_leaves(generator):
    checkpoint, text = dense_model(generator), calibration(rows=5)
    found = importance(cosines(checkpoint, text))
    total, count = torch.zeros(2, dtype=torch.float64), 0
    for streams in text.streams(checkpoint):
        for layer, (before, after) in enumerate(pairwise(streams)):
            for x, y in zip(before.double(), after.double()):
                total[layer] += math.acos(float(x @ y / (x.norm() * y.norm()))) / math.pi
        count += len(streams[0])
    assert count == 60 and len(streams) == 3
    torch.testing.assert_close(found, total / count)


def test_streams_begin_with_the_embedding_and_end_before_the_last_norm(generator):
    checkpoint, text = dense_model(generator), calibration(rows=2)
    (streams,) = text.streams(checkpoint)
    (tokens,) = text.batches
    embedded = checkpoint.tensors["embed.weight"][tokens.flatten()]
    torch.testing.assert_close(streams[0], embedded)
    last = streams[-1].double()
    normed = last / (last.square().mean(-1, keepdim=True) + 1e-5).sqrt() * checkpoint.tensors["norm.weight"]
    found = normed @ checkpoint.tensors["head.weight"].double().T
    torch.testing.assert_close(found, logits(checkpoint, tokens).flatten(0, 1), rtol=1e-4, atol=1e-5)
    assert not torch.equal(streams[0], streams[1])


@pytest.mark.parametrize("share, spread", [(0.3, 1.0), (0.5, 40.0), (0.1, 40.0)])
def test_shares_are_the_sigmoids_over_their_mean_and_leave_no_layer_whole(share, spread):
    turned = [0.12, 0.05, 0.31, 0.07]
    middle = sum(turned) / 4
    g = [1 / (1 + math.exp(-spread * 13.1072 * (one - middle))) for one in turned]
    mean = sum(g) / 4
    if max(g) / mean * (1 - share) >= 1:
        shrink = mean * (1 / (1 - share) - 1) / (max(g) - mean) / 1.05
        g = [mean + (one - mean) * shrink for one in g]
    found = kept_shares(torch.tensor(turned, dtype=torch.float64), share, spread)
    torch.testing.assert_close(found, torch.tensor([one / mean * (1 - share) for one in g], dtype=torch.float64))
    assert float(found.mean()) == pytest.approx(1 - share) and float(found.max()) < 1
    assert pytest.approx(128 * 1024 / 1e4) == PUBLISHED
    assert found[2] > found[0] > found[3] > found[1]


def loop(gate_up, down, norm, released, b, c):
    D, F = down.shape
    maps = [down.abs() * norm**b, gate_up[F:].T.abs(), gate_up[:F].T.abs()]
    found = torch.zeros(F, dtype=torch.float64)
    for one in maps:
        for d in range(D):
            for f in range(F):
                over = one[:, f].sum() if released else one[d].sum()
                found[f] += one[d, f] / over / D
    return found * norm**c


@pytest.mark.parametrize("normaliser", ["units", "released"])
def test_scores_against_a_loop(generator, normaliser):
    gate_up = torch.randn(10, 4, generator=generator, dtype=torch.float64)
    down = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    norm = torch.rand(5, generator=generator, dtype=torch.float64) + 0.1
    config = Config(normaliser=normaliser, weighted=0.5, activation=2.0)
    found = scores(gate_up, down, norm, config)
    torch.testing.assert_close(found, loop(gate_up, down, norm, normaliser == "released", 0.5, 2.0))


def test_as_released_the_weights_cancel_and_as_meant_they_do_not(generator):
    gate_up, down = torch.randn(12, 7, generator=generator), torch.randn(7, 6, generator=generator)
    norm = torch.rand(6, generator=generator, dtype=torch.float64) + 0.1
    torch.testing.assert_close(scores(gate_up, down, norm, Config(normaliser="released")), 3 * norm / 7)
    louder = down.clone()
    louder[:, 2] *= 100
    assert float(scores(gate_up, louder, norm, Config())[2]) > 1.5 * float(scores(gate_up, down, norm, Config())[2])


@pytest.mark.parametrize("make", [dense_model, sparse_model])
def test_the_cut_model_is_the_model_with_those_units_at_zero(generator, make):
    before, text = make(generator), calibration()
    config = Config(share=0.5, multiple=1, spread=0.0, tokens=72)
    after = cfsp(before, config, generator, text)
    masked = dict(before.tensors)
    for block in blocks(before, "test"):
        gate_up, down = block.weights(before)
        narrow = after.tensors[block.down]
        stays = (down.unsqueeze(-1) == narrow.unsqueeze(-2)).all(-3).any(-1)  # [.., F]
        assert bool((stays.sum(-1) == down.shape[-1] // 2).all()) and narrow.shape[-1] * 2 == down.shape[-1]
        masked[block.down] = down * stays.unsqueeze(-2)
        masked[block.gate_up] = gate_up
    torch.testing.assert_close(logits(after, TOKENS), logits(before.derive(tensors=masked), TOKENS))


def test_experts_keep_one_width_and_units_of_their_own(generator):
    """An expert's best units are planted: loud in its down map alone."""
    before = sparse_model(generator)
    down = before.tensors["layers.0.channel_mixer.down_proj"].clone()
    for expert in range(4):
        down[expert, :, (expert + 1) % 4] *= 1e3
    planted = before.derive(tensors={**before.tensors, "layers.0.channel_mixer.down_proj": down})
    config = Config(share=0.75, multiple=1, activation=0.0, weighted=0.0, tokens=72)
    after = cfsp(planted, config, generator, calibration())
    assert channel_mixers(after.arch)[0]["hidden_dim"] == 1
    for expert in range(4):
        assert torch.equal(after.tensors["layers.0.channel_mixer.down_proj"][expert, :, 0],
                           down[expert, :, (expert + 1) % 4])


def test_shared_experts_are_a_block_of_their_own(generator):
    before = sparse_model(generator)
    mixer = {**before.arch["channel_mixer"], "shared_experts": 2}
    before = whole(before.derive(arch={**before.arch, "channel_mixer": mixer}))
    after = cfsp(before, Config(share=0.5, spread=0.0, multiple=1, tokens=72), generator, calibration())
    spec = channel_mixers(after.arch)[1]
    assert (spec["hidden_dim"], spec["shared_experts"], spec["shared_hidden_dim"]) == (2, 1, 4)
    assert Block(1, shared=True) in blocks(after, "test") and logits(after, TOKENS).isfinite().all()


@pytest.mark.parametrize("full, shares, multiple, wanted", [
    ([64, 64, 64], [0.5, 0.75, 0.25], 8, [32, 48, 16]),
    ([64, 64, 64], [0.55, 0.55, 0.4], 8, [40, 32, 24]),  # 4.4 + 4.4 + 3.2 steps are 12
    ([10, 10], [1.0, 0.01], 4, [10, 4]),
])
def test_widths_are_multiples_whose_sum_is_as_asked(full, shares, multiple, wanted):
    assert widths(full, shares, multiple) == wanted


def test_a_share_of_zero_leaves_all_bits(generator):
    before = dense_model(generator)
    after = cfsp(before, Config(share=0.0, spread=9.0), generator, calibration())
    assert all(torch.equal(after.tensors[name], value) for name, value in before.tensors.items())


def test_refusals(generator):
    values = example(generator)
    checkpoint = whole(values["checkpoint"])
    with pytest.raises(MixwellError, match="a block is 8 units wide; expected multiple = 8 or less"):
        cfsp(checkpoint, Config(multiple=16), generator, calibration())
    with pytest.raises(ValueError, match=r"share is 1.0; expected 0 up to 1"):
        Config(share=1.0)
    coded = {**checkpoint.tensors}
    coded["layers.0.channel_mixer.down_proj"] = coded["layers.0.channel_mixer.down_proj"].to(torch.uint8)
    with pytest.raises(MixwellError, match=r"down_proj is quantised; CFSP needs full weights"):
        cfsp(checkpoint.derive(tensors=coded), Config(), generator, calibration())
    other = {**checkpoint.arch, "channel_mixer": {"method": "experts.layers.swiglu", "hidden_dim": 8, "bias": True}}
    with pytest.raises(MixwellError, match="layer 0 has bias = True; CFSP takes False only"):
        cfsp(checkpoint.derive(arch=other), Config(), generator, calibration())
    other["channel_mixer"] = {"method": "experts.layers.soft_moe", "num_experts": 2}
    with pytest.raises(MixwellError, match=r"layer 0 is experts.layers.soft_moe; CFSP cuts experts.layers.swiglu"):
        cfsp(checkpoint.derive(arch=other), Config(), generator, calibration())
    assert promises(Config()) == {}
