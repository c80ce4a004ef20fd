"""Simulated time against sums by hand."""

import pytest

from mixwell.serve.scheduling.prompts_first import Config, PromptsFirst
from mixwell.serve.scheduling.simulate import Device, Job, Network, seconds, simulate, traffic, waits

DEVICE = Device(flops=100.0, bandwidth=10.0, overhead=0.5)
NETWORK = Network(weight_bytes=20.0, token_flops=30.0, position_bytes=1.0)


def test_a_step_is_bound_by_operations_or_by_bytes():
    fresh, answering = Job(0.0, 10, 3), Job(0.0, 4, 3, read=4, told=[1.0])
    assert seconds(DEVICE, NETWORK, [(fresh, 10)]) == pytest.approx(max(10 * 30 / 100, (20 + 10) / 10) + 0.5)
    assert seconds(DEVICE, NETWORK, [(answering, 1)]) == pytest.approx(max(30 / 100, (20 + 4 + 1) / 10) + 0.5)
    answering.told.append(2.0)
    assert seconds(DEVICE, NETWORK, [(answering, 1)]) == pytest.approx((20 + 5 + 1) / 10 + 0.5)


def test_tokens_come_at_the_end_of_their_steps():
    job = Job(1.0, 10, 3)
    end = simulate([job], PromptsFirst(Config()), DEVICE, NETWORK)
    first = 1.0 + max(3.0, 3.0) + 0.5
    second = first + (20 + 10 + 1) / 10 + 0.5
    third = second + (20 + 11 + 1) / 10 + 0.5
    assert job.told == pytest.approx([first, second, third]) and end == pytest.approx(third)
    assert waits(job) == pytest.approx([second - first, third - second])


def test_a_policy_that_does_nothing_is_told():
    class Idle:
        def plan(self, jobs):
            return []

    with pytest.raises(RuntimeError, match="plans nothing while 1 requests wait"):
        simulate([Job(0.0, 1, 1)], Idle(), DEVICE, NETWORK)


def test_traffic_has_the_rate_and_the_lengths_that_are_asked_for():
    jobs = traffic(4000, 5.0, 0, prompt=(100.0, 0.5), answer=(20.0, 1.0), longest=300)
    assert jobs[-1].arrival == pytest.approx(4000 / 5.0, rel=0.1)
    prompts, answers = (sorted(getattr(job, name) for job in jobs) for name in ("prompt", "answer"))
    assert prompts[2000] == pytest.approx(100, rel=0.05) and answers[2000] == pytest.approx(20, rel=0.1)
    assert prompts[0] >= 1 and max(answers[-1], prompts[-1]) == 300
    again = traffic(4000, 5.0, 0, prompt=(100.0, 0.5), answer=(20.0, 1.0), longest=300)
    assert [job.answer for job in again] == [job.answer for job in jobs]
