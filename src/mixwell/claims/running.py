"""Claims tried seed by seed in parallel, what comes kept at once, those nearest to their next look first."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mixwell.claims import evidence, sources, work
from mixwell.claims.record import Record, Task, Trial, Try
from mixwell.core.errors import MixwellError
from mixwell.run.workers import prepare

BUDGET_S = 120.0  # of one seed


@dataclass(eq=False)
class Effort:
    """One claim on its way: its record, what is being tried, and whether it broke."""

    name: str
    record: Record
    busy: list[Task] = field(default_factory=list)
    broken: str = ""

    def ready(self) -> list[Task]:
        """What could be started now."""
        tasks = [] if self.broken else self.record.tasks()
        return [task for task in tasks if task not in self.busy]

    @property
    def done(self) -> bool:
        """Whether nothing is left to try."""
        return bool(self.broken) or self.record.done

    def missing(self, looks: int = 0) -> float:
        """How many seeds are missing to its next look, or to `looks`; settings count as the share of a seed they are.
        """
        settings = [task for task in self.record.tasks() if task.side]
        goal = max(self.record.goal, looks)
        seeds = max(0, goal - self.record.seeds)
        sides = max(1, len(self.record.claim.sides))
        return seeds + len(settings) / sides

    def entry(self) -> evidence.Entry:
        """What its file holds."""
        return evidence.entry(self.record)

    def take(self, task: Task, done: work.Done) -> None:
        """Put what came of a task where it belongs."""
        self.busy.remove(task)
        if done.broken:
            self.broken = done.broken
        elif done.untestable:
            self.record.untestable = done.untestable
        elif task.side:
            self.record.add_try(task.side, Try(task.setting, done.score, done.seconds))
        else:
            self.record.trials[task.seed] = Trial(done.values, done.seconds)


def efforts(names: Sequence[str], folder: Path) -> list[Effort]:
    """The claims of these names as far as `folder` holds their evidence."""
    found = []
    for name in names:
        claim = work.load(name)
        record = evidence.resumed(folder, name, claim, sources.source(name))
        found.append(Effort(name, record))
    return found


def run(chosen: Sequence[Effort], folder: Path, *, jobs: int, until: float = float("inf"),
        report: Callable[[Effort, Task, work.Done], None] = lambda *_: None, pool: Executor | None = None) -> None:
    """Try the claims until each is decided or the clock (`time.monotonic`) passes `until`; what runs then is finished.

    Evidence is written after every task; `report` is called with it. A broken claim is left and the rest goes on.
    """
    with tempfile.TemporaryDirectory(prefix="mixwell-bench-") as bench, _pool(pool, jobs) as workers:
        running: dict[Future[work.Done], tuple[Effort, Task]] = {}
        while True:
            for effort, task in _next(chosen, jobs - len(running), until):
                effort.busy.append(task)
                future = workers.submit(work.do, task, bench)
                running[future] = effort, task
            if not running:
                return
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                effort, task = running.pop(future)
                done = _done(future, task)
                _keep(effort, task, done, folder)
                report(effort, task, done)


def _done(future: Future[work.Done], task: Task) -> work.Done:
    """What came of a task; `MixwellError` where its process was ended from outside."""
    try:
        return future.result()
    except BrokenExecutor as error:
        raise MixwellError(f"a process ended while {task.claim} was tried, perhaps for want of memory; what was tried "
                           "before is kept. Run the same command with fewer --jobs.") from error


def _keep(effort: Effort, task: Task, done: work.Done, folder: Path) -> None:
    effort.take(task, done)
    if not done.broken:
        evidence.write(folder, effort.name, effort.entry())


def _next(chosen: Sequence[Effort], free: int, until: float) -> list[tuple[Effort, Task]]:
    """As many tasks as there are free workers, from the claims whose look is nearest."""
    if free <= 0 or time.monotonic() >= until:
        return []
    found: list[tuple[Effort, Task]] = []
    for effort in sorted(chosen, key=lambda one: one.record.goal):
        found += [(effort, task) for task in effort.ready()]
        if len(found) >= free:
            break
    return found[:free]


@contextmanager
def _pool(given: Executor | None, jobs: int) -> Iterator[Executor]:
    if given is not None:
        yield given
        return
    usual = {name: os.environ.get(name) for name in work.THREADS}
    os.environ.update(dict.fromkeys(work.THREADS, "1"))
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, context, prepare)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        _restore(usual)


def _restore(usual: dict[str, str | None]) -> None:
    for name, value in usual.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def seconds_left(chosen: Sequence[Effort], jobs: int, *, looks: int = 0) -> float | None:
    """About how long the claims take to their next looks, or to `looks` seeds; None before anything is known."""
    known = {effort.name: cost for effort in chosen if (cost := _seconds_a_seed(effort)) is not None}
    if not known:
        return None
    usual = statistics.fmean(known.values())
    total = 0.0
    for effort in chosen:
        if not effort.done:
            cost = known.get(effort.name, usual)
            total += cost * effort.missing(looks)
    return total / jobs


def _seconds_a_seed(effort: Effort) -> float | None:
    """From its trials; before there are any, from the settings that were tried, of one side each."""
    record = effort.record
    if record.trials:
        return statistics.fmean(trial.seconds for trial in record.trials.values())
    tries = [one.seconds for each in record.tries.values() for one in each]
    return statistics.fmean(tries) * len(record.claim.sides) if tries else None
