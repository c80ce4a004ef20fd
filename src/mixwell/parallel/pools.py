"""Many tasks at once, on this machine's processes or on a Ray cluster, behind the interface of `concurrent.futures`.

A task is a function of a module and its arguments; it computes with the same number of threads and in the same folder
wherever it runs, so that it gives the same numbers. A task whose worker or machine is lost is begun again a few times,
and that is told; an error that the task itself raises is its result and comes back at once.
"""

from __future__ import annotations

import copy
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mixwell.core.errors import MixwellError, on_one_line

RETRIES = 2  # after a lost worker
ANSWER_S = 10.0  # that a cluster's address may take to answer
HERE = "local"  # the address that starts Ray on this machine
CLIENT = "ray://"
Tell = Callable[[str], None]
Result = TypeVar("Result")


def alone(threads: int, place: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """What the task gives, computed with so many threads, in that folder where there is one.

    The arguments are copied: arrays arrive in memory that several tasks read and none may write.
    """
    import torch

    torch.set_num_threads(threads)
    if Path(place).is_dir():
        os.chdir(place)
    own = copy.deepcopy(arguments)
    return function(*own)


@dataclass(frozen=True)
class Sent:
    """A value that lies on the cluster, where many tasks read it."""

    reference: Any


def results(pool: Executor | None, function: Callable[..., Result], trials: Iterable[Any], *shared: Any,
            ) -> Iterator[Result]:
    """`function(trial, *shared)` of each trial, in their order: one after the other where there is no pool."""
    if pool is None:
        for trial in trials:
            yield function(trial, *shared)
        return
    sent = [pool.put(one) if isinstance(pool, RayPool) else one for one in shared]
    waiting = [pool.submit(function, trial, *sent) for trial in trials]
    for one in waiting:
        yield one.result()


class RayPool(Executor):
    """Tasks on a Ray cluster that is there; see `ray_pool`."""

    def __init__(self, ray: Any, threads: int, tell: Tell) -> None:
        self.ray, self.threads, self.tell = ray, threads, tell
        self._task = ray.remote(num_cpus=threads, max_retries=0)(alone)
        self._place = str(Path.cwd())

    @property
    def size(self) -> int:
        """Tasks that the cluster's processors hold at once, one at least."""
        found = self.ray.cluster_resources().get("CPU", 1.0)
        return max(1, int(found) // self.threads)

    def put(self, value: Any) -> Sent:
        """What stands for a value that many tasks read, and that is sent once."""
        reference = self.ray.put(value)
        return Sent(reference)

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        """Begin a task; arguments by name are not taken."""
        if named:
            raise TypeError(f"submit: arguments by name came ({', '.join(named)}); expected them by place")
        done: Future[Any] = Future()
        done.set_running_or_notify_cancel()
        self._begin(done, function, arguments, RETRIES)
        return done

    def _begin(self, done: Future[Any], function: Callable[..., Any], arguments: tuple[Any, ...], left: int) -> None:
        given = [one.reference if isinstance(one, Sent) else one for one in arguments]
        reference = self._task.remote(self.threads, self._place, function, *given)

        def end(came: Future[Any]) -> None:
            error = came.exception()
            if error is None:
                done.set_result(copy.deepcopy(came.result()))
            elif isinstance(error, self.ray.exceptions.RayTaskError):
                done.set_exception(own_error(error))
            elif left:
                self.tell(f"{called(function, arguments)}: a worker of the cluster was lost ({first_words(error)}); "
                          "it is begun again")
                self._begin(done, function, arguments, left - 1)
            else:
                words = f"{called(function, arguments)}: lost {RETRIES + 1} times: {first_words(error)}"
                done.set_exception(BrokenExecutor(words))

        reference.future().add_done_callback(end)


def own_error(error: Any) -> BaseException:
    """What a task raised, without the trace that Ray writes into it."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, BaseException) else error


def called(function: Callable[..., Any], arguments: tuple[Any, ...]) -> str:
    """A task in words: its first argument, its `words` or `name`, or the function's name."""
    first = arguments[0] if arguments else None
    own = first if isinstance(first, str) else getattr(first, "words", "") or getattr(first, "name", "")
    return own or getattr(function, "__name__", "a task")


def first_words(error: BaseException) -> str:
    """The first line of an error, with its kind."""
    lines = str(error).splitlines()
    first = lines[0] if lines else ""
    return on_one_line(f"{type(error).__name__}: {first}")


@contextmanager
def ray_pool(address: str, threads: int, tell: Tell) -> Iterator[RayPool]:
    """Tasks on the cluster at `address` (`auto`, `ray://host:10001`), or on one that starts here with `local`.

    Raises `MixwellError` where Ray is not installed or nothing answers within `ANSWER_S` seconds.
    """
    ray = connected(address)
    try:
        yield RayPool(ray, threads, tell)
    finally:
        ray.shutdown()


def connected(address: str) -> Any:
    """Ray itself, connected to the cluster at `address`; raises as `ray_pool`."""
    try:
        import ray
    except ImportError as error:
        raise MixwellError("--ray needs Ray: pip install 'mixwell[ray]'. Without --ray the same runs on this machine's "
                           "processes.") from error
    _ask(address)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's own warning about accelerators
    place = None if address == HERE else address
    try:
        ray.init(address=place, include_dashboard=False if place is None else None, log_to_driver=False,
                 logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise MixwellError(f"--ray {address}: {first_words(error)}; expected local, auto, or the address of a cluster, "
                           "such as ray://host:10001.") from error
    return ray


def _ask(address: str) -> None:
    """Raise where nobody answers at an address with a port: Ray itself would wait for minutes."""
    host, colon, port = address.removeprefix(CLIENT).rpartition(":")
    if not (colon and port.isdigit()):
        return
    try:
        socket.create_connection((host, int(port)), ANSWER_S).close()
    except OSError as error:
        raise MixwellError(f"--ray {address}: nothing answers at port {port} of {host} within {ANSWER_S:g} s "
                           f"({first_words(error)}); start the cluster (ray start --head), or leave --ray out for this "
                           "machine's processes.") from error
