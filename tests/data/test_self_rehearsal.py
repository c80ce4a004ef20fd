"""Self-rehearsal against a loop, what reaches the model and the judge, its limits, what it refuses."""

import pytest

from mixwell.core.errors import MixwellError
from mixwell.data._answers import GIVEN, OWN
from mixwell.data.self_rehearsal import Config, self_rehearsal

PROMPTS = ["a", "bb", "ccc", "dddd", "eeeee"]
GOLD = ["1", "2", "3", "4", "5"]


def answer(prompts):
    return [f" {len(p)}" if len(p) % 2 else "7" for p in prompts]


def judge(prompt, own, gold):
    return own.strip() == gold


@pytest.mark.parametrize("batch", [1, 2, 64])
def test_each_target_is_the_models_own_where_it_is_right(batch):
    asked = []

    def heard(prompts):
        asked.append(list(prompts))
        return answer(prompts)

    found = self_rehearsal(PROMPTS, GOLD, Config(batch=batch), answer=heard, judge=judge)
    expected = [own if judge(x, own, y) else y for x, own, y in zip(PROMPTS, answer(PROMPTS), GOLD)]
    assert found.answers == expected == [" 1", "2", " 3", "4", " 5"]
    assert found.source_N.tolist() == [OWN, GIVEN, OWN, GIVEN, OWN]
    assert [p for part in asked for p in part] == PROMPTS and max(map(len, asked)) <= batch  # each once
    assert found.share(OWN) == 0.6 and found.share(GIVEN) == 0.4


def test_every_prompt_is_kept_whatever_the_judge_says():
    none = self_rehearsal(PROMPTS, GOLD, Config(), answer=answer, judge=lambda *_: False)
    every = self_rehearsal(PROMPTS, GOLD, Config(), answer=answer, judge=lambda *_: True)
    assert none.answers == GOLD and every.answers == answer(PROMPTS)


def test_the_judge_sees_prompt_own_and_given_answer_in_this_order():
    seen = []
    self_rehearsal(PROMPTS[:1], GOLD[:1], Config(), answer=answer, judge=lambda *three: seen.append(three))
    assert seen == [("a", " 1", "1")]


def test_what_cannot_be_is_refused():
    with pytest.raises(MixwellError, match="5 prompts came with 4 answers"):
        self_rehearsal(PROMPTS, GOLD[:4], Config(), answer=answer, judge=judge)
    with pytest.raises(MixwellError, match="1 answers came for 5 prompts"):
        self_rehearsal(PROMPTS, GOLD, Config(), answer=lambda prompts: ["1"], judge=judge)
    with pytest.raises(ValueError, match="batch is 0; expected at least 1"):
        Config(batch=0)
