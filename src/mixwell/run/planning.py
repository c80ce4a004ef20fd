"""What a run would do now: its stages with their keys, what is there of each, and what the rest will take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from mixwell.core import machine
from mixwell.core.errors import MixwellError, suggest
from mixwell.report.targets import check_folder
from mixwell.run import recipe, sizing
from mixwell.run.costs import Costs, Prediction, Progress
from mixwell.run.keys import evaluation_key, stage_keys
from mixwell.run.paths import work_folder
from mixwell.run.recipe import Recipe
from mixwell.run.stages import KINDS, Stage
from mixwell.run.verify import Standing, standing


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
    standing: Standing = field(default_factory=Standing)  # what was found of it
    damage: str = ""  # why a stage that is there is made again; "" where it is not, or where that was asked for

    @property
    def seconds(self) -> float:
        """Predicted seconds of what is left to do."""
        own = self.predicted.seconds or 0.0
        return own + (self.predicted_evaluation.seconds or 0.0)

    @property
    def work(self) -> Path:
        """Where a training keeps what it needs to go on after a kill."""
        return work_folder(self.folder)


def silent(words: str) -> None:
    """A `Progress` that nobody hears."""


def default_folder(chosen: Recipe) -> Path:
    """Where a recipe runs unless told otherwise: `runs/<name>`."""
    return Path("runs") / chosen.name


def check_out(out: Path, foreign: str = "compare.json") -> None:
    """Raise where a run cannot write into `out`: a file, a folder of other things, or one that holds `foreign`."""
    check_folder(out, own=("stages", "run.json", "compare.json", sizing.FILE), foreign=(foreign,))


def plan(chosen: Recipe, out: str | Path | None = None, *, from_stage: str | None = None,
         predict: bool = True, progress: Progress = silent) -> list[Planned]:
    """What a run would do now. Nothing is written but the caches of measurements and of what files hold.

    from_stage: this stage and those after it are done again, though they are there. An unknown one raises. progress:
    hears what is read and measured.
    """
    named = out or default_folder(chosen)
    place = Path(named)
    check_out(place)
    settled, _ = sizing.settle(chosen, place, progress)
    stages = recipe.stages(settled)
    return plan_stages(settled, stages, place, from_stage=from_stage, predict=predict, progress=progress)


def plan_stages(chosen: Recipe, stages: Sequence[Stage], out: Path, *, from_stage: str | None = None,
                predict: bool = True, progress: Progress = silent) -> list[Planned]:
    """`plan` for stages that were resolved already, with the evaluation and the threads of `chosen`."""
    again = redone(stages, from_stage)
    threads = machine.threads(chosen.threads)
    torch.set_num_threads(threads)
    progress("look at the text")
    keys = stage_keys(stages, threads)
    look = _Look(chosen, out, keys)
    found = {stage.id: Standing() if stage.id in again else look.standing(stage) for stage in stages}
    left = {id for id, one in found.items() if one.record is None}
    costs = Costs(stages, threads, progress, weighed=chosen.evaluate, left=left) if predict else None
    return [look.planned(stage, found[stage.id], stage.id in again, costs) for stage in stages]


def redone(stages: Sequence[Stage], from_stage: str | None) -> set[str]:
    """Ids of the stages from `from_stage` on; an unknown one raises `MixwellError`."""
    ids = [stage.id for stage in stages]
    if from_stage is None:
        return set()
    if from_stage not in ids:
        raise MixwellError(f"--from: no stage {from_stage!r}.{suggest(from_stage, ids)} Stages: {', '.join(ids)}.")
    first = ids.index(from_stage)
    return set(ids[first:])


@dataclass(frozen=True)
class _Look:
    """Looks at what is there of a stage, and predicts the rest."""

    chosen: Recipe
    out: Path
    keys: dict[str, str]

    def folder(self, stage: Stage) -> Path:
        key = self.keys[stage.id]
        return self.out / "stages" / f"{stage.id}-{key[:8]}"

    def standing(self, stage: Stage) -> Standing:
        return standing(self.folder(stage), self.keys[stage.id])

    def planned(self, stage: Stage, found: Standing, again: bool, costs: Costs | None) -> Planned:
        folder = self.folder(stage)
        cached = found.record is not None
        evaluation = self._evaluation_key(stage)
        evaluated = not evaluation or _evaluated(found, evaluation)
        begun = not cached and not again and work_folder(folder).is_dir()
        own = Prediction() if cached or costs is None else costs.predict(stage)
        weighing = Prediction() if evaluated or costs is None else costs.evaluation(stage.id, self.chosen.evaluate)
        return Planned(stage=stage, key=self.keys[stage.id], folder=folder, cached=cached, begun=begun,
                       evaluation_key=evaluation, evaluated=evaluated, predicted=own, predicted_evaluation=weighing,
                       standing=found, damage=found.damage)

    def _evaluation_key(self, stage: Stage) -> str:
        if not KINDS[stage.kind].evaluated:
            return ""
        return evaluation_key(self.keys[stage.id], self.keys["tokens"], self.chosen.evaluate)


def _evaluated(found: Standing, key: str) -> bool:
    if found.record is None:
        return False
    return found.record.evaluation.get("key") == key
