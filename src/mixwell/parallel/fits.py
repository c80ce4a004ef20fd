"""A mixture model fitted to more rows than one machine holds, by workers of a Ray cluster.

Each worker reads shards of its own, files of Parquet; what travels between them at every step are the sums that the M
step needs (`fit_distributed`), over gloo. All end with the same model, that of one process up to rounding.
"""

from __future__ import annotations

import copy
import itertools
import socket
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from mixwell.core.errors import MixwellError
from mixwell.parallel.pools import RETRIES, Tell, connected, first_words, own_error

LONGEST_S = 300.0  # that workers wait for each other


class Worker:
    """An actor with shards of its own."""

    def __init__(self, shards: Sequence[str], rank: int, size: int, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.shards, self.rank, self.size = list(shards), rank, size

    def meeting(self) -> str:
        """An address of this worker where the others can come."""
        host = socket.gethostbyname(socket.gethostname())
        with socket.socket() as free:
            free.bind((host, 0))
            port = free.getsockname()[1]
        return f"tcp://{host}:{port}"

    def fit(self, estimator: Any, place: str) -> Any:
        """A copy of the estimator fitted to the rows of all workers (see `pools.alone`)."""
        import torch.distributed as dist

        dist.init_process_group("gloo", init_method=place, rank=self.rank, world_size=self.size,
                                timeout=timedelta(seconds=LONGEST_S))
        try:
            return copy.deepcopy(estimator).fit_distributed(self.shards)
        finally:
            dist.destroy_process_group()


def fit_on_ray(estimator: Any, shards: str | Path | Sequence[str | Path], *, address: str = "auto", workers: int = 2,
               threads: int = 1, tell: Tell = print) -> Any:
    """A fitted copy of a mixture of `density`, whose rows are spread over workers of a Ray cluster.

    shards: a folder of Parquet files or a list of them, one a worker at least, which every machine must see under the
    same paths. address: as `--ray` takes it. threads: of each worker. A start that is not given is computed from the
    first worker's rows. Where a worker is lost the fit begins anew, a few times, and `tell` hears of it. Raises
    `MixwellError` for too few shards and where no cluster answers, and what the fit raises.
    """
    parts = spread_shards(shards, workers)
    ray = connected(address)
    try:
        return _fitted(ray, estimator, parts, threads, tell)
    finally:
        ray.shutdown()


def spread_shards(shards: str | Path | Sequence[str | Path], workers: int) -> list[list[str]]:
    """The shards of each worker, in order."""
    paths = _paths(shards)
    if not 1 <= workers <= len(paths):
        raise MixwellError(f"{workers} workers for {len(paths)} shards; expected from 1 to as many workers as shards.")
    ends = [round(rank * len(paths) / workers) for rank in range(workers + 1)]
    return [paths[start:end] for start, end in itertools.pairwise(ends)]


def _paths(shards: str | Path | Sequence[str | Path]) -> list[str]:
    if not isinstance(shards, (str, Path)):
        return [str(Path(path).resolve()) for path in shards]
    folder = Path(shards)
    found = sorted(folder.glob("*.parquet"))
    return [str(path.resolve()) for path in found or [folder]]


def _fitted(ray: Any, estimator: Any, parts: Sequence[Sequence[str]], threads: int, tell: Tell) -> Any:
    for left in reversed(range(RETRIES + 1)):
        crew = _crew(ray, parts, threads)
        try:
            return _together(ray, crew, estimator)
        except ray.exceptions.RayActorError as lost:
            if not left:
                raise MixwellError(f"workers of the fit were lost {RETRIES + 1} times ({first_words(lost)}); give it "
                                   "fewer workers, or machines with more memory.") from lost
            tell(f"a worker of the fit was lost ({first_words(lost)}); the fit begins anew")
        finally:
            _dismiss(ray, crew)
    raise AssertionError("the last try returns or raises")


def _crew(ray: Any, parts: Sequence[Sequence[str]], threads: int) -> list[Any]:
    described = ray.remote(num_cpus=threads, max_restarts=0)
    actor, size = described(Worker), len(parts)
    return [actor.remote(own, rank, size, threads) for rank, own in enumerate(parts)]


def _together(ray: Any, crew: Sequence[Any], estimator: Any) -> Any:
    """What the first worker ends with. A worker that was lost counts before what the others say of that."""
    place = ray.get(crew[0].meeting.remote())
    sent = ray.put(estimator)
    waiting = [worker.fit.remote(sent, place) for worker in crew]
    errors: list[BaseException] = []
    ends = [_end(ray, one, errors) for one in waiting]
    lost = [error for error in errors if isinstance(error, ray.exceptions.RayActorError)]
    own = [error for error in errors if not _of_others(error)]
    for error in [*lost, *own, *errors]:
        raise error if error in lost else own_error(error)
    return copy.deepcopy(ends[0])


def _end(ray: Any, reference: Any, errors: list[BaseException]) -> Any:
    try:
        return ray.get(reference)
    except (ray.exceptions.RayActorError, ray.exceptions.RayTaskError) as error:
        errors.append(error)
    return None


def _of_others(error: BaseException) -> bool:
    """Whether a worker only says that another could not go on."""
    own = own_error(error)
    lost_touch = isinstance(own, RuntimeError)
    return lost_touch or "could not use its rows" in str(own)


def _dismiss(ray: Any, crew: Sequence[Any]) -> None:
    for worker in crew:
        with suppress(ValueError, RuntimeError):  # one that is gone already
            ray.kill(worker)
