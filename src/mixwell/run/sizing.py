"""A recipe fitted to the machine and to the minutes that it may take, before it starts.

Two keys ask for it. `minutes` scales the token budgets of all trainings by one factor, so that the whole run is
predicted to take that long. `as_long_as: STAGE` in the place of a budget gives a training as many tokens as take the
time that the training STAGE is predicted to take: a comparison at equal time in which every side ends its schedule.

The outcome is kept in the run's folder, so that the same command goes on with the same numbers whatever else the
machine does meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mixwell.core import machine
from mixwell.core.config import from_dict, to_dict
from mixwell.core.errors import MixwellError, shown, suggest
from mixwell.core.files import digest
from mixwell.formats import sealed
from mixwell.formats.plain import check, number
from mixwell.run import recipe as recipes
from mixwell.run.costs import Costs, Progress
from mixwell.run.recipe import Recipe
from mixwell.run.rough import trained, tries
from mixwell.run.stages import KINDS, Stage
from mixwell.run.stages.train import FEW_EPOCHS

FILE = "size.json"
SPARE = 0.75  # share of the minutes that is planned for: timing takes a tenth, and other programs want the machine too
TRAINING = ("train", "adapt")  # verbs of entries that train
LEAST_STEPS = 40  # of a training; fewer show nothing


@dataclass(frozen=True, kw_only=True)
class Size:
    """What a recipe was fitted to."""

    minutes: float | None  # asked for; None: only `as_long_as` was settled
    seconds: float  # predicted for the whole run
    tokens: dict[str, int] = field(default_factory=dict)  # of each training
    epochs: float = 0.0  # most times that a training reads the text
    limit: str = ""  # what kept the run from taking its minutes, where something did


def needs_fitting(chosen: Recipe) -> bool:
    """Whether the recipe leaves budgets to the machine."""
    return chosen.minutes is not None or bool(_references(chosen))


def settle(chosen: Recipe, out: Path, progress: Progress = lambda words: None) -> tuple[Recipe, Size | None]:
    """The recipe with every budget in tokens, and how it was fitted: as `keep` wrote it into `out`, else anew.

    A recipe that leaves nothing open comes back as it is. A reference to a stage that trains nothing, or that has
    itself no budget of tokens, raises `MixwellError`. progress: hears what is measured.
    """
    if not needs_fitting(chosen):
        return chosen, None
    kept = _kept(out / FILE, _key(chosen))
    size = kept or fit(chosen, progress)
    return with_tokens(chosen, size.tokens), size


def keep(chosen: Recipe, size: Size | None, out: Path) -> None:
    """Write into the run's folder how the recipe was fitted, so that the next call of `settle` finds it."""
    if size is not None:
        sealed.write(out / FILE, {"key": _key(chosen), **asdict(size)})


def _key(chosen: Recipe) -> str:
    return digest([to_dict(chosen), machine.threads(chosen.threads)])


def nominal(chosen: Recipe) -> Recipe:
    """The recipe with the budgets that it states, as it would run were nothing left to the machine."""
    return with_tokens(chosen, _nominal_tokens(chosen)) if needs_fitting(chosen) else chosen


def fit(chosen: Recipe, progress: Progress = lambda words: None) -> Size:
    """Fit the recipe to this machine, which is timed where that was not done before."""
    stated = _nominal_tokens(chosen)
    stages = recipes.stages(with_tokens(chosen, stated))
    least_s = 60.0 * (chosen.minutes or 0.0)
    costs = Costs(stages, machine.threads(chosen.threads), progress, least_s, weighed=chosen.evaluate)
    trainings = {stage.id: stage for stage in stages if stage.id in stated}
    pace = {name: _seconds_per_token(costs, stage) for name, stage in trainings.items()}
    for name, other in _references(chosen).items():
        stated[name] = stated[other] * pace[other] / pace[name]
    fixed = _fixed_seconds(costs, stages, chosen, set(trainings))
    training = sum(stated[name] * pace[name] for name in stated)
    text = costs.train_tokens()
    epochs_left = text / max(stated.values())
    factor, limit = _factor(chosen.minutes, fixed, training, epochs_left)
    tokens = {name: _whole_steps(factor * stated[name], trained(stage).config) for name, stage in trainings.items()}
    seconds = fixed + sum(tokens[name] * pace[name] for name in tokens)
    epochs = max(tokens.values()) / text
    return Size(minutes=chosen.minutes, seconds=seconds, tokens=tokens, epochs=epochs, limit=limit)


def _factor(minutes: float | None, fixed_s: float, training_s: float, epochs_left: float) -> tuple[float, str]:
    """(what the recipe's tokens are multiplied by, what limits it); `epochs_left`: text over the largest budget."""
    if minutes is None:
        return 1.0, ""
    wanted = (SPARE * 60.0 * minutes - fixed_s) / training_s
    most = FEW_EPOCHS * epochs_left
    if wanted <= 0:
        return 0.0, f"all but the training takes {fixed_s:.0f} s, so that each training gets {LEAST_STEPS} steps only"
    if wanted > most:
        return most, f"the text would be read more than {FEW_EPOCHS:.0f} times; more text would use the time"
    return wanted, ""


