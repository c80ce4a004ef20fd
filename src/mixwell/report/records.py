"""The records of a run: the engine writes them, reports read them, nobody else knows their shape.

    <run>/run.json                                `RunRecord`: recipe, machine, versions, times, its stages in order
    <run>/recipe.yaml                             the recipe, ready for `mixwell run` and `mixwell compare`
    <run>/stages/<id>-<key8>/stage.json           `StageRecord`
    <run>/stages/<id>-<key8>/metrics.jsonl        one line a logged training step

Reading is strict: a file that no writer of this version makes is damaged, and is named with what is wrong in it. Both
records end in a digest of themselves (`formats.sealed`), and a stage's record holds those of all its files.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import yaml

from mixwell.core import units
from mixwell.core.config import from_dict, to_dict
from mixwell.core.errors import MixwellError
from mixwell.core.files import write_text
from mixwell.formats import sealed
from mixwell.lm.training.metrics import read_lines
from mixwell.report import digests
from mixwell.report.digests import FileDigest

RUN, STAGE, RECIPE = "run.json", "stage.json", "recipe.yaml"
# kinds of stages that leave a model behind
MODEL_KINDS = ("build", "load", "train", "adapt", "federate", "convert", "compress", "merge")
AGAIN = "run the recipe again"
BREAKS = re.compile("[\x85\u2028\u2029\ufeff]")  # what YAML's writer leaves bare and its reader takes for space
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """One finished stage: what it was, what it took, what it found."""

    id: str
    kind: str  # data, tokenizer, tokens, build, load, train, convert, compress, merge, evaluate, sample
    method: str  # `train`, `convert.upcycle`
    key: str  # digest of all that decides the result
    config: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    inputs: tuple[str, ...] = ()  # ids of the stages that it reads
    seconds: float = 0.0  # wall time, over all sittings
    versions: Mapping[str, str] = field(default_factory=dict)
    threads: int = 0
    predicted: Mapping[str, float | None] = field(default_factory=dict)  # tokens, flops, peak_bytes, seconds
    actual: Mapping[str, float | None] = field(default_factory=dict)  # the same, measured
    result: Mapping[str, Any] = field(default_factory=dict)  # what its kind found
    evaluation: Mapping[str, Any] = field(default_factory=dict)  # of its model on held-out text; empty without one
    files: Mapping[str, FileDigest] = field(default_factory=dict)  # what it made, by its path below the folder
    built_on: Mapping[str, str] = field(default_factory=dict)  # input -> `bits` of what was read
    side: str = ""  # side of the comparison that the recipe puts it on; the run's record holds it
    folder: Path | None = None  # where it lies; not written

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of a training stage, oldest first; elsewhere empty. A damaged file raises `MixwellError`."""
        name = self.result.get("metrics")
        if not name or self.folder is None:
            return []
        path = self.folder / str(name)
        if path.name not in self.files:
            raise MixwellError(f"{path} is no file that the stage made; {_remove(self.folder)}.")
        if problem := digests.wrong(path, self.files[path.name]):
            raise MixwellError(f"{path} {problem}; {_remove(self.folder)}.")
        return read_lines(path)

    @property
    def bits(self) -> str:
        """Digest of what later stages read of it: of all that it made, but for what the clock decides."""
        timed = self.result.get("metrics")
        return digests.together({name: one for name, one in self.files.items() if name != timed})

    @property
    def trains(self) -> bool:
        """Whether this stage has a loss curve."""
        return self.kind in ("train", "adapt")

    @property
    def makes_model(self) -> bool:
        """Whether it leaves a model behind."""
        return self.kind in MODEL_KINDS

    @property
    def model_folder(self) -> Path | None:
        """The Hugging Face folder of its model; a loaded model stays where it was. None without one."""
        if not self.makes_model or self.folder is None:
            return None
        return Path(self.result.get("path") or self.folder / "model")

    @property
    def held_out(self) -> Mapping[str, Any]:
        """What was measured on held-out text: of its own model, or by a stage that does nothing else."""
        return self.result if self.kind == "evaluate" else self.evaluation

    @property
    def receipt(self) -> Mapping[str, Any]:
        """What a conversion changed; empty where none was taken."""
        return self.result.get("receipt") or {}

    def to_dict(self) -> dict[str, Any]:
        """The content of stage.json."""
        data = to_dict(self)
        del data["folder"], data["side"]
        return data


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A finished run: its circumstances and its stages, in the order of the recipe."""

    name: str
    recipe: Mapping[str, Any] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    started: str = ""  # ISO 8601, UTC
    seconds: float = 0.0  # in all stages, whenever they were made
    wall_seconds: float = 0.0  # of the last call
    stages: tuple[StageRecord, ...] = ()
    cached: tuple[str, ...] = ()  # ids of the stages that the last call found
    folder: Path | None = None  # where it lies; not written

    def __getitem__(self, stage: str) -> StageRecord:
        return next(s for s in self.stages if s.id == stage)

    @property
    def seeds(self) -> dict[str, int]:
        """Stage -> seed."""
        return {s.id: s.seed for s in self.stages}

    def inputs(self, stage: StageRecord) -> list[StageRecord]:
        """The stages that `stage` reads, in the order of the recipe."""
        return [s for s in self.stages if s.id in stage.inputs]

    def ancestors(self, stage: StageRecord) -> list[StageRecord]:
        """All that `stage` builds on, oldest first, `stage` itself last."""
        seen: set[str] = set()
        waiting = [stage]
        while waiting:
            one = waiting.pop()
            if one.id not in seen:
                seen.add(one.id)
                waiting += self.inputs(one)
        return [s for s in self.stages if s.id in seen]

    def parent(self, stage: StageRecord) -> StageRecord | None:
        """The input whose line `stage` carries on: the model among its inputs, else the last of them."""
        known = self.inputs(stage)
        if not known:
            return None
        models = [s for s in known if s.makes_model]
        return (models or known)[-1]

    def to_dict(self) -> dict[str, Any]:
        """The content of run.json, which names the stages' folders as seen from its own."""
        data = to_dict(replace(self, stages=()))
        del data["folder"], data["cached"]
        return {**data, "stages": [self._entry(stage) for stage in self.stages]}

    def _entry(self, stage: StageRecord) -> dict[str, Any]:
        assert stage.folder is not None and self.folder is not None
        place = os.path.relpath(stage.folder, self.folder)
        cached = stage.id in self.cached
        entry = StageEntry(id=stage.id, key=stage.key, folder=place, cached=cached, side=stage.side)
        return to_dict(entry)


