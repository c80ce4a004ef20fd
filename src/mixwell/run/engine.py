"""Runs a recipe's stages: what is there already is taken, what is not is made, in folders that appear whole.

    <out>/stages/<id>-<key8>/stage.json     what the stage was, took and found; beside it what it made
    <out>/stages/.work-<id>-<key8>/         a training that is not finished; it goes on from here after a kill
    <out>/run.json, <out>/report.html       written last
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import torch

from mixwell.core import machine
from mixwell.core.config import to_dict
from mixwell.core.errors import MixwellError, disk_errors, suggest
from mixwell.core.files import whole_folder
from mixwell.report import records
from mixwell.report.records import RunRecord, StageRecord
from mixwell.report.targets import check_folder
from mixwell.run import recipe, sizing
from mixwell.run.costs import Costs, Prediction, Told
from mixwell.run.keys import evaluation_key, stage_keys
from mixwell.run.recipe import Recipe
from mixwell.run.sizing import Size
from mixwell.run.stages import KINDS, Job, Stage, model_folder
from mixwell.run.stages.evaluate import weigh


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A stage with its key and what it is expected to take; `cached` where it is there already."""

    stage: Stage
    key: str
    folder: Path
    cached: bool
    begun: bool  # a part of its training is done
    evaluation_key: str  # "" where the stage is not evaluated
    evaluated: bool  # nothing is left to evaluate
    predicted: Prediction  # of what is left to do
    predicted_evaluation: Prediction

    @property
    def seconds(self) -> float:
        """Predicted seconds of what is left to do."""
        return (self.predicted.seconds or 0.0) + (self.predicted_evaluation.seconds or 0.0)


class Observer(Protocol):
    """Is told how a run goes on."""

    def fitted(self, about: str, size: Size) -> None:
        """What is learnt from the run, and how it was fitted to the machine; only where the recipe asked for it."""

    def preparing(self, words: str) -> None:
        """What is done to know what the run will do and take."""

    def planned(self, stages: Sequence[Planned]) -> None:
        """The stages of the run, before the first one starts."""

    def started(self, planned: Planned) -> None:
        """A stage begins; cached ones do not."""

    def advanced(self, planned: Planned, share: float, words: str) -> None:
        """Share of the stage that is done, 0 to 1."""

    def finished(self, planned: Planned, record: StageRecord) -> None:
        """A stage is there."""


class Silent:
    """An observer that says nothing."""

    def fitted(self, about: str, size: Size) -> None:
        pass

    def preparing(self, words: str) -> None:
        pass

    def planned(self, stages: Sequence[Planned]) -> None:
        pass

    def started(self, planned: Planned) -> None:
        pass

    def advanced(self, planned: Planned, share: float, words: str) -> None:
        pass

    def finished(self, planned: Planned, record: StageRecord) -> None:
        pass


def _silent(words: str) -> None:
    pass


def default_folder(chosen: Recipe) -> Path:
    """Where a recipe runs unless told otherwise: `runs/<name>`."""
    return Path("runs") / chosen.name


def check_out(out: Path, foreign: str = "compare.json") -> None:
    """Raise where a run cannot write into `out`: a file, a folder of other things, or one that holds `foreign`."""
    check_folder(out, own=("stages", "run.json", "compare.json", sizing.FILE), foreign=(foreign,))


def plan(chosen: Recipe, out: str | Path | None = None, *, from_stage: str | None = None,
         predict: bool = True, told: Told = _silent) -> list[Planned]:
    """What a run would do now. Nothing is written but the caches of measurements and of what files hold.

    from_stage: this stage and those after it are done again, though they are there. An unknown one raises. told: hears
    what is read and measured.
    """
    place = Path(out or default_folder(chosen))
    check_out(place)
    settled, _ = sizing.settle(chosen, place, told)
    stages = recipe.stages(settled)
    return plan_stages(settled, stages, place, from_stage=from_stage, predict=predict, told=told)


