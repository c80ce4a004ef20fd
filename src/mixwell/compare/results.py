"""What a comparison left on disk, as values: scores by variant and seed, their intervals, and the differences."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mixwell.core.errors import MixwellError
from mixwell.formats import sealed
from mixwell.report.records import RunRecord, StageRecord, figure, read_run
from mixwell.report.statistics import Difference, Interval, differences, interval

METRIC = "bits per byte"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One variant with one seed, finished."""

    run: RunRecord
    stage: StageRecord  # whose model is judged
    score: float  # mean bits per byte of held-out text, every domain counting the same
    weights_bytes: int | None = None  # of the safetensors files

    @property
    def training(self) -> StageRecord | None:
        """The last training on the way to the model."""
        line = self.run.ancestors(self.stage)
        trained = [stage for stage in line if stage.trains]
        return trained[-1] if trained else None


@dataclass(frozen=True, kw_only=True)
class Result:
    """One variant: its finished trials and its failures, by seed."""

    name: str
    changes: Mapping[str, Any]
    trials: Mapping[int, Trial]
    failures: Mapping[int, str]

    @property
    def scores(self) -> dict[int, float]:
        """Seed -> score."""
        return {seed: trial.score for seed, trial in self.trials.items()}

    @property
    def interval(self) -> Interval:
        """Of the scores."""
        return interval(list(self.scores.values()))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All variants, as compare.json and the run folders have them."""

    record: Mapping[str, Any]
    results: tuple[Result, ...]  # in the order of the grid

    @property
    def baseline(self) -> str:
        """Name of the variant that the others are held against."""
        return str(self.record["baseline"])

    @property
    def seeds(self) -> list[int]:
        """The seeds asked for."""
        return list(self.record["seeds"])

    @cached_property
    def ranked(self) -> list[Result]:
        """The variants with a score, best first."""
        scored = [result for result in self.results if result.trials]
        return sorted(scored, key=lambda result: result.interval.mean)

    @cached_property
    def one_tokenizer(self) -> bool:
        """Whether all trials read the same tokens, so that their losses in nats per token are on one scale."""
        keys: set[str] = set()
        for result in self.results:
            for trial in result.trials.values():
                keys |= {stage.key for stage in trial.run.stages if stage.kind == "tokenizer"}
        return len(keys) <= 1

    @cached_property
    def differences(self) -> dict[str, Difference]:
        """Each variant against the baseline; empty without the baseline."""
        scores = {r.name: r.scores for r in self.results}
        own = scores.pop(self.baseline, {})
        return differences(scores, own)


def read(folder: str | Path) -> Comparison:
    """Read a comparison; a folder without a readable compare.json raises `MixwellError`."""
    folder = Path(folder)
    record = sealed.read(folder / "compare.json", "run it again")
    if "variants" not in record:
        raise MixwellError(f"{folder / 'compare.json'} is no record of a comparison; run it again.")
    results = [_result(folder, record, entry) for entry in record["variants"]]
    return Comparison(record=record, results=tuple(results))


def _result(folder: Path, record: Mapping[str, Any], entry: Mapping[str, Any]) -> Result:
    trials: dict[int, Trial] = {}
    failures: dict[int, str] = {}
    for one in entry["runs"]:
        seed, state = one["seed"], one["state"]
        if state == "failed":
            failures[seed] = one["error"]
        elif state == "finished":
            trials[seed] = _trial(folder / one["folder"], record["stage"])
    return Result(name=entry["name"], changes=entry["changes"], trials=trials, failures=failures)


def _trial(folder: Path, stage_id: str) -> Trial:
    run = read_run(folder)
    stage = run[stage_id]
    score = figure(stage.evaluation, "mean")
    if math.isnan(score):
        raise MixwellError(f"{folder}: stage {stage_id} was not evaluated; run the comparison again.")
    weights = stage.model_folder.glob("*.safetensors") if stage.model_folder else ()
    size = sum(file.stat().st_size for file in weights)
    return Trial(run=run, stage=stage, score=score, weights_bytes=size or None)
