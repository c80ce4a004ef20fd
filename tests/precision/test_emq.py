"""EMQ: trees against loops, agreement against ranks by hand, an evolution that finds what was planted."""

import math

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.precision.bits import at_width, places_of
from mixwell.precision.emq import Config, counted, emq, example, gradients, known, promises, sensitivities, tried
from mixwell.precision.proxies import GENES, SNIP, TRACE, Bank, Evolution, Known, evolved, scores, unlike, words
from tests.contracts._conversions import calibration
from tests.precision.test_ohq import nats_apart, outspoken

SMALL = {"group_size": 8, "tokens": 24, "widths": (2, 4)}


def fresh(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def checkpoint(generator):
    assert example(generator)["config"].bank
    return outspoken(generator)


@pytest.fixture
def text():
    return calibration(rows=2, length=6)


def about(units=6, numbers=5, seed=1):
    draws = fresh(seed)
    values = {name: [torch.randn(numbers, generator=draws, dtype=torch.float64) for _ in range(units)]
              for name in GENES[0]}
    return Known(values, [numbers * (unit + 1) for unit in range(units)])


@pytest.mark.parametrize("genes, formula", [
    (TRACE, lambda t, n: n * sum(2 * c for c in t["curvature"]) / 5),
    (SNIP, lambda t, n: n * sum(2 * abs(p) for p in t["product"]) / 5),
    (("weight", "square", "log", "gradient", "root", "negative", "times", "mean"),
     lambda t, n: sum(math.log(w * w + 1e-12) * -math.sqrt(abs(g)) for w, g in zip(t["weight"], t["gradient"])) / 5),
    (("weight", "same", "sigmoid", "activation", "abs", "same", "over", "norm"),
     lambda t, n: math.sqrt(n / 5 * sum((1 / (1 + math.exp(-w)) / (abs(a) + 1e-12)) ** 2
                                        for w, a in zip(t["weight"], t["activation"])))),
    (("weight", "unit", "same", "gradient", "standard", "same", "minus", "mean"),
     lambda t, n: sum(w / (math.hypot(*t["weight"]) + 1e-12) for w in t["weight"]) / 5)])
def test_scores_are_those_of_a_loop(genes, formula):
    data = about()
    found = scores(genes, data)
    for unit, count in enumerate(data.counts):
        own = {name: values[unit].tolist() for name, values in data.numbers.items()}
        assert float(found[unit]) == pytest.approx(formula(own, count), rel=1e-6, abs=1e-9)


def test_words_and_distance():
    assert words(TRACE) == "sum(same(same(curvature)) plus same(same(curvature)))"
    assert unlike(TRACE, SNIP) == 4 and unlike(TRACE, TRACE) == 0


def test_agreement_is_the_correlation_of_ranks():
    draws = fresh(2)
    bank = Bank(torch.rand(7, 3, generator=draws, dtype=torch.float64),
                torch.rand(7, generator=draws, dtype=torch.float64))
    score = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    told = [sum(v * s for v, s in zip(row, score.tolist())) for row in bank.values_MU.tolist()]
    ranks = [[sorted(own).index(value) for value in own] for own in (told, bank.quality_M.tolist())]
    squares = sum((a - b) ** 2 for a, b in zip(*ranks))
    assert bank.agreement(score) == pytest.approx(1 - 6 * squares / (7 * 48))
    assert math.isnan(bank.agreement(torch.zeros(3, dtype=torch.float64)))
    assert math.isnan(bank.agreement(torch.tensor([1.0, math.inf, 0], dtype=torch.float64)))
    first, second = bank.half(True), bank.half(False)
    assert torch.equal(first.quality_M, bank.quality_M[[0, 2, 4, 6]])
    assert torch.equal(second.values_MU, bank.values_MU[[1, 3, 5]])


def planted(data, seed):
    """Mixes whose quality is what a tree of weights and gradients says, which neither trace nor SNIP is."""
    truth = torch.stack([(w.abs() * g.square()).sum() for w, g in zip(data.numbers["weight"],
                                                                      data.numbers["gradient"])])
    values = torch.randint(2, 5, (40, len(truth)), generator=fresh(seed)).double()
    return Bank(values, values @ truth)


def test_evolution_finds_a_tree_that_ranks_mixes_it_never_saw_better_than_made_ones():
    """The promise of the paper, on planted sensitivities."""
    data = about(8, 30)
    bank, other = planted(data, 3), planted(data, 4)
    genes, value = evolved(data, bank, Evolution(16, 250, 5), fresh(5))
    assert value == bank.agreement(scores(genes, data)) > 0.9
    made = max(other.agreement(scores(own, data)) for own in (TRACE, SNIP))
    assert other.agreement(scores(genes, data)) > made + 0.03
    assert evolved(data, bank, Evolution(16, 250, 5), fresh(5)) == (genes, value)
    start = evolved(data, bank, Evolution(16, 0, 5), fresh(5))
    assert start[1] < value


def test_what_is_known_is_of_the_numbers_drawn(checkpoint, text):
    config = Config(sample=7, **SMALL)
    places = places_of(checkpoint, config)
    data = known(checkpoint, places, text, config, fresh())
    mean, square = gradients(checkpoint, ["layers.0.sequence_mixer.out.weight"], text)
    slopes = list(text.slopes(checkpoint, {"layers.0.sequence_mixer.out.weight":
                                           checkpoint.tensors["layers.0.sequence_mixer.out.weight"]}, rows=1))
    own = [one["layers.0.sequence_mixer.out.weight"] for one in slopes]
    assert len(own) == 2
    torch.testing.assert_close(mean["layers.0.sequence_mixer.out.weight"], (own[0] + own[1]) / 2)
    torch.testing.assert_close(square["layers.0.sequence_mixer.out.weight"], (own[0] ** 2 + own[1] ** 2) / 2)
    inputs = [batch["layers.0.channel_mixer.down_proj"] for batch in
              text.inputs(checkpoint, ["layers.0.channel_mixer.down_proj"])]
    for unit, place in enumerate(places):
        values = {name: matrices[unit] for name, matrices in data.numbers.items()}
        assert all(len(value) == 7 for value in values.values())
        torch.testing.assert_close(values["product"], values["weight"] * values["gradient"])
        assert set(values["weight"].tolist()) <= set(
            (checkpoint.tensors[place[0]] if place[1] is None else checkpoint.tensors[place[0]][place[1]])
            .double().flatten().tolist())
        if place == ("layers.0.channel_mixer.down_proj", 2):
            sizes = torch.cat([x[2] for x in inputs]).double().square().mean(0).sqrt()
            assert all(min(abs(value - other) for other in sizes.tolist()) < 1e-6
                       for value in values["activation"].tolist())


def test_the_bank_is_weighed_by_kl(checkpoint, text):
    config = Config(bank=6, **SMALL)
    places = [("layers.0.sequence_mixer.out.weight", None)]
    bank = tried(checkpoint, places, text, config, fresh())
    for value, quality in zip(bank.values_MU.flatten().tolist(), bank.quality_M.tolist()):
        moved = at_width(checkpoint.tensors[places[0][0]], int(value), config)
        assert quality == pytest.approx(-nats_apart(checkpoint, places[0][0], moved, text), rel=2e-3)


def test_widths_count_for_themselves_or_for_an_error():
    assert counted(Config(**SMALL)).tolist() == [2, 4]
    assert counted(Config(curve="error", **SMALL)).tolist() == [-1 / 16, -1 / 256]


@pytest.mark.parametrize("curve", ["bits", "error"])
def test_bits_follow_the_score(checkpoint, text, curve):
    config = Config(bank=8, population=4, children=5, tournament=2, curve=curve, bits_per_weight=3, **SMALL)
    found = sensitivities(checkpoint, config, fresh(), text)
    value = counted(config)
    score = -found.harm_UB[:, 0] / value[0]
    torch.testing.assert_close(found.harm_UB, -score[:, None] * value)
    told = emq(checkpoint, config, fresh(), text).lineage[-1]
    assert told["proxy"] == found.record["proxy"] and -1 <= told["proxy"]["spearman"] <= 1
    assert {width for own in told["bits"].values() for width in own} == {2, 4}


def test_refusals(checkpoint):
    for options, message in (({"bank": 5}, "bank is 5"), ({"population": 1}, "population is 1"),
                             ({"children": -1}, "children is -1"), ({"tournament": 1}, "tournament is 1"),
                             ({"sample": 0}, "sample is 0"), ({"widths": (4,)}, r"widths is \(4,\); expected two")):
        with pytest.raises(ValueError, match=message):
            Config(**options)
    flat = checkpoint.derive(tensors={**checkpoint.tensors, "head.weight": torch.zeros(13, 16)})
    with pytest.raises(MixwellError, match="all mixes of bits do alike on this text"):
        emq(flat, Config(bank=6, **SMALL), fresh(), calibration(rows=2, length=6))
    same = Known({name: [torch.zeros(3).double()] * 2 for name in GENES[0]}, [3, 3])
    with pytest.raises(ValueError, match="no tree tells the mixes of the bank apart"):
        evolved(same, Bank(torch.ones(4, 2).double(), torch.rand(4).double()), Evolution(3, 5, 2), fresh())
    assert promises(Config(max_kl_nats=0.5)) == {"kl_nats": 0.5}
