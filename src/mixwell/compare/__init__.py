"""Variants of a recipe under one budget, from the same seeds, on the user's own data: who is better, and is it luck?

    <out>/stages/<id>-<key8>/           every stage once, shared by all variants and seeds that it serves
    <out>/variants/<name>-seed<n>/      run.json of one variant and seed, whose stages lie above
    <out>/compare.json, <out>/report.html
"""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mixwell.compare import report, searching, spread
from mixwell.compare.searching import Search
from mixwell.compare.variants import (
    Variant,
    ancestors,
    baseline_of,
    check_vary,
    judged_stage,
    last_key,
    parse_budget,
    prepared,
    variants,
    with_training,
)
from mixwell.compare.width import fitted
from mixwell.core import machine
from mixwell.core.config import to_dict
from mixwell.core.errors import MixwellError
from mixwell.core.files import digest
from mixwell.formats import sealed
from mixwell.report.records import StageRecord
from mixwell.run import engine, sizing
from mixwell.run import recipe as recipes
from mixwell.run.costs import Progress
from mixwell.run.engine import Observer, Planned
from mixwell.run.recipe import Recipe

WAITING, FINISHED, FAILED = "waiting", "finished", "failed"


@dataclass(kw_only=True)
class Trial:
    """One variant with one seed: what is to be done, and how it went."""

    variant: str
    seed: int
    folder: Path  # of its run.json
    recipe: Recipe | None = None
    todo: list[Planned] = field(default_factory=list)
    state: str = WAITING
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A comparison as it would run now."""

    base: Recipe
    stage: str  # whose model is judged
    variants: tuple[Variant, ...]
    baseline: str
    seeds: tuple[int, ...]
    budget: Mapping[str, float]
    trials: tuple[Trial, ...]
    out: Path
    fitted: tuple[Recipe, sizing.Size | None]  # the recipe as asked for, and how it was fitted to the machine

    def stages(self) -> list[Planned]:
        """Every stage that would run or is there, shared ones once, under a name that tells whom it serves."""
        found: dict[Path, Planned] = {}
        users: dict[Path, list[Trial]] = {}
        for trial in self.trials:
            for one in trial.todo:
                found.setdefault(one.folder, one)
                own = users.setdefault(one.folder, [])
                own.append(trial)
        return [_labelled(one, users[folder]) for folder, one in found.items()]


def _labelled(planned: Planned, users: Sequence[Trial]) -> Planned:
    """`dense` where all seeds share the stage, `dense · seed 0` where all variants do, `moe · top_k · seed 0` else."""
    parts = [planned.stage.id]
    names = {trial.variant for trial in users}
    if len(names) == 1:
        parts.append(names.pop())
    seeds = {trial.seed for trial in users}
    if len(seeds) == 1:
        parts.append(f"seed {seeds.pop()}")
    stage = replace(planned.stage, id=" · ".join(parts))
    return replace(planned, stage=stage)


def plan(chosen: Recipe | str | Path | None, vary: Mapping[str, Sequence[Any]], *,
         budget: Mapping[str, Any] | str | None = None, seeds: int | Sequence[int] = 3, baseline: str | None = None,
         stage: str | None = None, out: str | Path | None = None, predict: bool = True,
         progress: Progress = lambda words: None) -> Plan:
    """What `compare` would do; nothing is written. A mistake in what is asked for raises `MixwellError` here.

    progress: hears what is read and measured.
    """
    limits = parse_budget(budget)
    check_vary(vary)
    asked = chosen if isinstance(chosen, Recipe) else recipes.read(chosen)
    place = Path(out or default_folder(asked, vary))
    engine.check_out(place, foreign="run.json")
    settled, size = sizing.settle(asked, place, progress)
    base = with_training(settled, limits)
    threads = machine.threads(base.threads)
    grid = variants(base, vary)
    judged = judged_stage(grid, stage, threads)
    if "bytes" in limits:
        _check_width_free(vary)
        grid = [_fitted(variant, judged, limits["bytes"], threads) for variant in grid]
    tried = _seeds(seeds, base.seed)
    trials = []
    for seed in tried:
        trials += [_trial(variant, judged, limits, seed, place, predict, progress) for variant in grid]
    made = Plan(base=base, stage=judged, variants=tuple(grid), baseline=baseline_of(grid, baseline), seeds=tried,
                budget=limits, trials=tuple(trials), out=place, fitted=(asked, size))
    _check_seeds(made)
    return made


def _check_width_free(vary: Mapping[str, Any]) -> None:
    if any(path.endswith("hidden_dim") for path in vary):
        raise MixwellError("--budget bytes sets hidden_dim, which is varied; drop one of them.")


def default_folder(base: Recipe, vary: Mapping[str, Any]) -> Path:
    """`runs/<recipe>-by-<keys>`."""
    keys = [last_key(path) for path in vary]
    return Path("runs") / "-".join([base.name, "by", *keys])


def _seeds(seeds: int | Sequence[int], first: int) -> tuple[int, ...]:
    wanted = range(first, first + seeds) if isinstance(seeds, int) else seeds
    found = tuple(wanted)
    if not found or len(set(found)) < len(found):
        raise MixwellError(f"--seeds: expected one or more, each once, got {seeds}.")
    return found


def _fitted(variant: Variant, stage: str, size_bytes: float, threads: int) -> Variant:
    if variant.recipe is None:
        return variant
    return replace(variant, recipe=fitted(variant.recipe, stage, size_bytes, threads))


def _trial(variant: Variant, stage: str, budget: Mapping[str, float], seed: int, out: Path, predict: bool,
           progress: Progress) -> Trial:
    folder = f"{_file_name(variant.name)}-seed{seed}"
    trial = Trial(variant=variant.name, seed=seed, folder=out / "variants" / folder)
    if variant.recipe is None:
        trial.state, trial.error = FAILED, variant.error
        return trial
    try:
        trial.recipe = prepared(variant.recipe, stage, budget, seed)
        needed = ancestors(recipes.stages(trial.recipe), stage)
        planned = engine.plan_stages(trial.recipe, needed, out, predict=predict, progress=progress)
    except MixwellError as error:
        trial.state, trial.error = FAILED, str(error)
        return trial
    trial.todo = [one if one.stage.id == stage else _unevaluated(one) for one in planned]
    return trial


def _file_name(name: str) -> str:
    """The name itself where it can be a folder's, else what is left of it and a digest that tells it from others."""
    safe = re.sub(r"[^\w.-]+", "_", name)
    if safe == name:
        return name
    return f"{safe[:40]}-{digest(name)[:6]}"


