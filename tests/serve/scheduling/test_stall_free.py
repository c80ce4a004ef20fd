"""Stall-free steps are those of a plain loop and of the server's scheduler, and no answer waits for a prompt."""

import pytest

from mixwell.core.rng import generator
from mixwell.serve.blocks import BlockPool
from mixwell.serve.request import Options, Row
from mixwell.serve.scheduler import Scheduler
from mixwell.serve.scheduling.simulate import Device, Job, Network, simulate, traffic, waits
from mixwell.serve.scheduling.stall_free import Config, StallFree, example, pieces

DEVICE = Device(flops=3e14, bandwidth=2e12)
NETWORK = Network(weight_bytes=14e9, token_flops=14e9, position_bytes=131072.0)


def by_hand(jobs, budget, rows):
    """Tokens each job has read in the step, by its place."""
    counts, left = {}, budget
    for place, job in enumerate(jobs):
        if place < rows and job.read == job.prompt:
            counts[place] = 1
            left -= 1
    for place, job in enumerate(jobs):
        if place < rows and job.read < job.prompt and left > 0:
            counts[place] = job.prompt - job.read if job.prompt - job.read < left else left
            left -= counts[place]
    return counts


def test_a_step_is_the_loop_of_the_paper():
    jobs = [Job(0.0, 5, 3, read=5, told=[1.0]), Job(0.1, 9, 3, read=2), Job(0.2, 4, 3),
            Job(0.3, 4, 3, read=4, told=[1.0]), Job(0.4, 1, 1)]
    for budget in (3, 4, 9, 12, 50):
        for rows in (1, 2, 3):
            plan = StallFree(Config(budget=budget, rows=rows)).plan(jobs)
            assert {jobs.index(job): count for job, count in plan} == by_hand(jobs, budget, rows), (budget, rows)
    assert pieces([3, 4, 5], 8) == [3, 4, 1] and pieces([3], 0) == [0]
    with pytest.raises(ValueError, match="a token for each"):
        Config(budget=3, rows=4)


def test_the_servers_scheduler_plans_the_same_steps():
    """The same requests through both, with memory enough: the same tokens of the same rows in every step."""
    sizes = [(40, 3), (3, 5), (25, 1), (7, 4), (60, 2), (2, 6)]
    jobs = [Job(float(place), *size) for place, size in enumerate(sizes)]
    rows = [Row(list(range(prompt)), Options(max_tokens=most, prompt_logprobs=True), None) for prompt, most in sizes]
    policy, scheduler = StallFree(Config(budget=16, rows=4)), Scheduler(BlockPool(200, 4), 16, 4)
    for row in rows:
        scheduler.add(row)
    steps = 0
    while any(not job.over for job in jobs):
        plan = policy.plan([job for job in jobs if not job.over])
        turns = scheduler.plan()
        theirs = {rows.index(turn.row): turn.count for turn in turns}
        assert theirs == {jobs.index(job): count for job, count in plan}
        for turn in turns:
            scheduler.computed(turn.row, turn.count)
        for job, count in plan:
            row = rows[jobs.index(job)]
            job.read += min(count, job.left)
            if not job.left:
                job.told.append(0.0)
                row.ids.append(1)
            if job.over:
                scheduler.release(row)
        steps += 1
    assert steps > 8


def test_no_answer_waits_longer_than_a_full_step_takes():
    jobs = traffic(80, 6.0, 3, prompt=(1700.0, 0.8), answer=(40.0, 0.5), longest=8000)
    simulate(jobs, StallFree(Config(budget=512, rows=32)), DEVICE, NETWORK)
    positions = 32 * (8000 + 200)
    longest = max(512 * 14e9 / 3e14, (14e9 + positions * 131072) / 2e12)
    assert max(wait for job in jobs for wait in waits(job)) <= longest
    assert all(job.over and job.told == sorted(job.told) for job in jobs)
    values = example(generator(0))
    assert len(StallFree(Config()).plan(values["jobs"])) >= 1