def plan_stages(chosen: Recipe, stages: Sequence[Stage], out: Path, *, from_stage: str | None = None,
                predict: bool = True, told: Told = _silent) -> list[Planned]:
    """`plan` for stages that were resolved already, with the evaluation and the threads of `chosen`."""
    redone = _redone(stages, from_stage)
    threads = machine.threads(chosen.threads)
    torch.set_num_threads(threads)
    told("look at the text")
    keys = stage_keys(stages, threads)
    left = {stage.id for stage in stages if stage.id in redone or not _is_there(stage, keys, out)}
    costs = Costs(stages, threads, told, weighed=chosen.evaluate, left=left) if predict else None
    return [_planned(stage, keys, out, stage.id in redone, chosen, costs) for stage in stages]


def _redone(stages: Sequence[Stage], from_stage: str | None) -> set[str]:
    ids = [stage.id for stage in stages]
    if from_stage is None:
        return set()
    if from_stage not in ids:
        raise MixwellError(f"--from: no stage {from_stage!r}.{suggest(from_stage, ids)} Stages: {', '.join(ids)}.")
    return set(ids[ids.index(from_stage):])


def _planned(stage: Stage, keys: Mapping[str, str], out: Path, again: bool, chosen: Recipe,
             costs: Costs | None) -> Planned:
    key, kind = keys[stage.id], KINDS[stage.kind]
    folder = _folder(stage, keys, out)
    cached = not again and _is_there(stage, keys, out)
    weigh_key = evaluation_key(key, keys["tokens"], chosen.evaluate) if kind.evaluated else ""
    evaluated = not weigh_key or (cached and records.read_stage(folder).evaluation.get("key") == weigh_key)
    begun = not cached and not again and _work(folder).is_dir()
    nothing = Prediction()
    return Planned(stage=stage, key=key, folder=folder, cached=cached, begun=begun, evaluation_key=weigh_key,
                   evaluated=evaluated,
                   predicted=nothing if cached or not costs else costs.predict(stage),
                   predicted_evaluation=nothing if evaluated or not costs
                   else costs.evaluation(stage.id, chosen.evaluate))


def _folder(stage: Stage, keys: Mapping[str, str], out: Path) -> Path:
    key = keys[stage.id]
    return out / "stages" / f"{stage.id}-{key[:8]}"


def _is_there(stage: Stage, keys: Mapping[str, str], out: Path) -> bool:
    return (_folder(stage, keys, out) / "stage.json").is_file()


def _work(folder: Path) -> Path:
    return folder.with_name(f".work-{folder.name}")


def run(chosen: Recipe, out: str | Path | None = None, *, from_stage: str | None = None,
        observer: Observer | None = None) -> Path:
    """Run the recipe in the folder `out` and return the path of its report.

    Killed at any moment and started again, it goes on and ends with the same bits. A stage that fails raises
    `MixwellError`; the stages before it stay.
    """
    out, observer = Path(out or default_folder(chosen)), observer or Silent()
    started, clock = datetime.now(UTC), time.perf_counter()
    check_out(out)
    _redone(recipe.stages(sizing.nominal(chosen)), from_stage)  # mistakes are told before anything is measured
    with locked(out):
        asked, (chosen, size) = chosen, sizing.settle(chosen, out, observer.preparing)
        todo = plan(chosen, out, from_stage=from_stage, told=observer.preparing)
        sizing.keep(asked, size, out)
        if size is not None:
            observer.fitted(chosen.about, size)
        tidy(out / "stages", {p.folder for p in todo if p.cached})
        observer.planned(todo)
        made = [finish(planned, chosen, todo, observer) for planned in todo]
        from mixwell.report import page as report

        write_record(chosen, out, todo, made, started, time.perf_counter() - clock)
        return report.build(out, out / "report.html")


