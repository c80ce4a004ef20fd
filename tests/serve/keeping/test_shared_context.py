"""Questions to a shared text: each as if alone, or one after the other with the first one seen by the rule."""

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.core.rng import generator
from mixwell.serve.keeping.last_queries import Config as LastConfig
from mixwell.serve.keeping.last_queries import LastQueries
from mixwell.serve.keeping.rules import keeping
from mixwell.serve.keeping.shared_context import Config, example, shared_context

REQUESTS, TURNS = Config(), Config(mode="turns")


@pytest.fixture(scope="module")
def questions():
    return torch.randint(40, (2, 3, 2), generator=generator(5))


def continued(model, ids, count):
    return model.generate(ids, count, eos_token_id=())[:, -count:]


def test_answers_are_those_of_whole_texts_read_anew(model, text, questions):
    """A cache that keeps all: requests see the text and their question, turns all questions before as well."""
    alone = torch.stack([continued(model, torch.cat([text, q], 1), 3) for q in questions.unbind(1)], 1)
    assert shared_context(model, text, questions, alone, REQUESTS).tolist() == [1, 1, 1]
    sofar, after = text, []
    for q in questions.unbind(1):
        sofar = torch.cat([sofar, q], 1)
        after.append(continued(model, sofar, 3))
    turns = torch.stack(after, 1)
    assert shared_context(model, text, questions, turns, TURNS).tolist() == [1, 1, 1]
    wrong = turns.clone()
    wrong[0, 1, 2] = (wrong[0, 1, 2] + 1) % 40
    assert shared_context(model, text, questions, wrong, TURNS).tolist() == [1, 0.5, 1]


def test_a_rule_sees_the_first_question_in_turns_alone(model, text, questions):
    seen = []

    class Watched(LastQueries):
        def prompt(self, weights, kept):
            seen.append(weights.shape[-1])
            return super().prompt(weights, kept)

    answers = questions[..., :1]
    with keeping(model, lambda: Watched(LastConfig(budget=8, queries=4))):
        shared_context(model, text, questions, answers, REQUESTS)
        assert seen == [30, 30]  # the text, once in each of two layers
        shared_context(model, text, questions, answers, TURNS)
        assert seen[2:] == [32, 32]


def test_bad_input_is_refused(model, text, questions):
    with pytest.raises(MixwellError, match="an answer for each question"):
        shared_context(model, text, questions, questions[:, :2], REQUESTS)
    with pytest.raises(ValueError, match="requests or turns"):
        Config(mode="all")
    assert shared_context(**example(generator(0))).shape == (3,)
