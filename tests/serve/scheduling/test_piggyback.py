"""Piggybacked steps hold one piece of one prompt, and prompts take as many steps as they have pieces."""

import pytest

from mixwell.core.rng import generator
from mixwell.serve.scheduling.piggyback import Config, Piggyback, balanced_chunk, example
from mixwell.serve.scheduling.simulate import Device, Job, Network, simulate

DEVICE = Device(flops=1.55e14, bandwidth=7.7e11)
NETWORK = Network(weight_bytes=26e9, token_flops=26e9, position_bytes=819200.0)


def test_each_step_has_one_piece_and_the_others_ride_along():
    jobs = [Job(0.0, 5, 9, read=5, told=[1.0]), Job(0.1, 9, 3, read=2), Job(0.2, 6, 3),
            Job(0.3, 4, 3, read=4, told=[1.0])]
    plan = Piggyback(Config(chunk=4, rows=4)).plan(jobs)
    assert plan == [(jobs[1], 4), (jobs[0], 1), (jobs[3], 1)]
    narrow = Piggyback(Config(chunk=4, rows=2)).plan(jobs)
    assert narrow == [(jobs[1], 4), (jobs[0], 1)]
    answering = [job for job in jobs if not job.left]
    assert Piggyback(Config(chunk=4, rows=2)).plan(answering) == [(job, 1) for job in answering]
    with pytest.raises(ValueError, match="rows is 1"):
        Config(rows=1)


@pytest.mark.parametrize("chunk", [1, 7, 64, 100])
def test_a_prompt_takes_as_many_steps_as_it_has_pieces(chunk):
    job, policy, steps = Job(0.0, 100, 1), Piggyback(Config(chunk=chunk, rows=2)), 0
    while job.left:
        ((_, count),) = policy.plan([job])
        job.read += count
        steps += 1
    assert steps == -(-100 // chunk)


def filled(chunk, rows, prompt, answer):
    """Mean share of the places of a step that are taken, midway."""
    policy, sizes = Piggyback(Config(chunk=chunk, rows=rows)), []

    class Counted:
        def plan(self, there):
            plan = policy.plan(there)
            sizes.append(len(plan))
            return plan

    simulate([Job(0.0, prompt, answer) for _ in range(60)], Counted(), DEVICE, NETWORK)
    middle = sizes[len(sizes) // 3 : len(sizes) * 2 // 3]
    return sum(middle) / len(middle) / rows


def test_pieces_of_the_balanced_size_fill_the_places():
    """P / D = C / (B - 1): as many requests begin as end; with smaller pieces answers end sooner than prompts are read.
    """
    assert balanced_chunk(400, 50, 9) == 64
    assert filled(64, 9, 400, 50) > 0.85
    assert filled(16, 9, 400, 50) < 0.45
    assert len(example(generator(0))["jobs"]) == 12