def write_stage(stage: StageRecord) -> Path:
    """Write stage.json into the stage's folder; returns the file."""
    assert stage.folder is not None
    return sealed.write(stage.folder / STAGE, stage.to_dict())


def read_stage(folder: Path) -> StageRecord:
    """Read a stage's folder. A stage.json that is missing, damaged or of another version raises `MixwellError`."""
    path, remedy = folder / STAGE, _remove(folder)
    content = sealed.read(path, remedy)
    record = _strict(StageRecord, content, path, remedy)
    return replace(record, folder=folder)


def _remove(folder: Path) -> str:
    return f"remove {folder}, then {AGAIN}"


def write_run(run: RunRecord) -> Path:
    """Write run.json and recipe.yaml into the run's folder; returns the former. The stages may lie elsewhere."""
    assert run.folder is not None
    write_text(run.folder / RECIPE, recipe_text(run.recipe))
    return sealed.write(run.folder / RUN, run.to_dict())


def read_run(folder: str | Path) -> RunRecord:
    """Read a run and its stages. A file that is missing, damaged or of another version raises `MixwellError`."""
    folder = Path(folder)
    record, entries = _read_run(folder)
    stages = tuple(_listed(folder, entry) for entry in entries)
    cached = tuple(entry.id for entry in entries if entry.cached)
    return replace(record, stages=stages, cached=cached, folder=folder)


@dataclass(frozen=True, kw_only=True)
class StageEntry:
    """A stage as run.json lists it."""

    id: str
    key: str
    folder: str  # seen from that of run.json
    cached: bool
    side: str


def listed_stages(folder: Path) -> list[StageEntry]:
    """What run.json says of its stages, which are not looked at. A damaged one raises `MixwellError`."""
    return _read_run(folder)[1]


def _read_run(folder: Path) -> tuple[RunRecord, list[StageEntry]]:
    """The record of a run, as yet without its stages, and what it lists of them."""
    path = folder / RUN
    content = sealed.read(path, AGAIN)
    listed = content.pop("stages", None)
    if not isinstance(listed, list):
        raise MixwellError(f"{path}: stages: expected a list, got {type(listed).__name__}; {AGAIN}.")
    record = _strict(RunRecord, content, path)
    return record, [_strict(StageEntry, entry, path) for entry in listed]


def _listed(run: Path, entry: StageEntry) -> StageRecord:
    folder = run / entry.folder
    stage = read_stage(folder)
    if stage.id != entry.id or stage.key != entry.key:
        raise MixwellError(f"{folder} holds the stage {stage.id} with the key {stage.key[:8]}, expected {entry.id} "
                           f"with {entry.key[:8]}; {AGAIN}.")
    return replace(stage, side=entry.side)


def _strict(cls: type[R], data: Any, path: Path, remedy: str = AGAIN) -> R:
    """`data` as the record `cls`; what does not fit raises `MixwellError` with its file and the remedy."""
    try:
        return from_dict(cls, data, str(path))
    except MixwellError as error:
        raise MixwellError(f"{error} The file is damaged or another version's; {remedy}.") from error


def recipe_text(recipe: Mapping[str, Any]) -> str:
    """A recipe as YAML."""
    if not recipe:
        return ""
    data = dict(recipe)
    as_it_is = BREAKS.search(json.dumps(data, ensure_ascii=False, default=str)) is None
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=as_it_is, width=100)


def written_recipe(folder: Path) -> str:
    """What recipe.yaml holds according to run.json."""
    record, _ = _read_run(folder)
    return recipe_text(record.recipe)


def value_text(value: Any) -> str:
    """A value of a recipe as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=1000)
    return text.removesuffix("\n").removesuffix("\n...")  # the dots end the document of a bare word


def figure(record: Mapping[str, Any], name: str) -> float:
    """A number of a record; not a number where the record has none."""
    value = record.get(name)
    return float(value) if units.is_number(value) else math.nan


def numbers(value: Mapping[str, Any] | None) -> dict[str, float]:
    """The entries of a mapping that are finite numbers."""
    found = {}
    for name, entry in (value or {}).items():
        if units.is_number(entry):
            found[name] = float(entry)
    return found