def _unevaluated(planned: Planned) -> Planned:
    """The stage without an evaluation of its model, which is not among those compared."""
    return replace(planned, evaluated=True, predicted_evaluation=engine.Prediction())


def _check_seeds(made: Plan) -> None:
    """Seeds that change nothing would pass for measurements without noise."""
    for variant in made.variants:
        own = [trial for trial in made.trials if trial.variant == variant.name]
        keys = [trial.todo[-1].key for trial in own if trial.todo]
        if len(set(keys)) < len(keys):
            raise MixwellError(f"nothing on the way to {made.stage} draws from the seed; use --seeds 1.")
    errors = [trial.error for trial in made.trials]
    if all(errors):
        raise MixwellError(errors[0])


def compare(chosen: Recipe | str | Path | None, vary: Mapping[str, Sequence[Any]], *,
            budget: Mapping[str, Any] | str | None = None, seeds: int | Sequence[int] = 3, baseline: str | None = None,
            stage: str | None = None, out: str | Path | None = None, observer: Observer | None = None,
            search: Search | None = None) -> Path:
    """Train every variant from the same seeds under the same budget and return the path of the report.

    chosen: a recipe, its file, or None for the default one. vary: key path -> values; several keys make a grid.
    budget: at most one of tokens, flops and seconds, for the last training before the stage that is judged, and
    `bytes`, at which the model's hidden width is chosen so that its weights just fit; none: what the recipe says.
    seeds: how many, counted from the recipe's own, or which. baseline: name of the variant that the others are held
    against (default: the first). stage: whose model is judged (default: the last that trains on what is varied).
    out: folder, default `runs/<recipe>-by-<keys>`. search: train all variants in part and compare the leaders alone.

    Stages that are there are taken; stopped at any moment, the same call goes on. A variant that fails is reported,
    and the rest goes on.
    """
    made = plan(chosen, vary, budget=budget, seeds=seeds, baseline=baseline, stage=stage, out=out,
                progress=(observer or engine.Silent()).preparing)
    return run(made, observer, search)


