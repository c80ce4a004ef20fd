"""Runs a recipe's stages: what is there already is taken, what is not is made, in folders that appear whole.

    <out>/stages/<id>-<key8>/stage.json     what the stage was, took and found; beside it what it made
    <out>/stages/.work-<id>-<key8>/         a training that is not finished; it goes on from here after a kill
    <out>/run.json, <out>/report.html       written last

A stage that is there but damaged (`run.verify`) is made again, and so is one that was made from other bits than its
inputs hold now.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from mixwell.core import disk, machine
from mixwell.core.config import to_dict
from mixwell.core.errors import MixwellError
from mixwell.core.files import whole_folder
from mixwell.parallel.launch import Crew
from mixwell.report import digests, records
from mixwell.report.records import RunRecord, StageRecord
from mixwell.run import recipe, sizing, verify
from mixwell.run.lock import locked
from mixwell.run.observers import Observer, Silent
from mixwell.run.paths import WORK, stage_folders, work_folder
from mixwell.run.planning import Planned, Prediction, check_out, default_folder, plan, plan_stages, redone
from mixwell.run.recipe import Recipe
from mixwell.run.stages import KINDS, Job, model_folder
from mixwell.run.stages.evaluate import EvaluateConfig, weigh
from mixwell.run.stages.train import run_partly

__all__ = ["Observer", "Planned", "Prediction", "Silent", "check_out", "default_folder", "finish", "locked", "plan",
           "plan_stages", "run", "sweep", "tidy", "train_partly", "write_record"]


def run(chosen: Recipe, out: str | Path | None = None, *, from_stage: str | None = None,
        observer: Observer | None = None, crew: Crew | None = None) -> Path:
    """Run the recipe in the folder `out` and return the path of its report.

    crew: processes of which this is the first; the others `follow` (`run.stages.train`).

    Killed at any moment and started again, it goes on and ends with the same bits. A stage that fails raises
    `MixwellError`; the stages before it stay.
    """
    from mixwell.report import page as report

    out, observer = Path(out or default_folder(chosen)), observer or Silent()
    started, clock = datetime.now(UTC), time.perf_counter()
    check_out(out)
    redone(recipe.stages(sizing.nominal(chosen)), from_stage)  # mistakes come to light before anything is measured
    with locked(out):
        sweep(out)
        asked, (chosen, size) = chosen, sizing.settle(chosen, out, observer.preparing)
        todo = plan(chosen, out, from_stage=from_stage, progress=observer.preparing)
        sizing.keep(asked, size, out)
        if size is not None:
            observer.fitted(chosen.about, size)
        tidy(out / "stages", {p.folder for p in todo if p.cached})
        observer.planned(todo)
        made = [finish(planned, chosen, todo, observer, crew) for planned in todo]
        seconds = time.perf_counter() - clock
        write_record(chosen, out, todo, made, started, seconds)
        return report.build(out, out / "report.html")


def finish(planned: Planned, chosen: Recipe, todo: Sequence[Planned], observer: Observer,
           crew: Crew | None = None) -> StageRecord:
    """Make and evaluate one stage of `todo`, as far as it is not there yet, and return its record.

    The folder must be `locked`, and the stages that it reads finished.
    """
    folders = {p.stage.id: p.folder for p in todo}
    sources = planned.stage.inputs.values()
    built_on = {source: _bits(folders[source]) for source in sources}
    planned = _with_inputs(planned, built_on)
    if not planned.cached:
        _make(planned, folders, built_on, observer, crew)
    elif planned.standing.news and planned.standing.record is not None:
        verify.remember(planned.standing.record, planned.standing.facts)
    record = _with_evaluation(planned, chosen, folders, observer)
    observer.finished(planned, record)
    return record


def train_partly(planned: Planned, todo: Sequence[Planned], share: float, weighed: EvaluateConfig,
                 observer: Observer) -> dict[str, Any]:
    """Carry a training of `todo` on to a share of its budget; its tokens and mean bits per byte there.

    The folder must be `locked`, and the stages that it reads finished; `finish` goes on from there. Anything but a
    training raises `MixwellError`.
    """
    stage = planned.stage
    if stage.kind != "train":
        raise MixwellError(f"stage {stage.id} is no training, which could stop early and go on.")
    folders = {p.stage.id: p.folder for p in todo}
    inputs = {role: folders[source] for role, source in stage.inputs.items()}
    job = Job(stage=stage, folder=planned.folder, work=planned.work, inputs=inputs,
              progress=lambda done, words: observer.advanced(planned, done, words))
    return run_partly(job, share, weighed)


def _bits(folder: Path) -> str:
    return records.read_stage(folder).bits


def _with_inputs(planned: Planned, built_on: Mapping[str, str]) -> Planned:
    """The stage, to be made again where its inputs now hold other bits than it was made from."""
    record = planned.standing.record
    if not planned.cached or record is None or record.built_on == built_on:
        return planned
    others = [source for source, bits in built_on.items() if record.built_on.get(source) != bits]
    damage = f"it was made from another {' and '.join(others) or 'input'} than the one that is there now"
    return replace(planned, cached=False, evaluated=not planned.evaluation_key, damage=damage)


def sweep(out: Path) -> None:
    """Remove what a run that was killed while it wrote a file left beside that file."""
    for folder in (out, *stage_folders(out)):
        disk.clear_scratch(folder)


def tidy(stages: Path, finished: set[Path]) -> None:
    """Remove what a killed run left half-written, and the work of stages that are finished."""
    done = {work_folder(folder) for folder in finished}
    for path in stages.glob(".*"):
        if path in done or not path.name.startswith(WORK):
            disk.remove(path)


def _make(planned: Planned, folders: Mapping[str, Path], built_on: Mapping[str, str], observer: Observer,
          crew: Crew | None) -> None:
    stage, work = planned.stage, planned.work
    if not planned.begun:  # nothing there, or a part that is to be done again
        disk.remove(work)
    observer.started(planned)
    machine.reset_peak()
    clock = time.perf_counter()
    inputs = {role: folders[source] for role, source in stage.inputs.items()}
    try:
        with whole_folder(planned.folder) as scratch:
            job = Job(stage=stage, folder=scratch, work=work, inputs=inputs, crew=crew,
                      progress=lambda share, words: observer.advanced(planned, share, words))
            result = KINDS[stage.kind].run(job)
            seconds = max(time.perf_counter() - clock, result.get("seconds", 0.0))  # the latter spans a kill
            made = replace(_record(planned, result, seconds), folder=scratch, files=digests.of_folder(scratch),
                           built_on=built_on)
            records.write_stage(made)
            verify.remember(made)
    except MixwellError as error:
        raise type(error)(f"stage {stage.id}: {error}") from error
    disk.remove(work)


def _record(planned: Planned, result: Mapping[str, Any], seconds: float) -> StageRecord:
    stage, tokens = planned.stage, _count(result.get("tokens"))
    actual = {"seconds": seconds, "tokens": tokens, "flops": result.get("flops"), "peak_bytes": machine.peak_bytes()}
    sources = tuple(stage.inputs.values())
    return StageRecord(id=stage.id, kind=stage.kind, method=stage.method, key=planned.key,
                       config=stage.plain_config(), seed=stage.seed, inputs=sources,
                       seconds=seconds, versions=machine.versions(), threads=torch.get_num_threads(),
                       predicted=asdict(planned.predicted), actual=actual, result=result)


def _count(tokens: Any) -> float | None:
    """Tokens of all domains together, where a stage gives them by domain."""
    return sum(tokens.values()) if isinstance(tokens, Mapping) else tokens


def _with_evaluation(planned: Planned, chosen: Recipe, folders: Mapping[str, Path], observer: Observer) -> StageRecord:
    """The stage's record, its evaluation added where it is due. Other evaluation settings do not redo the stage."""
    found = records.read_stage(planned.folder)
    record = replace(found, side=planned.stage.side)
    if planned.evaluated:
        return record
    observer.advanced(planned, 1.0, "evaluate")
    clock = time.perf_counter()
    weighed = weigh(model_folder(planned.folder), folders["tokens"] / "shards", chosen.evaluate)
    seconds = time.perf_counter() - clock
    predicted = asdict(planned.predicted_evaluation)
    evaluation = {**weighed, "key": planned.evaluation_key, "seconds": seconds, "predicted": predicted}
    record = replace(record, evaluation=evaluation)
    records.write_stage(record)
    return record


def _was_there(planned: Planned, record: StageRecord) -> bool:
    """Whether a stage was found and kept: made again it took another time."""
    found = planned.standing.record
    return planned.cached and found is not None and found.seconds == record.seconds


def write_record(chosen: Recipe, folder: Path, todo: Sequence[Planned], made: Sequence[StageRecord],
                 started: datetime, wall_seconds: float) -> None:
    """Write the record of a run of `todo` into `folder`; the stages may lie elsewhere."""
    work = sum(r.seconds + r.evaluation.get("seconds", 0.0) for r in made)
    cached = tuple(record.id for planned, record in zip(todo, made) if _was_there(planned, record))
    record = RunRecord(
        name=chosen.name, recipe=to_dict(chosen), machine=machine.describe(torch.get_num_threads()),
        versions=machine.versions(), started=started.isoformat(timespec="seconds"), seconds=work,
        wall_seconds=wall_seconds, stages=tuple(made), cached=cached, folder=folder)
    records.write_run(record)