def finish(planned: Planned, chosen: Recipe, todo: Sequence[Planned], observer: Observer) -> StageRecord:
    """Make and evaluate one stage of `todo`, as far as it is not there yet, and return its record.

    The folder must be `locked`.
    """
    if not planned.cached:
        _make(planned, {p.stage.id: p.folder for p in todo}, observer)
    record = _with_evaluation(planned, chosen, todo, observer)
    observer.finished(planned, record)
    return record


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the folder for this process. The system lets go of the lock when the process ends, however it ends.

    A folder that is made for the lock and gets nothing else, since a mistake is told first, is taken away again.
    """
    created = [path for path in (out, *out.parents) if not path.exists()]
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        with open(out / ".lock", "a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise MixwellError(f"{out} is in use by process {file.read().strip() or 'unknown'}; wait for it to end "
                                   "or choose another folder with --out.") from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            try:
                yield
            finally:
                _take_away(created)


def _take_away(created: Sequence[Path]) -> None:
    """Remove folders, innermost first, the first of which holds a lock and nothing else."""
    if created and [path.name for path in created[0].iterdir()] == [".lock"]:
        (created[0] / ".lock").unlink()
        with suppress(OSError):  # a parent may have got something else meanwhile
            for folder in created:
                folder.rmdir()


def tidy(stages: Path, finished: set[Path]) -> None:
    """Remove what a killed run left half-written, and the work of stages that are finished."""
    done = {_work(folder) for folder in finished}
    for path in stages.glob(".*"):
        if path in done or not path.name.startswith(".work-"):
            shutil.rmtree(path, ignore_errors=True)


def _make(planned: Planned, folders: Mapping[str, Path], observer: Observer) -> None:
    stage, work = planned.stage, _work(planned.folder)
    if not planned.begun:  # nothing there, or a part that is to be done again
        shutil.rmtree(work, ignore_errors=True)
    observer.started(planned)
    machine.reset_peak()
    clock = time.perf_counter()
    try:
        with whole_folder(planned.folder) as scratch:
            job = Job(stage=stage, folder=scratch, work=work,
                      inputs={role: folders[source] for role, source in stage.inputs.items()},
                      progress=lambda share, words: observer.advanced(planned, share, words))
            result = KINDS[stage.kind].run(job)
            seconds = max(time.perf_counter() - clock, result.get("seconds", 0.0))  # the latter spans a kill
            records.write_stage(replace(_record(planned, result, seconds), folder=scratch))
    except MixwellError as error:
        raise type(error)(f"stage {stage.id}: {error}") from error
    shutil.rmtree(work, ignore_errors=True)


def _record(planned: Planned, result: Mapping[str, Any], seconds: float) -> StageRecord:
    stage = planned.stage
    actual = {"seconds": seconds, "tokens": _count(result.get("tokens")), "flops": result.get("flops"),
              "peak_bytes": machine.peak_bytes()}
    return StageRecord(id=stage.id, kind=stage.kind, method=stage.method, key=planned.key,
                       config=stage.plain_config(), seed=stage.seed, inputs=tuple(stage.inputs.values()),
                       seconds=seconds, versions=machine.versions(), threads=torch.get_num_threads(),
                       predicted=asdict(planned.predicted), actual=actual, result=result)


def _count(tokens: Any) -> float | None:
    """Tokens of all domains together, where a stage gives them by domain."""
    return sum(tokens.values()) if isinstance(tokens, Mapping) else tokens


def _with_evaluation(planned: Planned, chosen: Recipe, todo: Sequence[Planned], observer: Observer) -> StageRecord:
    """The stage's record, its evaluation added where it is due. Other evaluation settings do not redo the stage."""
    record = replace(records.read_stage(planned.folder), side=planned.stage.side)
    if planned.evaluated:
        return record
    observer.advanced(planned, 1.0, "evaluate")
    shards = next(p.folder for p in todo if p.stage.id == "tokens") / "shards"
    clock = time.perf_counter()
    found = weigh(model_folder(planned.folder), shards, chosen.evaluate)
    evaluation = {**found, "key": planned.evaluation_key, "seconds": time.perf_counter() - clock,
                  "predicted": asdict(planned.predicted_evaluation)}
    record = replace(record, evaluation=evaluation)
    records.write_stage(record)
    return record


def write_record(chosen: Recipe, folder: Path, todo: Sequence[Planned], made: Sequence[StageRecord],
                 started: datetime, wall_seconds: float) -> None:
    """Write the record of a run of `todo` into `folder`; the stages may lie elsewhere."""
    work = sum(r.seconds + r.evaluation.get("seconds", 0.0) for r in made)
    records.write_run(RunRecord(
        name=chosen.name, recipe=to_dict(chosen), machine=machine.describe(torch.get_num_threads()),
        versions=machine.versions(), started=started.isoformat(timespec="seconds"), seconds=work,
        wall_seconds=wall_seconds, stages=tuple(made),
        cached=tuple(p.stage.id for p in todo if p.cached), folder=folder))
