"""Collaborative decoding: who draws which scale, from which law, and what it costs."""

import math
from collections import Counter

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.serve.scale_decoding import Config, Costs, Model, costs, guided, logits_of, scale_decoding, strength_of
from tests.contracts._tools import fresh

SIZES = (1, 2, 4, 8)


def telling(name, asked, vocabulary=6):
    """A law that notes when it is asked, and what it is shown."""
    def law(coarser):
        asked.append((name, len(coarser), [len(drawn) for drawn in coarser]))
        return torch.zeros(SIZES[len(coarser)], vocabulary)
    return law


@pytest.mark.parametrize("drafts", [0, 1, 3, 4, 9])
def test_coarse_scales_are_the_drafters_and_each_sees_all_that_is_coarser(drafts):
    asked = []
    decoded = scale_decoding(Model(telling("large", asked)), Model(telling("small", asked)), SIZES,
                             Config(drafts=drafts), fresh())
    assert [len(drawn) for drawn in decoded.maps] == list(SIZES)
    assert asked == [("large" if s < drafts else "small", s, list(SIZES[:s])) for s in range(4)]


def ruled(table, scale_tables):
    """A law over two scales: one token, then two that hang on it."""
    return lambda coarser: table if not coarser else scale_tables[int(coarser[0][0])]


def test_the_result_has_the_drafters_law_coarse_and_the_refiners_fine():
    g = fresh(1)
    large = torch.randn(1, 2, generator=g), torch.randn(2, 2, 2, generator=g)
    small = torch.randn(1, 2, generator=g), torch.randn(2, 2, 2, generator=g)
    counts = Counter()
    for _ in range(3000):
        maps = scale_decoding(Model(ruled(*large)), Model(ruled(*small)), (1, 2), Config(drafts=1), g).maps
        counts[(maps[0][0], *maps[1])] += 1
    coarse = large[0].softmax(-1)[0].tolist()
    fine = small[1].softmax(-1).tolist()
    for (r, a, b), count in counts.items():
        expected = coarse[r] * fine[r][0][a] * fine[r][1][b]
        assert count / 3000 == pytest.approx(expected, abs=4 * math.sqrt(expected / 3000))
    assert sum(counts.values()) == 3000


def test_guidance_grows_with_the_scale():
    conditional, unconditional = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, -1.0]])
    assert guided(conditional, unconditional, 0.5).tolist() == [[1.5 * 1 - 0.5 * 3, 1.5 * 2 + 0.5]]
    assert [strength_of(s, 10, 4.0) for s in (0, 3, 9)] == [0, pytest.approx(4 * 3 / 9), 4]
    assert strength_of(0, 1, 4.0) == 4
    model = Model(lambda coarser: conditional.expand(SIZES[len(coarser)], -1),
                  lambda coarser: unconditional.expand(SIZES[len(coarser)], -1))
    coarser = [torch.zeros(size, dtype=torch.int64) for size in SIZES[:2]]
    found = logits_of(model, coarser, 4, 4, Config(guidance=3.0))
    torch.testing.assert_close(found, guided(conditional, unconditional, 2.0).expand(4, -1))


def test_what_is_drawn_follows_temperatures_and_cuts():
    steep = torch.tensor([[2.0, 1.9, 0.0, -9.0]])
    model = Model(lambda coarser: steep.expand(SIZES[len(coarser)], -1))
    best = scale_decoding(model, model, SIZES, Config(top_k=1), fresh())
    assert {token for drawn in best.maps for token in drawn} == {0}
    few = scale_decoding(model, model, SIZES, Config(top_p=0.6), fresh())
    assert {token for drawn in few.maps for token in drawn} == {0, 1}
    cold = Config(temperature=0.01, warm_temperature=100.0, warm=3)
    seen = [scale_decoding(model, model, SIZES, cold, fresh(seed)).maps for seed in range(40)]
    assert {token for maps in seen for token in maps[2]} == {0, 1, 2, 3}
    assert {token for maps in seen for token in maps[3]} == {0}


def test_costs_against_a_count():
    sizes = [n * n for n in (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)]
    drafter, refiner = costs(sizes, 8)
    assert drafter == Costs(8, sum(n * n for n in (1, 2, 3, 4, 5, 6, 8, 10)), 255)
    assert refiner == Costs(2, 680, 680)
    assert costs(sizes, 10)[1] == Costs(0, 0, 0) and costs(sizes, 99)[0] == Costs(10, 680, 680)
    assert costs(sizes, 8, True)[0] == Costs(16, 510, 510)
    both = Model(telling("", []), telling("", []))
    decoded = scale_decoding(both, both, SIZES, Config(drafts=3, guidance=1.0), fresh())
    assert (decoded.drafter, decoded.refiner) == costs(SIZES, 3, True)


def test_refusals():
    flat = Model(lambda coarser: torch.zeros(1, 3))
    with pytest.raises(MixwellError, match=r"scale 1 has 2 tokens; its law came as \[1, 3\]"):
        scale_decoding(flat, flat, (1, 2), Config(), fresh())
    with pytest.raises(MixwellError, match="guidance needs a model's unconditional law"):
        scale_decoding(flat, flat, (1,), Config(guidance=1.0), fresh())
    with pytest.raises(MixwellError, match=r"sizes are \[\]"):
        scale_decoding(flat, flat, (), Config(), fresh())
    for options, message in (({"drafts": -1}, "drafts is -1"), ({"top_p": 0.0}, "top_p is 0.0"),
                             ({"top_k": -1}, "top_k is -1"), ({"temperature": 0.0}, "temperature is 0.0"),
                             ({"warm_temperature": 0.0}, "warm_temperature is 0.0")):
        with pytest.raises(ValueError, match=message):
            Config(**options)