def run(made: Plan, observer: Observer | None = None, search: Search | None = None,
        pool: Executor | None = None) -> Path:
    """Do what was planned and return the path of the report.

    search: how the variants that are compared are found among all of them; None compares all. pool: where stages are
    made (`parallel.pools.ray_pool`, which must see the folder); without one here, one after the other.
    """
    observer = observer or engine.Silent()
    started, clock = datetime.now(UTC), time.perf_counter()
    with engine.locked(made.out):
        engine.sweep(made.out)
        sizing.keep(*made.fitted, made.out)
        listed = made.stages()
        cached = {one.folder for trial in made.trials for one in trial.todo if one.cached}
        engine.tidy(made.out / "stages", cached)
        observer.planned(listed)
        names = _Named(observer, {one.folder: one for one in listed})
        done: dict[Path, StageRecord] = {}
        searched: dict[str, Any] = {}
        try:
            if search is not None:
                searched = _searched(made, search, done, names)
                made = narrowed(made, searched["kept"])
            waiting = [trial for trial in made.trials if trial.state == WAITING]
            if pool is not None:
                _spread(waiting, done, names, started, pool)
            else:
                for trial in waiting:
                    _attempt(trial, done, names, started)
        finally:  # Ctrl-C leaves a report of what is there
            _write(made, started, time.perf_counter() - clock, searched)
            page = report.build(made.out)
    return page


def _attempt(trial: Trial, done: dict[Path, StageRecord], observer: Observer, started: datetime) -> None:
    """Run one trial; what goes wrong is kept with it, unless it would go wrong with every other one too."""
    clock = time.perf_counter()
    try:
        for planned in trial.todo:
            if planned.folder not in done:
                done[planned.folder] = engine.finish(planned, _recipe(trial), trial.todo, observer)
    except Exception as error:
        _fail(trial, error)
    else:
        _conclude(trial, done, started, time.perf_counter() - clock)


def _fail(trial: Trial, error: BaseException) -> None:
    """Keep what went wrong with its trial: one broken variant must not take the others' measurements with it."""
    if isinstance(error, OSError):
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise error
        trial.state, trial.error = FAILED, str(error)
        return
    kind = "" if isinstance(error, MixwellError) else f"{type(error).__name__}: "
    trial.state, trial.error = FAILED, kind + " ".join(str(error).split())


def _conclude(trial: Trial, done: Mapping[Path, StageRecord], started: datetime, seconds: float) -> None:
    """Write down a trial whose stages are all there."""
    trial.state = FINISHED
    trial.folder.mkdir(parents=True, exist_ok=True)
    made = [done[planned.folder] for planned in trial.todo]
    engine.write_record(_recipe(trial), trial.folder, trial.todo, made, started, seconds)


def _spread(trials: Sequence[Trial], done: dict[Path, StageRecord], observer: Observer, started: datetime,
            pool: Executor) -> None:
    """Run the trials at once; see `_attempt`."""
    clock = time.perf_counter()
    pieces = []
    for trial in trials:
        words = f"{trial.variant}, seed {trial.seed}"
        pieces += [spread.Piece(planned=planned, recipe=_recipe(trial), todo=trial.todo,
                                words=f"{words}, stage {planned.stage.id}") for planned in trial.todo]
    for piece, found in spread.made(pieces, pool, observer):
        users = [trial for trial in trials if any(one.folder == piece.folder for one in trial.todo)]
        if isinstance(found, StageRecord):
            done[piece.folder] = found
        for trial in users:
            if not isinstance(found, StageRecord):
                _fail(trial, found)
            elif all(one.folder in done for one in trial.todo):
                _conclude(trial, done, started, time.perf_counter() - clock)


