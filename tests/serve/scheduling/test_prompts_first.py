"""Whole prompts are read before any answer goes on."""

import pytest

from mixwell.core.rng import generator
from mixwell.serve.scheduling.prompts_first import Config, PromptsFirst, example
from mixwell.serve.scheduling.simulate import Job


def test_prompts_are_read_whole_while_answers_wait():
    jobs = [Job(0.0, 5, 9, read=5, told=[1.0]), Job(0.1, 9, 3), Job(0.2, 6, 3), Job(0.3, 2, 3)]
    assert PromptsFirst(Config(budget=15, rows=4)).plan(jobs) == [(jobs[1], 9), (jobs[2], 6)]
    assert PromptsFirst(Config(budget=14, rows=4)).plan(jobs) == [(jobs[1], 9)]  # the shorter one behind waits, too
    assert PromptsFirst(Config(budget=3, rows=2)).plan(jobs) == [(jobs[1], 9)]  # one at least, however long
    assert PromptsFirst(Config(budget=3, rows=1)).plan(jobs) == [(jobs[0], 1)]
    assert PromptsFirst(Config()).plan(example(generator(0))["jobs"])
    with pytest.raises(ValueError, match="rows is 0"):
        Config(rows=0)
