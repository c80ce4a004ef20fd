"""What a run left on disk, read leniently: a stage without metrics, receipts or evaluation is still a stage.

    <run>/run.json                                recipe, machine, versions, seeds, started, seconds, stages in order
    <run>/stages/<id>-<key8>/stage.json           id, stage, method, key, config, inputs, seconds, result, evaluation
    <run>/stages/<id>-<key8>/metrics.jsonl        one line a logged training step
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixwell.core import units
from mixwell.core.errors import MixwellError
from mixwell.core.files import read_json

MODEL_KINDS = ("build", "load", "model", "train", "convert", "compress", "merge", "adapt")

@dataclass(frozen=True, kw_only=True)
class Stage:
    """One finished stage. `metrics` are the lines of a training stage, by step; elsewhere empty."""

    id: str
    kind: str = ""  # data, tokenizer, train, convert, compress, sample, ...
    method: str = ""
    key: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    result: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    predicted: Mapping[str, Any] = field(default_factory=dict)  # tokens, flops, peak_bytes, seconds
    actual: Mapping[str, Any] = field(default_factory=dict)  # the same, measured
    metrics: tuple[Mapping[str, Any], ...] = ()

    @property
    def trains(self) -> bool:
        """Whether this stage has a loss curve."""
        return bool(self.metrics)

    @property
    def receipt(self) -> Mapping[str, Any]:
        """What a conversion changed; empty where none was taken."""
        return mapping(self.result.get("receipt"))


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run: its record and its finished stages, in the order of the recipe."""

    name: str
    record: Mapping[str, Any]
    stages: tuple[Stage, ...]
    unfinished: tuple[str, ...] = ()  # named by the record, without a readable folder

    def __getitem__(self, stage: str) -> Stage:
        return next(s for s in self.stages if s.id == stage)

    def inputs(self, stage: Stage) -> list[Stage]:
        """The finished stages that `stage` reads, in the order of the recipe."""
        return [s for s in self.stages if s.id in stage.inputs and s.id != stage.id]

    def ancestors(self, stage: Stage) -> list[Stage]:
        """All that `stage` builds on, oldest first, `stage` itself last."""
        seen: set[str] = set()
        waiting = [stage]
        while waiting:
            one = waiting.pop()
            if one.id not in seen:
                seen.add(one.id)
                waiting += self.inputs(one)
        return [s for s in self.stages if s.id in seen]

    def parent(self, stage: Stage) -> Stage | None:
        """The input whose line `stage` carries on: the model among its inputs, else the last of them."""
        known = self.inputs(stage)
        return next((s for s in reversed(known) if is_model(s)), known[-1] if known else None)

    def total(self, stage: Stage, budget: str) -> float:
        """What training `stage` took of `budget` (tokens, flops, seconds): as it says, else by its last metric."""
        said = [figure(stage.result, budget), *(figure(line, budget) for line in stage.metrics[-1:])]
        return next((v for v in said if not math.isnan(v)), math.nan)

    def branch_ends(self) -> list[Stage]:
        """Training stages that no later training builds on: the competitors of the run."""
        training = [s for s in self.stages if s.trains]
        inner = {a.id for s in training for a in self.ancestors(s) if a.id != s.id}
        return [s for s in training if s.id not in inner]


def is_model(stage: Stage) -> bool:
    """Whether a stage leaves a model behind."""
    return stage.kind in MODEL_KINDS or stage.trains or bool(stage.receipt)


def read_run(folder: str | Path) -> Run:
    """Read a run; without a readable `run.json` this is a `MixwellError`, all else may be missing."""
    folder = Path(folder)
    record = read_json(folder / "run.json")
    if not isinstance(record, Mapping):
        raise MixwellError(f"{folder / 'run.json'} holds {type(record).__name__}, expected the record of a run; "
                           "run the recipe again.")
    named = [_entry(e) for e in record.get("stages") or []]
    found = [(name, _stage_folder(folder, name, entry)) for name, entry in named]
    stages = tuple(read_stage(path, entry) for (_, path), (_, entry) in zip(found, named) if path is not None)
    return Run(name=str(record.get("name") or folder.resolve().name), record=record, stages=stages,
               unfinished=tuple(name for name, path in found if path is None))


def read_stage(folder: Path, entry: Mapping[str, Any] | None = None) -> Stage:
    """Read one stage folder; `entry` is what the run's record says of it and fills what the folder leaves out."""
    data = {**(entry or {}), **mapping(read_json(folder / "stage.json"))}
    result = mapping(data.get("result"))
    predicted = {**mapping(data.get("predicted")), **mapping(result.get("predicted"))}
    stated = {key: result.get(key) for key in ("tokens", "flops", "peak_bytes")} | {"seconds": data.get("seconds")}
    actual = {**stated, **{k: v for k, v in mapping(data.get("actual")).items() if v is not None}}
    evaluation = data.get("evaluation") or (result if "bits_per_byte" in result else None)
    return Stage(id=str(data.get("id") or folder.name.rpartition("-")[0]), kind=str(data.get("stage") or ""),
                 method=str(data.get("method") or ""), key=str(data.get("key") or ""),
                 config=mapping(data.get("config")), inputs=_names(data.get("inputs")), result=result,
                 evaluation=mapping(evaluation), predicted=predicted, actual=actual,
                 metrics=_metrics(folder / str(result.get("metrics") or "metrics.jsonl")))


def _entry(entry: Any) -> tuple[str, Mapping[str, Any]]:
    """A stage in the record is its id, or a mapping that holds it."""
    return (str(entry.get("id")), entry) if isinstance(entry, Mapping) else (str(entry), {})


def _stage_folder(run: Path, name: str, entry: Mapping[str, Any]) -> Path | None:
    """The folder of a stage: the one named, else that of its key, else the newest of its id."""
    if entry.get("folder") and (path := run / str(entry["folder"])).joinpath("stage.json").is_file():
        return path
    key = str(entry.get("key") or "")[:8]
    ready = [p for p in (run / "stages").glob("*") if (p / "stage.json").is_file()
             and (p.name == name or p.name == f"{name}-{key}" or (not key and p.name.rpartition("-")[0] == name))]
    return max(ready, key=lambda p: (p / "stage.json").stat().st_mtime, default=None)


def _metrics(path: Path) -> tuple[Mapping[str, Any], ...]:
    """Lines by step; of a step written twice (a run that went on) the last counts, half a line not at all."""
    if not path.is_file():
        return ()
    lines: dict[Any, Mapping[str, Any]] = {}
    for i, text in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines()):
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, Mapping):
            lines[line.get("step", f"line {i}")] = line
    return tuple(lines.values())


def mapping(value: Any) -> Mapping[str, Any]:
    """`value` where it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def figure(record: Mapping[str, Any], name: str) -> float:
    """A number of a record; not a number where it is missing or anything else."""
    value = record.get(name)
    return float(value) if units.is_number(value) else math.nan


def numbers(value: Any) -> dict[str, float]:
    """The entries of a mapping that are finite numbers."""
    return {str(k): float(v) for k, v in mapping(value).items() if units.is_number(v)}


def _names(value: Any) -> tuple[str, ...]:
    """Inputs come as a list of ids, or as a mapping from role to id."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, str) or not isinstance(value, Iterable):
        return (str(value),) if value else ()
    return tuple(str(v.get("id") if isinstance(v, Mapping) else v) for v in value)