def _searched(made: Plan, search: Search, done: dict[Path, StageRecord], observer: Observer) -> dict[str, Any]:
    """Who leads when the variants are trained in part, with the first seed alone, as plain data."""
    judged_kinds = {trial.todo[-1].stage.kind for trial in made.trials if trial.todo}
    if judged_kinds != {"train"}:
        raise MixwellError(f"--search stops trainings early, and {made.stage} is none; name one with --stage.")
    first = made.seeds[0]
    entrants = [trial for trial in made.trials if trial.seed == first and trial.todo]

    def loss(entrant: int, share: float) -> dict[str, Any]:
        trial = entrants[entrant]
        *before, judged = trial.todo
        for planned in before:
            if planned.folder not in done:
                done[planned.folder] = engine.finish(planned, _recipe(trial), trial.todo, observer)
        if share < 1:
            return engine.train_partly(judged, trial.todo, share, _recipe(trial).evaluate, observer)
        begun = replace(judged, begun=judged.begun or judged.work.is_dir())
        record = engine.finish(begun, _recipe(trial), trial.todo, observer)
        done[judged.folder] = record
        return {"tokens": record.result["tokens"], "mean": record.evaluation["mean"]}

    names = {trial.variant: trial.todo[-1].evaluation_key for trial in entrants}
    found = searching.search(search, names, loss, made.out / searching.FILE)
    return {**found, "seed": first, "kept": searching.kept(found, search.keep, made.baseline)}


def narrowed(made: Plan, kept: Sequence[str]) -> Plan:
    """The plan of some of its variants; what was trained of them in part is gone on from."""
    trials = []
    for trial in made.trials:
        if trial.variant in kept:
            trial.todo = [replace(one, begun=one.begun or one.work.is_dir()) for one in trial.todo]
            trials.append(trial)
    variants = tuple(variant for variant in made.variants if variant.name in kept)
    return replace(made, variants=variants, trials=tuple(trials))


def _recipe(trial: Trial) -> Recipe:
    assert trial.recipe is not None
    return trial.recipe


class _Named:
    """Tells an observer of the stages under the names that `Plan.stages` gave them."""

    def __init__(self, observer: Observer, named: Mapping[Path, Planned]) -> None:
        self.observer, self.named = observer, named

    def fitted(self, about: str, size: sizing.Size) -> None:
        self.observer.fitted(about, size)

    def preparing(self, words: str) -> None:
        self.observer.preparing(words)

    def planned(self, stages: Sequence[Planned]) -> None:
        self.observer.planned(stages)

    def started(self, planned: Planned) -> None:
        named = replace(self.named[planned.folder], damage=planned.damage)
        self.observer.started(named)

    def advanced(self, planned: Planned, share: float, words: str) -> None:
        self.observer.advanced(self.named[planned.folder], share, words)

    def finished(self, planned: Planned, record: StageRecord) -> None:
        self.observer.finished(self.named[planned.folder], record)


def _written(variant: Variant) -> dict[str, Any]:
    """What the variant sets, as it stands in its recipe: with the options that a method's bare name kept."""
    if variant.recipe is None:
        return dict(variant.changes)
    return {path: recipes.value_at(variant.recipe, path) for path in variant.changes}


def _write(made: Plan, started: datetime, wall_seconds: float, searched: Mapping[str, Any]) -> None:
    """Write compare.json: what was compared and how each trial ended."""
    base = made.base
    listed = []
    for variant in made.variants:
        runs = [_outcome(trial, made.out) for trial in made.trials if trial.variant == variant.name]
        listed.append({"name": variant.name, "changes": _written(variant), "runs": runs})
    record = {
        "name": base.name,
        "recipe": to_dict(base),
        "stage": made.stage,
        "baseline": made.baseline,
        "vary": list(made.variants[0].changes),
        "budget": dict(made.budget),
        "seeds": list(made.seeds),
        "variants": listed,
        "search": dict(searched),
        "machine": machine.describe(machine.threads(base.threads)),
        "versions": machine.versions(),
        "started": started.isoformat(timespec="seconds"),
        "wall_seconds": wall_seconds}
    sealed.write(made.out / "compare.json", record)


def _outcome(trial: Trial, out: Path) -> dict[str, Any]:
    place = trial.folder.relative_to(out)
    return {"seed": trial.seed, "state": trial.state, "error": trial.error, "folder": str(place)}
