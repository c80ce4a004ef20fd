"""The coordinate check: muP's factors by shape, and activations that stand still where the standard ones grow."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.lm import widths
from mixwell.lm.widths import MAXIMAL, STANDARD, Check, Rule, coordinates, decoder, grown, rules
from mixwell.report import coordinates_page


@pytest.fixture(scope="module")
def found():
    return coordinates(Check(widths=(32, 64, 128), lr=3e-3, seeds=1, steps=3))


def test_factors_follow_from_which_sides_grow():
    factors = rules(decoder, 32, 128)
    both, one = Rule(0.5, 0.25), Rule(0.25, 0.25)
    assert factors["embed.weight"] == factors["norm.weight"] == Rule(1.0, 1.0) and factors["head.weight"] == one
    matrices = [rule for name, rule in factors.items() if name.startswith("layers") and "norm" not in name]
    assert matrices == [both] * len(matrices) and len(matrices) >= 2 * 4
    assert set(rules(decoder, 32, 32).values()) == {Rule(1.0, 1.0)}, "at the base both are one"


def test_a_router_is_a_head_and_experts_are_matrices():
    def routed(width):
        mixer = {"method": "experts.layers.moe", "num_experts": 4, "hidden_dim": width, "router": {"method": "top_k"}}
        return replace(decoder(width), channel_mixer=mixer)

    factors = rules(routed, 32, 64)
    by_end = {name.removeprefix("layers.0.channel_mixer."): rule for name, rule in factors.items()}
    (router,) = (rule for name, rule in by_end.items() if name.startswith("router."))
    assert router == Rule(0.5, 0.5) and by_end["down_proj"] == Rule(0.5**0.5, 0.5)


def test_activations_grow_in_the_standard_parametrisation_alone(found):
    assert {"layers.0.channel_mixer", "layers.1.channel_mixer", "logits"} <= set(grown(found, STANDARD))
    worst = {name: max(one["exponent"] for one in found[name].values()) for name in (STANDARD, MAXIMAL)}
    assert worst[STANDARD] > 1 and worst[MAXIMAL] < 0.2
    logits = found[MAXIMAL]["logits"]
    assert logits["start"] == pytest.approx(-0.5, abs=0.15), "drawn independently they shrink, which is no failure"


def test_sizes_are_the_mean_of_what_modules_give(found):
    base = replace(Check(), widths=(32, 64), steps=2, seeds=1)
    got = widths.sizes(decoder(32), {}, base, 0)
    model = widths.Network(decoder(32), widths.generator(0, "coordinates", 32))
    ids = torch.randint(256, (4, 33), generator=widths.generator(0, "coordinates"))[:, :-1]
    with torch.no_grad():
        by_hand = np.abs(model.embed.weight.numpy()[ids.numpy()]).mean()
        logits = np.abs(model(ids).logits_BTV.numpy()).mean()
    assert got["embed"][0] == pytest.approx(by_hand) and got["logits"][0] == pytest.approx(logits)
    assert found[STANDARD]["embed"]["sizes"][0][0] == pytest.approx(by_hand)


def test_the_page_says_who_grows(found):
    html = coordinates_page.page(found)
    assert "maximal update: no activation grows faster" in html or "maximal update: " in html
    assert "standard: layers.0.sequence_mixer" in html and 'id="exponents"' in html


def test_the_rate_of_a_wide_model_is_scaled(monkeypatch):
    groups = widths._started(widths.Network(decoder(32)), {"head.weight": Rule(0.5, 0.25)}, 1.0)
    assert sorted({group["lr"] for group in groups}) == [0.25, 1.0]


@pytest.mark.parametrize(("options", "message"), [
    ({"widths": (64,)}, "expected two or more"), ({"widths": (64, 32)}, "each above"), ({"steps": 1}, "steps is 1"),
    ({"lr": 0}, "lr is 0"), ({"seeds": 0}, "seeds is 0"), ({"most": 0}, "most is 0")])
def test_ranges_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        Check(**options)


def test_what_cannot_be_checked_is_told():
    with pytest.raises(MixwellError, match="untie them"):
        rules(lambda width: replace(decoder(width), tie_embeddings=True), 32, 64)
    with pytest.raises(MixwellError, match="no whole number of heads of 16"):
        decoder(40)
