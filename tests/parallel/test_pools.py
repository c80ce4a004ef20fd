"""Tasks on a cluster: results, errors of their own, lost workers begun again, and the same numbers as in a process."""

import os
import socket
import sys
import types
import warnings
from concurrent.futures import BrokenExecutor, Future
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.data.runs import MixingRuns
from mixwell.data.sureness import cross_validated
from mixwell.density import GaussianMixture
from mixwell.parallel import fits
from mixwell.parallel.pools import RETRIES, RayPool, alone, ray_pool, results
from mixwell.tables import fit as fit_table


class TaskError(Exception):
    """As Ray's own: an error that a task raised, with its cause, and a trace as its words."""

    def __init__(self, cause):
        super().__init__(f"ray::alone() (pid=7)\n  File ...\n{cause!r}")
        self.cause = cause


class Cluster:
    """What a pool asks of Ray, in this process; `losses` workers are lost first."""

    exceptions = types.SimpleNamespace(RayTaskError=TaskError, RayActorError=ConnectionError)

    def __init__(self, losses=0):
        self.losses, self.begun = losses, 0

    def remote(self, **options):
        assert options == {"num_cpus": 1, "max_retries": 0}
        return lambda function: types.SimpleNamespace(remote=lambda *arguments: self._run(function, arguments))

    def cluster_resources(self):
        return {"CPU": 5.0}

    def put(self, value):
        return value

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
    line = "half: a worker of the cluster was lost (RuntimeError: the worker died); it is begun again"
    assert told == [line] * RETRIES
    trial = types.SimpleNamespace(words="top_k, seed 3")
    with pytest.raises(BrokenExecutor, match="top_k, seed 3: lost 3 times: RuntimeError: the worker died"):
        RayPool(Cluster(RETRIES + 1), 1, told.append).submit(half, trial).result()
    assert told[-1].startswith("top_k, seed 3: a worker of the cluster was lost")


def test_a_task_has_its_threads():
    before = torch.get_num_threads()
    try:
        assert alone(1, "/no/such/folder", torch.get_num_threads) == 1
    finally:
        torch.set_num_threads(before)


def test_without_ray_a_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MixwellError, match=r"--ray needs Ray: pip install 'mixwell\[ray\]'"):
        ray_pool("local", 1, print).__enter__()


