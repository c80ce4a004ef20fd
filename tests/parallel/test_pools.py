"""Tasks on a cluster: results, errors of their own, lost workers begun again, and the same numbers as in a process."""

import os
import sys
import types
from concurrent.futures import BrokenExecutor, Future
from importlib.util import find_spec

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.parallel.pools import RETRIES, RayPool, alone, ray_pool


class TaskError(Exception):
    """As Ray's own: an error that a task raised, with its cause."""

    def as_instanceof_cause(self):
        return self.args[0]


class Cluster:
    """What a pool asks of Ray, in this process; `losses` workers are lost first."""

    exceptions = types.SimpleNamespace(RayTaskError=TaskError)

    def __init__(self, losses=0):
        self.losses, self.begun = losses, 0

    def remote(self, **options):
        assert options == {"num_cpus": 1, "max_retries": 0}
        return lambda function: types.SimpleNamespace(remote=lambda *arguments: self._run(function, arguments))

    def cluster_resources(self):
        return {"CPU": 5.0}

    def _run(self, function, arguments):
        self.begun += 1
        done = Future()
        if self.begun <= self.losses:
            done.set_exception(RuntimeError("the worker died\nof something"))
        else:
            try:
                done.set_result(function(*arguments))
            except ValueError as error:
                done.set_exception(TaskError(error))
        return types.SimpleNamespace(future=lambda: done)


def half(number):
    if number % 2:
        raise ValueError(f"{number} is odd")
    return number // 2


def test_results_and_errors_come_back():
    told = []
    pool = RayPool(Cluster(), 1, told.append)
    assert pool.size == 5 and pool.submit(half, 8).result() == 4
    with pytest.raises(ValueError, match="7 is odd"):
        pool.submit(half, 7).result()
    assert not told
    with pytest.raises(TypeError, match="arguments by name came"):
        pool.submit(half, number=8)


def test_lost_workers_are_told_and_their_tasks_begun_again():
    told = []
    assert RayPool(Cluster(RETRIES), 1, told.append).submit(half, 8).result() == 4
    line = "a worker of the cluster was lost (RuntimeError: the worker died); its task is begun again"
    assert told == [line] * RETRIES
    with pytest.raises(BrokenExecutor, match="lost 3 times: RuntimeError: the worker died"):
        RayPool(Cluster(RETRIES + 1), 1, told.append).submit(half, 8).result()


def test_a_task_has_its_threads():
    before = torch.get_num_threads()
    try:
        assert alone(1, torch.get_num_threads, ()) == 1
    finally:
        torch.set_num_threads(before)


def test_without_ray_a_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MixwellError, match=r"--ray needs Ray: pip install 'mixwell\[ray\]'"):
        ray_pool("local", 1, print).__enter__()


def draws(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(300, 300, generator=generator).matmul(torch.ones(300, 300)).sum().item(), os.getpid()


@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
def test_on_ray_itself():
    """The same numbers as here, in other processes."""
    with ray_pool("local", 1, print) as pool:
        found = [pool.submit(draws, seed) for seed in range(3)]
        results = [one.result(120) for one in found]
    for seed, (value, process) in enumerate(results):
        assert value == alone(1, draws, (seed,))[0] and process != os.getpid()
    with pytest.raises(MixwellError, match=r"--ray ray://127\.0\.0\.1:1"), ray_pool("ray://127.0.0.1:1", 1, print):
        pass
