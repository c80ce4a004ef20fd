"""What guesses what a row says next: pure, within the length that is asked for, and sound after any pass."""

import inspect

import pytest

from mixwell.core import registry
from mixwell.serve.scheduling.simulate import Device, Network, simulate
from tests.contracts._tools import fresh, same_config

SERVED = [entry for entry in registry.entries() if entry.room == "serve"]
DRAFTS = [pytest.param(e, id=e.name) for e in SERVED if hasattr(e.load(), "draft")]
POLICIES = [pytest.param(e, id=e.name) for e in SERVED if hasattr(e.load(), "plan")]
FUNCTIONS = [pytest.param(e, id=e.name) for e in SERVED if inspect.isfunction(e.load()) and e.family == "serve"]


@pytest.mark.parametrize("entry", DRAFTS)
def test_guesses_are_ids_within_what_is_asked_for_and_inputs_stay(entry):
    values = entry.module().example(fresh())
    before = list(values["ids"])
    one, other = (entry.load()(entry.module().Config()) for _ in range(2))
    for longest in (values["longest"], 1, 0):
        asked = {**values, "longest": longest}
        found = one.draft(**asked)
        assert found == other.draft(**asked) and len(found) <= longest
        assert all(isinstance(number, int) and number >= 0 for number in found)
    assert values["ids"] == before


@pytest.mark.parametrize("entry", DRAFTS)
def test_any_pass_can_be_taken_in(entry):
    values = entry.module().example(fresh())
    draft = entry.load()(entry.module().Config())
    for predicted, accepted in (([7], 1), ([7, 8, 9], 1), ([7, 8, 9], 3), ([1, 2, 3, 4], 2)):
        draft.draft(**values)
        draft.learn(predicted, accepted)
        assert len(draft.draft(**values)) <= values["longest"]


@pytest.mark.parametrize("entry", DRAFTS)
def test_config_round_trips(entry):
    assert same_config(entry.module().Config())


@pytest.mark.parametrize("entry", POLICIES)
def test_a_policy_serves_all_and_reads_no_more_than_there_is(entry):
    jobs = entry.module().example(fresh())["jobs"]
    policy = entry.load()(entry.module().Config())
    device = Device(flops=1e14, bandwidth=1e12)
    network = Network(weight_bytes=1e9, token_flops=1e9, position_bytes=1e4)

    class Watched:
        def plan(self, there):
            plan = policy.plan(there)
            assert len({id(job) for job, _ in plan}) == len(plan)
            assert all(1 <= count <= max(1, job.left) and job in there for job, count in plan)
            return plan

    simulate(jobs, Watched(), device, network)
    assert all(job.over and job.told == sorted(job.told) for job in jobs)


@pytest.mark.parametrize("entry", FUNCTIONS)
def test_functions_give_the_same_twice(entry):
    first, second = (entry.load()(**entry.module().example(fresh())) for _ in range(2))
    assert first == second
