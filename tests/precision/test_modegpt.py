"""MoDeGPT: each decomposition against least squares or a loop, exactness where rank is lacking, rotation kept."""

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.lm.config import ModelConfig
from mixwell.lm.model import LanguageModel
from mixwell.precision.cutting import Block
from mixwell.precision.modegpt import (
    Config,
    Heads,
    attentions,
    example,
    leverage,
    lost_shares,
    modegpt,
    nystrom,
    pair_scores,
    promises,
    second_moments,
    value_output,
)
from tests.contracts._conversions import VOCAB, calibration, logits, sparse_model, whole
from tests.contracts._tools import fresh

TOKENS = torch.randint(0, VOCAB, (3, 14), generator=torch.Generator().manual_seed(4))
START = "layers.0.sequence_mixer."


def model(**changes):
    """A dense model of one layer, four heads of eight in two groups."""
    arch = {"vocab_size": VOCAB, "dim": 12, "num_layers": 1, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8,
            "max_positions": 64, "channel_mixer": {"method": "experts.layers.swiglu", "hidden_dim": 8}} | changes
    made = LanguageModel(ModelConfig(**arch), fresh(5)).to_checkpoint()
    drawn = fresh(6)
    tensors = {name: value if "norm" in name else torch.randn(value.shape, generator=drawn) / 2
               for name, value in made.tensors.items()}
    return made.derive(tensors=tensors)


def test_leverage_against_its_formula(generator):
    x = torch.randn(50, 6, generator=generator, dtype=torch.float64) * torch.tensor([3.0, 1, 2, 0.1, 1, 0.5])
    C = x.T @ x / 50
    level = 0.05 * C.diagonal().mean()
    wanted = (C @ torch.linalg.inv(C + level * torch.eye(6))).diagonal()
    torch.testing.assert_close(leverage(C, 0.05), wanted)
    assert bool((leverage(torch.zeros(3, 3, dtype=torch.float64), 0.05) == 0).all())


