"""The next id: what options do to logits, by a loop over the ids, and how often each is drawn."""

import math
from collections import Counter

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.serve.choose import _adjusted, choose, likelihoods
from tests.serve.conftest import engine, finish, row, small_model

LOGITS = [0.5, -1.0, 2.0, 0.0, 1.5, -0.5]


def by_hand(logits, prompt, said, repetition, presence, frequency, bias, ends):
    found = []
    for number, value in enumerate(logits):
        if number in prompt or number in said:
            value = value / repetition if value > 0 else value * repetition
        if number in said:
            value -= presence + frequency * said.count(number)
        value += bias.get(number, 0.0)
        found.append(-math.inf if number in ends else value)
    return found


def test_options_act_on_logits_as_a_loop_over_the_ids_does(model):
    options = {"repetition_penalty": 1.5, "presence_penalty": 0.4, "frequency_penalty": -0.3,
               "logit_bias": {1: 3.0, 2: -2.0}, "stop_ids": frozenset([4]), "min_tokens": 4}
    one = row(model, [0, 1], 9, **options)
    one.ids += [2, 3, 2]
    found = _adjusted(torch.tensor(LOGITS, dtype=torch.float64), one)
    expected = by_hand(LOGITS, [0, 1], [2, 3, 2], 1.5, 0.4, -0.3, {1: 3.0, 2: -2.0}, {4})
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    one.ids.append(5)  # the fourth: ends are allowed again
    assert _adjusted(torch.tensor(LOGITS), one)[4] == 1.5


def test_draws_have_the_shares_of_the_softmax(model):
    one = row(model, [0], 9, temperature=0.5, top_k=3, seed=1)
    count = 4000
    drawn = Counter(choose(torch.tensor(LOGITS), one) for _ in range(count))
    weights = {number: math.exp(LOGITS[number] / 0.5) for number in (0, 2, 4)}
    assert drawn.keys() == weights.keys()
    for number, weight in weights.items():
        share = weight / sum(weights.values())
        assert abs(drawn[number] / count - share) < 4 * math.sqrt(share * (1 - share) / count)
    greedy = row(model, [0], 9, temperature=1e-300)
    assert choose(torch.tensor(LOGITS), greedy) == 2


def test_log_probabilities_are_of_the_logits_as_they_came():
    ((logprob, top),) = likelihoods(torch.tensor([LOGITS]), [3], 2)
    total = math.log(sum(map(math.exp, LOGITS)))
    assert logprob == pytest.approx(-total, abs=1e-6)
    assert [number for number, _ in top] == [2, 4] and top[0][1] == pytest.approx(2.0 - total, abs=1e-6)
    assert len(likelihoods(torch.tensor([LOGITS]), [3], 20)[0][1]) == 6


def test_logits_that_are_no_numbers_are_an_error(model):
    broken = torch.tensor([0.0, math.nan, 1.0])
    for temperature in (0.0, 1.0):
        with pytest.raises(MixwellError, match="weights may be damaged"):
            choose(broken, row(model, [0], temperature=temperature))


@pytest.mark.parametrize("options", [{"top_p": 1e-60}, {"repetition_penalty": 1e-42}])
def test_options_beyond_what_numbers_hold_harm_no_other_row(model, options):
    floats = small_model(dtype=torch.float32)
    extreme, other = row(floats, [1, 2], 4, temperature=1.0, seed=1, **options), row(floats, [1, 2], 4)
    ends = {event.row: event for event in finish(engine(floats), [extreme, other]) if event.finish}
    assert ends[other].finish == "length"
    assert ends[extreme].finish == "length" if "top_p" in options else "not finite" in ends[extreme].error