def test_an_address_that_nobody_answers_is_told_soon(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setitem(sys.modules, "ray", Cluster())
    for address in (f"ray://127.0.0.1:{port}", f"127.0.0.1:{port}"):
        line = rf"--ray {address}: nothing answers at port {port} of 127\.0\.0\.1 within 10 s .*; start the cluster"
        with pytest.raises(MixwellError, match=line):
            ray_pool(address, 1, print).__enter__()


def total(trial, shared_N):
    shared_N += trial  # a task may write into what it was sent
    return float(shared_N.sum())


def test_trials_come_back_in_order_here_and_there():
    shared_N = np.ones(3)
    there = list(results(RayPool(Cluster(), 1, print), total, [1, 2], shared_N))
    assert there == [6.0, 9.0] and shared_N.tolist() == [1, 1, 1]
    assert list(results(None, half, [2, 4])) == [1, 2]


@pytest.fixture(scope="module")
def table():
    draws = np.random.default_rng(0)
    return pd.DataFrame(np.r_[draws.normal(-3, 1, (40, 2)), draws.normal(3, 1, (40, 2))], columns=["a", "b"])


@pytest.fixture(scope="module")
def runs():
    draws = np.random.default_rng(1)
    weights_ND = draws.dirichlet(np.ones(2), 12)
    losses_NM = 2 + np.exp(-weights_ND)
    return MixingRuns(("x", "y"), ("x", "y"), weights_ND, losses_NM)


def check_fits(pool, table):
    options = {"components": [1, 2], "family": "diag,spherical", "starts": 1}
    here, there = fit_table(table, **options), fit_table(table, **options, pool=pool)
    assert repr(here.choice) == repr(there.choice) and here.choice.best.n_components == 2
    np.testing.assert_array_equal(here.estimator.predict_proba(table.to_numpy()),
                                  there.estimator.predict_proba(table.to_numpy()))


def check_predictors(pool, runs):
    names = ["exponential_law", "bivariate_law"]
    assert cross_validated(runs, names, pool=pool) == cross_validated(runs, names)


def test_fits_and_predictors_are_the_same_in_a_pool(table, runs):
    pool = RayPool(Cluster(), 1, print)
    check_fits(pool, table)
    check_predictors(pool, runs)


def test_shards_are_spread_in_order(tmp_path):
    names = [str(tmp_path / f"{i}.parquet") for i in range(5)]
    for name in names:
        open(name, "w").close()
    assert fits.spread_shards(tmp_path, 2) == [names[:2], names[2:]]
    assert fits.spread_shards(names, 5) == [[name] for name in names]
    with pytest.raises(MixwellError, match="6 workers for 5 shards; expected from 1 to as many workers as shards"):
        fits.spread_shards(tmp_path, 6)


class Crews(Cluster):
    """Workers of fits whose first crew dies, as `lost` says, and whose errors are `raised`."""

    def __init__(self, lost, raised=()):
        super().__init__()
        self.lost, self.raised, self.killed = lost, list(raised), 0

    def remote(self, **options):
        return lambda kind: types.SimpleNamespace(remote=self._worker)

    def _worker(self, shards, rank, size, threads):
        def fit(sent, place):
            if self.lost:
                self.lost -= 1
                return ConnectionError("an actor died")
            return self.raised[rank] if self.raised else (rank, sent, place)

        return types.SimpleNamespace(fit=types.SimpleNamespace(remote=fit),
                                     meeting=types.SimpleNamespace(remote=lambda: "there"))

    def get(self, reference):
        if isinstance(reference, Exception):
            raise reference
        return reference

    def kill(self, worker):
        self.killed += 1


def test_a_fit_whose_worker_is_lost_begins_anew():
    told, parts = [], [["a"], ["b"]]
    crews = Crews(lost=1)
    assert fits._fitted(crews, "model", parts, 1, told.append) == (0, "model", "there")
    assert told == ["a worker of the fit was lost (ConnectionError: an actor died); the fit begins anew"]
    assert crews.killed == 4
    with pytest.raises(MixwellError, match="workers of the fit were lost 3 times"):
        fits._fitted(Crews(lost=9), "model", parts, 1, told.append)
    others = MixwellError("process 1 of 2 could not use its rows; its own message says why.")
    with pytest.raises(ValueError, match=r"^row 5 is infinite$"):
        fits._fitted(Crews(0, [TaskError(others), TaskError(ValueError("row 5 is infinite"))]), "m", parts, 1, print)


def draws(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(300, 300, generator=generator).matmul(torch.ones(300, 300)).sum().item(), os.getpid()


@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
def test_on_ray_itself(table, runs):
    """The same numbers as here, in other processes; an error of a task's own without Ray's trace."""
    with ray_pool("local", 1, print) as pool:
        found = [pool.submit(draws, seed) for seed in range(3)]
        values = [one.result(120) for one in found]
        check_fits(pool, table)
        check_predictors(pool, runs)
        with pytest.raises(ValueError, match=r"^7 is odd$"):
            pool.submit(half, 7).result(120)
    for seed, (value, process) in enumerate(values):
        assert value == draws(seed)[0] and process != os.getpid()


@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
def test_shards_on_ray_itself(table, tmp_path):
    for part in range(3):
        table[part::3].to_parquet(tmp_path / f"{part}.parquet", index=False)
    start = {"means_init": [[-1, -1], [1, 1]], "weights_init": [0.5, 0.5], "tol": 0, "max_iter": 5,
             "precisions_init": np.tile(np.eye(2), (2, 1, 1))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        there = fits.fit_on_ray(GaussianMixture(2, **start), tmp_path, address="local", workers=2)
        here = GaussianMixture(2, **start).fit(tmp_path)
    np.testing.assert_allclose(there.means_, here.means_, rtol=1e-12)
    np.testing.assert_allclose(there.covariances_, here.covariances_, rtol=1e-12)
