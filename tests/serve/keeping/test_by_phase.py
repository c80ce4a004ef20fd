"""The prompt's choice stays for good, the answer's follows the current query at its pace."""

import pytest
import torch

from mixwell.core.rng import generator
from mixwell.serve.keeping.by_phase import ByPhase, Config, allowed, example
from mixwell.serve.keeping.rules import Kept
from tests.contracts._keeping import prompt
from tests.serve.keeping.conftest import places_of

SIZES = {"prompt": 5, "prompt_recent": 2, "answer": 5, "recent": 2, "longest": 14}


def marked(values):
    """Keys whose first number says what they are."""
    keys = torch.tensor(values, dtype=torch.float64).view(1, 1, -1, 1)
    return Kept(keys, keys)


def followed(pace, steps=12):
    """What a loop keeps, and what the rule keeps, after each token of an answer."""
    draws = generator(3)
    config = Config(pace=pace, **SIZES)
    rule = ByPhase(config)
    weights = prompt(9)[0][:, :1]
    kept = rule.prompt(weights, marked(range(9)))
    fixed = kept.keys.flatten().tolist()
    held, period = [], (14 - 2) // (5 - 2)
    for step in range(1, steps + 1):
        held.append(100.0 + step)
        row = torch.rand(len(fixed) + len(held), generator=draws, dtype=torch.float64)
        kept = rule.token(row.view(1, 1, -1), Kept(*(torch.cat([part, marked([held[-1]]).keys], 2) for part in kept)))
        most = 5 if pace == "slide" else min(5, 2 + step // period)
        if (pace != "discontinuous" or step % period == 0) and len(held) > most:
            own = row[len(fixed) :].tolist()
            chosen = sorted(range(len(held) - 2), key=lambda j: -own[j])[: most - 2]
            held = [held[j] for j in sorted(chosen)] + held[-2:]
        yield kept.keys.flatten().tolist(), fixed + held


@pytest.mark.parametrize("pace", ["slide", "adaptive", "discontinuous"])
def test_the_answer_is_chosen_as_in_a_plain_loop(pace):
    for found, expected in followed(pace):
        assert found == expected


def test_the_prompts_choice_is_by_sums_and_never_changes():
    weights, whole = prompt(9)
    kept = ByPhase(Config(**SIZES)).prompt(weights, whole)
    for places, row in zip(places_of(kept, whole), weights[0]):
        sums = [sum(float(row[i, j]) for i in range(9)) for j in range(9)]
        largest = sorted(range(7), key=lambda j: -sums[j])[:3]
        assert places == [*sorted(largest), 7, 8]
    *_, (last, _) = followed("slide", 12)
    assert last[:5] == next(followed("slide", 1))[0][:5] and len(last) == 10


def test_paces_allow_what_they_say():
    slow = Config(pace="adaptive", **SIZES)
    assert [allowed(slow, step) for step in (0, 3, 4, 8, 12, 40)] == [2, 2, 3, 4, 5, 5] and slow.period == 4
    assert allowed(Config(**SIZES), 0) == 5
    assert example(generator(0))["config"].longest == 9
    for options, words in (({"pace": "fast"}, "slide, adaptive or"), ({"answer": 4, "recent": 4}, "more than recent"),
                           ({"prompt": 1, "prompt_recent": 2}, "prompt_recent")):
        with pytest.raises(ValueError, match=words):
            Config(**options)
