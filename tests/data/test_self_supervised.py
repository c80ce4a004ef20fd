"""Self-to-supervised targets against a loop, who is asked for rewording, and that rewordings are judged."""

import pytest

from mixwell.core.errors import MixwellError
from mixwell.data import self_rehearsal
from mixwell.data._answers import GIVEN, OWN, REWORDED
from mixwell.data.self_supervised import Config, self_supervised

PROMPTS = ["a", "bb", "ccc", "dddd", "eeeee", "ffffff"]
GOLD = ["1", "2", "3", "4", "5", "6"]


def answer(prompts):
    return [f" {len(p)}" if len(p) % 2 else "7" for p in prompts]


def reword(prompts, answers):
    return [f"it is {y}" if y != "4" else "it is 9" for y in answers]


def judge(prompt, own, gold):
    return own.strip().removeprefix("it is ") == gold


def target(x, y):
    own = answer([x])[0]
    if judge(x, own, y):
        return own, OWN
    again = reword([x], [y])[0]
    return (again, REWORDED) if judge(x, again, y) else (y, GIVEN)


@pytest.mark.parametrize("batch", [1, 2, 64])
def test_own_then_reworded_then_given(batch):
    asked = []

    def heard(prompts, answers):
        asked.extend(zip(prompts, answers))
        return reword(prompts, answers)

    found = self_supervised(PROMPTS, GOLD, Config(batch=batch), answer=answer, reword=heard, judge=judge)
    expected = [target(x, y) for x, y in zip(PROMPTS, GOLD)]
    assert list(zip(found.answers, found.source_N.tolist())) == expected
    assert found.source_N.tolist() == [OWN, REWORDED, OWN, GIVEN, OWN, REWORDED]
    assert asked == [("bb", "2"), ("dddd", "4"), ("ffffff", "6")]  # those alone that the model did not solve
    assert found.share(REWORDED) == pytest.approx(1 / 3)


def test_without_a_rewording_that_holds_it_is_self_rehearsal():
    found = self_supervised(PROMPTS, GOLD, Config(), answer=answer, reword=lambda x, y: ["?"] * len(x), judge=judge)
    plain = self_rehearsal.self_rehearsal(PROMPTS, GOLD, self_rehearsal.Config(), answer=answer, judge=judge)
    assert found.answers == plain.answers


def test_what_cannot_be_is_refused():
    with pytest.raises(MixwellError, match="0 prompts came with 0 answers"):
        self_supervised([], [], Config(), answer=answer, reword=reword, judge=judge)
    with pytest.raises(MixwellError, match="2 answers came for 3 prompts"):
        self_supervised(PROMPTS, GOLD, Config(), answer=answer, reword=lambda x, y: y[1:], judge=judge)
    with pytest.raises(ValueError, match="batch is 0"):
        Config(batch=0)