def test_the_closed_form_is_least_squares(generator):
    x = torch.randn(80, 7, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(7, 7, generator=generator, dtype=torch.float64)
    down, kept = torch.randn(5, 7, generator=generator, dtype=torch.float64), torch.tensor([0, 2, 3, 6])
    found = nystrom(down, x.T @ x / 80, kept)
    wanted = torch.linalg.lstsq(x[:, kept], x @ down.T).solution.T
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_units_that_repeat_others_cost_nothing():
    """Half of the hidden units are others times a number; without the closed form their share would be lost."""
    before, F = model(), 8
    gate_up = before.tensors["layers.0.channel_mixer.gate_up_proj"].clone()
    for half in (gate_up[:F], gate_up[F:]):
        half[F // 2 :] = half[: F // 2]
    gate_up[F + F // 2 :] *= 0.5
    before = before.derive(tensors={**before.tensors, "layers.0.channel_mixer.gate_up_proj": gate_up})
    config = Config(share=0.5, attention=False, temperature=None, multiple=1, ridge=1e-6)
    after = modegpt(before, config, fresh(), calibration())
    assert after.tensors["layers.0.channel_mixer.down_proj"].shape == (12, 4)
    torch.testing.assert_close(logits(after, TOKENS), logits(before, TOKENS), rtol=1e-3, atol=1e-3)


def moments_by_hand(checkpoint, text, block):
    down, count = 0, 0
    for seen in text.seen(checkpoint):
        for x in seen[0].x_TD.double():
            gate, up = (checkpoint.tensors[block.gate_up].double() @ x).chunk(2)
            hidden = gate * torch.sigmoid(gate) * up
            down, count = down + torch.outer(hidden, hidden), count + 1
    return down / count


def test_second_moments_are_those_of_units_and_of_queries_with_their_bias():
    bias = {"method": "sequence.attention", "bias": True}
    before, text = model(sequence_mixer=bias), calibration()
    (heads,) = attentions(before)
    found = second_moments(before, [Block(0)], [heads], text)
    torch.testing.assert_close(found[Block(0).down], moments_by_hand(before, text, Block(0)), rtol=1e-4, atol=1e-5)
    (x,) = [torch.cat([batch[f"{START}qkv.weight"] for batch in text.inputs(before, [f"{START}qkv.weight"])])]
    y = x.double() @ before.tensors[f"{START}qkv.weight"].double().T + before.tensors[f"{START}qkv.bias"].double()
    for head in range(8):  # four of queries, two of keys, two of values
        own = y[:, 8 * head : 8 * head + 8]
        torch.testing.assert_close(found[f"{START}qkv.weight"][head], own.T @ own / len(own), rtol=1e-5, atol=1e-6)


def test_pairs_are_scored_by_both_halves_over_all_heads(generator):
    y = torch.randn(30, 8, 8, generator=generator, dtype=torch.float64)
    grams = torch.einsum("thp,thq->hpq", y, y) / 30
    found = pair_scores(grams, Heads(0, {}, 4, 2, 8))
    for pair in range(4):
        total = 0
        for head in range(4):
            for channel in (pair, pair + 4):
                key = 4 + head // 2
                total += float(y[:, head, channel].square().mean() * y[:, key, channel].square().mean())
        assert float(found[pair]) == pytest.approx(total)


@pytest.mark.parametrize("scaling", [None, {"type": "linear", "factor": 3.0}])
def test_pairs_that_carry_nothing_go_and_the_others_turn_as_before(scaling):
    """Frequencies go with their pairs: any other choice of them would change the scores."""
    before = model(rope_scaling=scaling)
    weight = before.tensors[f"{START}qkv.weight"].clone()
    by_head = weight.view(8, 8, 12)
    by_head[:4, [0, 2, 4, 6]] = 0  # queries' pairs 0 and 2
    by_head[6:, 4:] = by_head[6:, :4]  # values of rank four
    before = before.derive(tensors={**before.tensors, f"{START}qkv.weight": weight})
    config = Config(share=0.5, temperature=None, multiple=8, most=0.9)
    after = modegpt(before, config, fresh(), calibration())
    assert after.tensors[f"{START}qkv.weight"].shape == (32, 12)
    assert after.tensors[f"{START}out.weight"].shape == (12, 16)
    kept = {**after.tensors, **{n: before.tensors[n] for n in (Block(0).gate_up, Block(0).down)}}
    arch = {**after.arch, "channel_mixer": before.arch["channel_mixer"]}
    torch.testing.assert_close(logits(after.derive(arch=arch, tensors=kept), TOKENS), logits(before, TOKENS),
                               rtol=1e-4, atol=1e-4)


def test_values_lose_what_singular_values_say_and_no_more(generator):
    v = torch.randn(60, 6, generator=generator, dtype=torch.float64) @ torch.randn(6, 6, generator=generator).double()
    out = torch.randn(6, 9, generator=generator, dtype=torch.float64)
    back, left = value_output(v.T @ v, out, 3)
    lost = (v @ out - v @ back.T @ left).square().sum()
    sizes = torch.linalg.svdvals(v @ out)
    assert back.shape == (3, 6) and left.shape == (3, 9)
    assert float(lost) == pytest.approx(float(sizes[3:].square().sum()), rel=1e-6)
    back, left = value_output(v.T @ v, out, 6)
    torch.testing.assert_close(back.T @ left, out)


def test_a_bias_of_values_is_part_of_what_is_kept():
    before = model(sequence_mixer={"method": "sequence.attention", "bias": True})
    after = modegpt(before, Config(share=0.25, temperature=None), fresh(), calibration())
    assert after.tensors[f"{START}qkv.bias"].shape == (48,)
    (own,), (narrow,) = ([torch.cat([b[name] for b in calibration().inputs(c, [name])])]
                         for c, name in ((before, f"{START}out.weight"), (after, f"{START}out.weight")))
    was = own.double() @ before.tensors[f"{START}out.weight"].double().T
    now = narrow.double() @ after.tensors[f"{START}out.weight"].double().T
    assert float((was - now).square().mean() / was.square().mean()) < 0.1


def test_layers_that_turn_the_stream_most_lose_least():
    influence = torch.tensor([0.3, 0.1, 0.2], dtype=torch.float64)
    found = lost_shares(influence, Config(share=0.3, temperature=0.15))
    weights = (-influence / 0.15).exp()
    torch.testing.assert_close(found, 3 * 0.3 * weights / weights.sum())
    capped = lost_shares(influence, Config(share=0.5, temperature=0.02, most=0.8))
    assert float(capped.mean()) == pytest.approx(0.5) and float(capped.max()) == pytest.approx(0.8)
    assert capped[1] > capped[2] > 0 > -capped[0]
    assert bool((lost_shares(influence, Config(temperature=None)) == 0.25).all())


def test_nothing_is_cut_of_a_share_of_zero():
    before = sparse_model(fresh(3))
    after = modegpt(before, Config(share=0.0, multiple=1), fresh(), calibration())
    assert all(torch.equal(after.tensors[name], value) for name, value in before.tensors.items())


def test_refusals(generator):
    checkpoint, text = whole(example(generator)["checkpoint"]), calibration()
    for mixer, told in (({"method": "sequence.mamba2"}, "mixes positions by sequence.mamba2"),
                        ({"method": "sequence.attention", "qk_norm": "head"}, "has qk_norm = 'head'")):
        with pytest.raises(MixwellError, match=f"layer 0 {told}.*attention=false cuts"):
            modegpt(checkpoint.derive(arch={**checkpoint.arch, "sequence_mixer": mixer}), Config(), generator, text)
    growing = {"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 8}
    with pytest.raises(MixwellError, match="changes its base with the length"):
        modegpt(checkpoint.derive(arch={**checkpoint.arch, "rope_scaling": growing}), Config(), generator, text)
    with pytest.raises(ValueError, match=r"share is 0.9 and most 0.8; expected 0 <= share <= most < 1"):
        Config(share=0.9)
    with pytest.raises(ValueError, match="temperature is 0"):
        Config(temperature=0.0)
    assert promises(Config(tokens=5)) == {}
