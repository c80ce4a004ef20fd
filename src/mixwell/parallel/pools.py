"""Many tasks at once, on this machine's processes or on a Ray cluster, behind the interface of `concurrent.futures`.

A task is a function of a module and its arguments; it computes with the same number of threads wherever it runs, so
that it gives the same numbers. A task whose worker or machine is lost is begun again a few times, and that is told; an
error that the task itself raises is its result and comes back at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import contextmanager
from typing import Any

from mixwell.core.errors import MixwellError, on_one_line

RETRIES = 2  # after a lost worker
HERE = "local"  # the address that starts Ray on this machine
Tell = Callable[[str], None]


def alone(threads: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """The task, computed with so many threads."""
    import torch

    torch.set_num_threads(threads)
    return function(*arguments)


class RayPool(Executor):
    """Tasks on a Ray cluster that is there; see `ray_pool`."""

    def __init__(self, ray: Any, threads: int, tell: Tell) -> None:
        self.ray, self.threads, self.tell = ray, threads, tell
        self._task = ray.remote(num_cpus=threads, max_retries=0)(alone)

    @property
    def size(self) -> int:
        """Tasks that the cluster's processors hold at once, one at least."""
        found = self.ray.cluster_resources().get("CPU", 1.0)
        return max(1, int(found) // self.threads)

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        """Begin a task; arguments by name are not taken."""
        if named:
            raise TypeError(f"submit: arguments by name came ({', '.join(named)}); expected them by place")
        done: Future[Any] = Future()
        done.set_running_or_notify_cancel()
        self._begin(done, function, arguments, RETRIES)
        return done

    def _begin(self, done: Future[Any], function: Callable[..., Any], arguments: tuple[Any, ...], left: int) -> None:
        reference = self._task.remote(self.threads, function, arguments)

        def end(came: Future[Any]) -> None:
            error = came.exception()
            if error is None:
                done.set_result(came.result())
            elif isinstance(error, self.ray.exceptions.RayTaskError):
                done.set_exception(error.as_instanceof_cause())
            elif left:
                self.tell(f"a worker of the cluster was lost ({_words(error)}); its task is begun again")
                self._begin(done, function, arguments, left - 1)
            else:
                done.set_exception(BrokenExecutor(f"lost {RETRIES + 1} times: {_words(error)}"))

        reference.future().add_done_callback(end)


def _words(error: BaseException) -> str:
    """The first line of an error, with its kind."""
    lines = str(error).splitlines()
    first = lines[0] if lines else ""
    return on_one_line(f"{type(error).__name__}: {first}")


@contextmanager
def ray_pool(address: str, threads: int, tell: Tell) -> Iterator[RayPool]:
    """Tasks on the cluster at `address` (`auto`, `ray://host:10001`), or on one that starts here with `local`.

    Raises `MixwellError` where Ray is not installed or nothing answers.
    """
    try:
        import ray
    except ImportError as error:
        raise MixwellError("--ray needs Ray: pip install 'mixwell[ray]'. Without --ray the same runs on this machine's "
                           "processes.") from error
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's own warning about accelerators
    place = None if address == HERE else address
    try:
        ray.init(address=place, include_dashboard=False if place is None else None, log_to_driver=False,
                 logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise MixwellError(f"--ray {address}: {_words(error)}; expected local, auto, or the address of a cluster, such "
                           "as ray://host:10001.") from error
    try:
        yield RayPool(ray, threads, tell)
    finally:
        ray.shutdown()