def _whole_steps(tokens: float, config: Any) -> int:
    """`tokens` in whole optimizer steps, of which two digits are kept, so that a second timing seldom changes them."""
    step = config.batch_size * config.seq_len
    steps = max(LEAST_STEPS, tokens / step)
    digits = 10 ** max(0, len(str(int(steps))) - 2)
    return int(steps // digits * digits) * step


def _seconds_per_token(costs: Costs, stage: Stage) -> float:
    per_token: float = costs.training(stage.inputs["model"], trained(stage).config)["seconds_per_token"]
    return per_token * tries(stage)


def _fixed_seconds(costs: Costs, stages: tuple[Stage, ...], chosen: Recipe, trainings: set[str]) -> float:
    """Predicted seconds of all but the trainings: text, conversions, evaluations, samples."""
    others = [stage for stage in stages if stage.id not in trainings]
    work = sum(costs.predict(stage).seconds or 0.0 for stage in others)
    weighed = [stage.id for stage in stages if KINDS[stage.kind].evaluated]
    evaluations = [costs.evaluation(name, chosen.evaluate) for name in weighed]
    return work + sum(one.seconds or 0.0 for one in evaluations)


def with_tokens(chosen: Recipe, tokens: Mapping[str, float]) -> Recipe:
    """The recipe with these budgets in the place of the trainings' own, and nothing left to fit."""
    entries = []
    for entry in chosen.stages:
        name = str(entry.get("id"))
        entries.append(budgeted(entry, {"tokens": tokens[name]}) if name in tokens else entry)
    data = {**to_dict(chosen), "minutes": None, "stages": entries}
    return recipes.from_plain(data)


def budgeted(entry: Mapping[str, Any], budget: Mapping[str, float]) -> dict[str, Any]:
    """The entry of a training with this budget in the place of its own."""
    verb = _verb(entry)
    options = _without_budget(_options(entry, verb))
    beside = _without_budget(entry)
    return {**beside, verb: {**options, **budget}}


def _verb(entry: Mapping[str, Any]) -> str:
    """What trains in it; empty where nothing does."""
    return next((verb for verb in TRAINING if verb in entry), "")


def _options(entry: Mapping[str, Any], verb: str) -> dict[str, Any]:
    """The options below the verb of a training."""
    where = recipes.where_of(entry.get("id"))
    return recipes.below(verb, entry[verb], where)


def _without_budget(options: Mapping[str, Any]) -> dict[str, Any]:
    kept = [key for key in options if key not in recipes.BUDGET_KEYS]
    return {key: options[key] for key in kept}


def _trainings(chosen: Recipe) -> dict[str, dict[str, Any]]:
    """Options of the entries that train, by id, with the recipe's defaults."""
    found = {}
    for entry in chosen.stages:
        verb = _verb(entry) if isinstance(entry, Mapping) else ""
        if verb:
            own = {**{k: v for k, v in entry.items() if k not in ("id", "from", verb)}, **_options(entry, verb)}
            defaults = {} if recipes.BUDGET_KEYS & set(own) else chosen.train
            found[str(entry.get("id"))] = {**defaults, **own}
    return found


def _references(chosen: Recipe) -> dict[str, str]:
    """Training -> the training whose time it is given."""
    trainings = _trainings(chosen)
    referring = [name for name, options in trainings.items() if "as_long_as" in options]
    found = {}
    for name in referring:
        options = trainings[name]
        found[name] = str(options["as_long_as"])
    for name, other in found.items():
        _check_reference(trainings, name, other, found)
    return found


def _check_reference(trainings: Mapping[str, Mapping[str, Any]], name: str, other: str,
                     references: Mapping[str, str]) -> None:
    where = f"stages.{name}.train.as_long_as"
    if other not in trainings:
        hint = suggest(other, trainings)
        raise MixwellError(f"{where}: no stage {shown(other)} trains.{hint} Trainings: {', '.join(trainings)}.")
    if other in references:
        raise MixwellError(f"{where}: {other} has no budget of its own; name the stage that has one.")
    if twice := sorted(set(trainings[name]) & recipes.BUDGETS):
        raise MixwellError(f"{where} stands beside {twice[0]}; keep one of them.")


def _nominal_tokens(chosen: Recipe) -> dict[str, float]:
    """The budgets that the recipe states, in tokens; a training `as_long_as` another starts from that one's."""
    trainings, references = _trainings(chosen), _references(chosen)
    sources = {name: references.get(name, name) for name in trainings}
    stated = {name: trainings[source] for name, source in sources.items()}
    for name, options in stated.items():
        if "tokens" not in options:
            raise MixwellError(f"stages.{name}.train: fitting a run to the machine needs its budget in tokens; give "
                               "train.tokens, or leave `minutes` and `as_long_as` out.")
        check(options["tokens"], _BUDGET, f"stages.{name}.train.tokens")
    return {name: float(options["tokens"]) for name, options in stated.items()}


_BUDGET = number(0)


def _kept(file: Path, key: str) -> Size | None:
    """The size that an earlier call kept for the same recipe."""
    if not file.is_file():
        return None
    found = sealed.read(file, "remove it, and the run is fitted to this machine anew")
    if found.pop("key", None) != key:
        return None
    return from_dict(Size, found, str(file))
