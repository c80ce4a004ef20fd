"""Recipes: YAML data, checked and resolved into stages.

A recipe names its data, its tokenizer, its model and a list of stages; everything has a default:

    data: {domains: {wiki: texts/wiki, code: "src/**/*.py"}}
    stages:
      - {id: dense, train: {tokens: 1M}}
      - {id: moe, from: dense, convert: upcycle, num_experts: 8}

An entry of `stages` holds `id`, `from` (left out: the recipe's model; a list for a merge, with `base` beside), `seed`,
`side`, and one verb. The verb's value
is its options, or the name of a method with the options beside it. Paths are taken from the current folder.

`data: {domains: ...}` in an entry gives it text of its own, in the recipe's tokens: what is left out of it stands as at
the top, `domains` and `validation` apart. What the run holds out is never trained on, and models are evaluated on that,
whatever text they saw last.

`seeds: 3` in the place of `seed` makes an entry into three, `moe-s0` to `moe-s2`, counted from the recipe's seed (a
list names them); its `from`, and `as_long_as`, then mean the entry of the same seed, where that was made into several,
too.

Reports compare sides: trainings that differ in nothing but the seed are one side. `side: moe` names it; left out, the
name is the id without its seed (`moe-s0` and `moe-s1` are the side `moe`).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from mixwell.core import registry, units
from mixwell.core.config import from_dict, to_dict
from mixwell.core.errors import MixwellError, nearest, shown, suggest
from mixwell.lm.training.config import BUDGETS as LENGTHS
from mixwell.parallel.team import Layout
from mixwell.run import yaml_data
from mixwell.run.sources import for_trainings, inputs_of, mixture_of, side_name, text_ids
from mixwell.run.stages import KINDS, EvaluateConfig, Kind, Stage
from mixwell.run.stages.adapt import with_defaults
from mixwell.run.stages.mix import Mixing, with_training
from mixwell.run.stages.models import MIXTURE_WORDS
from mixwell.run.stages.text import DataConfig
from mixwell.run.stages.train import Training

DEFAULT = Path(__file__).parent / "recipes" / "default.yaml"
RESERVED = ("data", "tokenizer", "tokens", "model")  # ids of the stages that the top-level keys make
# keys whose text may end in k, M, ...
COUNTS = {"tokens", "steps", "max_tokens", "max_bytes", "bytes", "flops", "vocab_size", "parameters"}
SUFFIXES = {**units.SUFFIXES, "K": 1e3}
BUDGETS = set(LENGTHS)
BUDGET_KEYS = BUDGETS | {"as_long_as"}  # any of them beside a training takes the place of the recipe's default
# keys whose options are often misplaced
PLACES = {"train": Training, "mix": Mixing, "data": DataConfig, "evaluate": EvaluateConfig}
MOST_THREADS = 4096
FEW = 8
MOST_STAGES = 1000  # entries, each seed counted
LONGEST_NAME = 100  # characters of a name that becomes a folder
SEED = range(2**63)
FAMILY_OF = {"router": "experts.routers", "channel_mixer": "experts.layers", "sequence_mixer": "sequence",
             "overflow": "experts.overflow"}  # keys whose value may be the bare name of a method


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A recipe as written, with defaults."""

    name: str = "run"
    about: str = ""  # what is learnt from the run, in a sentence that is printed before it starts
    minutes: float | None = None  # what the whole run may take: token budgets are scaled to it; None = as they stand
    seed: int = 0
    threads: int | None = None  # None = OMP_NUM_THREADS, else every physical core
    data: dict[str, Any] = field(default_factory=dict)
    tokenizer: dict[str, Any] | str | None = None  # options, or a folder that holds tokenizer.json
    model: dict[str, Any] | str = field(default_factory=dict)  # options, or a Hugging Face folder
    train: dict[str, Any] = field(default_factory=dict)  # defaults of every train stage
    parallel: Layout = field(default_factory=Layout)  # of the processes that torchrun starts
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)  # how every model stage is evaluated
    stages: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if len(self.name) > LONGEST_NAME or not re.fullmatch(r"[\w][\w.-]*", self.name):
            raise MixwellError(f"name: {self.name[:LONGEST_NAME]!r} becomes a folder; use letters, digits, '.', '_' "
                               f"and '-', {LONGEST_NAME} at most.")
        if self.minutes is not None and not self.minutes > 0:
            raise MixwellError(f"minutes: {shown(self.minutes)} came; expected a number above 0.")
        if self.threads is not None and not 1 <= self.threads <= MOST_THREADS:
            raise MixwellError(f"threads: {shown(self.threads)} came; expected 1 or more, {MOST_THREADS} at most.")
        if self.seed not in SEED:
            raise MixwellError(f"seed: {shown(self.seed)} came; expected a whole number from 0 to 2^63 - 1.")
        if len(self.stages) > MOST_STAGES:
            raise MixwellError(f"stages: {len(self.stages)} came; expected {MOST_STAGES} at most, each seed counted.")


def from_plain(data: Mapping[str, Any]) -> Recipe:
    """A recipe from plain data."""
    return from_dict(Recipe, data)


def read(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply overrides such as `stages.dense.train.tokens=1M`.

    path: a file, or the bare name of an embedded recipe (`black_mamba`); None is the default one.
    Raises `MixwellError`, in a line that names the file, for a recipe that cannot be.
    """
    path = DEFAULT if path is None else _embedded(Path(path))
    data = _parse(path)
    for text in overrides:
        override(data, text)
    data = {"name": path.stem, **counted(data)}
    try:
        _check_keys(data)
        recipe = from_dict(Recipe, data)
        return replace(recipe, stages=with_seeds(recipe.stages, recipe.seed))
    except MixwellError as error:
        raise MixwellError(f"{path.name}: {str(error).removeprefix('Recipe: ')}") from error


def _check_keys(data: Mapping[str, Any]) -> None:
    """Raise where a key at the top is none but would be one elsewhere, with that place."""
    known = [option.name for option in fields(Recipe)]
    strange = [str(key) for key in data if key not in known]
    for key in strange[:FEW]:  # the first one is refused in any case
        if not nearest(key, known):
            _check_place(key, known)


def _check_place(key: str, known: Sequence[str]) -> None:
    for place, config in PLACES.items():
        inside = [option.name for option in fields(config)]
        meant = key if key in inside else nearest(key, inside)
        if meant:
            listed = ", ".join(known)
            raise MixwellError(f"unknown key {shown(key)}. Did you mean '{place}.{meant}'? Known keys: {listed}.")


def with_seeds(entries: Sequence[dict[str, Any]], first: int) -> list[dict[str, Any]]:
    """The entries, each that has `seeds` made into one for each seed; a number of them counts from `first`.

    Raises `MixwellError` for more stages than a recipe may have.
    """
    made: list[dict[str, Any]] = []
    spread: dict[str, list[int]] = {}
    for entry in entries:
        if "seeds" not in entry:
            made.append(entry)
            continue
        name = str(entry.get("id"))
        spread[name] = _seeds(entry["seeds"], first, name)
        made += [_seeded(entry, name, seed, spread) for seed in spread[name]]
        if len(made) > MOST_STAGES:
            raise MixwellError(f"stages: more than {MOST_STAGES} with their seeds; expected fewer.")
    return made


def _seeds(seeds: Any, first: int, name: str) -> list[int]:
    """The seeds that a number of them, or a list, stands for."""
    if _is_whole(seeds) and 0 < seeds <= MOST_STAGES:
        return list(range(first, first + seeds))
    listed = isinstance(seeds, list) and all(_is_whole(seed) and seed in SEED for seed in seeds)
    if listed and seeds and len(set(seeds)) == len(seeds):
        return seeds
    raise MixwellError(f"{where_of(name)}.seeds: expected how many ({MOST_STAGES} at most), or a list of different "
                       f"whole numbers, got {shown(seeds)}.")


def where_of(id: Any) -> str:
    """An entry's place, in errors; its id may yet be anything."""
    return f"stages.{str(id)[:LONGEST_NAME]}"


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _seeded(entry: Mapping[str, Any], name: str, seed: int, spread: Mapping[str, list[int]]) -> dict[str, Any]:
    """The entry of one seed."""
    if "seed" in entry:
        raise MixwellError(f"{where_of(name)}: 'seed' stands beside 'seeds'; keep one.")
    made = {k: copy.deepcopy(v) for k, v in entry.items() if k != "seeds"} | {"id": f"{name}-s{seed}", "seed": seed}
    places = [place for place in (made, made.get("train")) if isinstance(place, dict)]
    for place in places:
        for key in set(place) & {"from", "base", "as_long_as"}:
            place[key] = _of_seed(place[key], seed, spread)
    return made


def _of_seed(named: Any, seed: int, spread: Mapping[str, list[int]]) -> Any:
    """The entry of that seed, where the named one, or one in a list, was made into several."""
    if isinstance(named, list):
        return [_of_seed(one, seed, spread) for one in named]
    return f"{named}-s{seed}" if seed in spread.get(str(named), ()) else named


def _embedded(path: Path) -> Path:
    """The embedded recipe of that bare name, where no file of the user's stands in its place; else the path itself."""
    own = DEFAULT.with_name(f"{path.name}.yaml")
    bare = path.parent == Path() and not path.suffix
    if bare and not path.exists() and own.exists():
        return own
    return path


def _parse(path: Path) -> dict[str, Any]:
    if path.is_dir():
        raise MixwellError(f"{path} is a folder; expected a recipe file. A model folder goes in one: `model: {path}`.")
    try:
        data = yaml_data.read(path)
    except FileNotFoundError:
        names = sorted(p.stem for p in DEFAULT.parent.glob("*.yaml"))
        raise MixwellError(f"{path} is not there; expected a recipe (a YAML file), or one of {', '.join(names)}."
                           f"{suggest(path.name, names)}") from None
    if not isinstance(data, dict):
        raise MixwellError(f"{path}: expected keys and values such as `stages:`, got {type(data).__name__}.")
    return data


def override(data: dict[str, Any], text: str) -> None:
    """Set one key of plain data in place: `train.lr=1e-3`, `stages.dense.train.tokens=1M`, `moe.router=sinkhorn`.

    Raises `MixwellError` for text of another form.
    """
    path, equals, value = text.partition("=")
    if not equals or not path:
        raise MixwellError(f"{shown(text)}: expected key=value with dots, such as train.lr=1e-3.")
    try:
        parsed = yaml_data.parse(value, "the value")
    except MixwellError as error:
        problem = str(error).removeprefix("the value, line 1: ").partition(";")[0]
        raise MixwellError(f"{shown(text)}: the value is not YAML ({problem}); put quotes around text with special "
                           "signs.") from None
    assign(data, path, parsed)


def changed(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """A copy with other values at some key paths (`assign`); raises `MixwellError` where one leads nowhere."""
    data = copy.deepcopy(to_dict(recipe))
    known = [*(f.name for f in fields(Recipe)), *(str(entry.get("id")) for entry in recipe.stages)]
    for path, value in changes.items():
        if (first := path.split(".")[0]) not in known:
            raise MixwellError(f"{path}: no key and no stage {shown(first)}.{suggest(first, known)} "
                               f"Known: {', '.join(known)}.")
        assign(data, path, copy.deepcopy(value))
    return from_dict(Recipe, counted(data))


def value_at(recipe: Recipe, path: str) -> Any:
    """What stands at a key path."""
    data = to_dict(recipe)
    place: Any = data
    for name in _names(data, path):
        place = _step(place, name, path)
    return place


def assign(data: dict[str, Any], path: str, value: Any) -> None:
    """Set the key at `path` of a recipe's plain data in place.

    A step into the stages is a stage's id, which may also begin the path. The bare name of a method, where a mapping
    would name it (`FAMILY_OF`), takes the old method's place and keeps those options that the new one knows too.
    Raises `MixwellError` where the path goes on below a plain value.
    """
    *parents, last = _names(data, path)
    place: Any = data
    for name in parents:
        place = _step(place, name, path)
    if not isinstance(place, dict):
        raise MixwellError(f"{path}: there are no keys to set; give the whole value instead.")
    place[last] = _named(place.get(last), last, value, path)


def _names(data: Mapping[str, Any], path: str) -> list[str]:
    """The steps of a path written out: `moe.k` -> stages, moe, convert, k where k stands below the stage's verb."""
    names = path.split(".")
    entries = _entries(data)
    if names[0] in entries and names[0] not in {f.name for f in fields(Recipe)}:
        names = ["stages", *names]
    if names[0] == "stages" and len(names) > 2:
        entry = entries.get(names[1], {})
        verbs = [verb for verb in KINDS if isinstance(entry.get(verb), Mapping)]
        if verbs and names[2] in entry[verbs[0]]:
            names.insert(2, verbs[0])
    if names[0] == "model" and len(names) > 1 and names[1] in MIXTURE_WORDS and _has_mixer(data):
        names.insert(1, "channel_mixer")
    return names


def _entries(data: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The stages by id, those left out that have none."""
    listed = data.get("stages")
    entries = listed if isinstance(listed, list) else []
    return {str(entry["id"]): entry for entry in entries if isinstance(entry, Mapping) and "id" in entry}


def _has_mixer(data: Mapping[str, Any]) -> bool:
    """Whether the model's channel mixer is written out."""
    model = data.get("model")
    return isinstance(model, Mapping) and isinstance(model.get("channel_mixer"), Mapping)


def _named(old: Any, key: str, value: Any, path: str) -> Any:
    """A method's bare name with the options that it shares with the old method; any other value as it is."""
    if key not in FAMILY_OF or not isinstance(value, str):
        return value
    try:
        known = {f.name for f in fields(registry.find(value, within=FAMILY_OF[key]).module().Config)}
    except MixwellError as error:
        raise MixwellError(f"{path}: {error}") from error
    return {"method": value, **({k: v for k, v in old.items() if k in known} if isinstance(old, Mapping) else {})}


def _step(place: Any, name: str, path: str) -> Any:
    if isinstance(place, list):  # the stages, by id
        known = {str(entry.get("id")): entry for entry in place if isinstance(entry, dict)}
        if name not in known:
            raise MixwellError(f"{path}: no stage {shown(name)}.{suggest(name, known)} Stages: {', '.join(known)}.")
        return known[name]
    if not isinstance(place, dict):
        raise MixwellError(f"{path}: nothing below {shown(name)} can be set.")
    return place.setdefault(name, {})


def counted(value: Any, key: str = "") -> Any:
    """Plain data with `4M` under a counting key (`COUNTS`) turned into 4000000; another letter is a `MixwellError`."""
    if isinstance(value, dict):
        return {k: counted(v, str(k)) for k, v in value.items()}
    if isinstance(value, list):
        return [counted(v, key) for v in value]
    if not (key in COUNTS and isinstance(value, str)):
        return value
    if match := re.fullmatch(r"(\d+\.?\d*(?:[eE]\d+)?)\s*([A-Za-z]?)", value):
        if match.group(2) not in SUFFIXES:
            raise MixwellError(f"{key}: {shown(value)} ends in {match.group(2)!r}; expected k, M, G, T or P.")
        number = float(match.group(1)) * SUFFIXES[match.group(2)]
        return int(number) if number.is_integer() else number
    return value


def stages(recipe: Recipe) -> tuple[Stage, ...]:
    """The recipe's stages in the order in which they run, inputs resolved, configs checked."""
    _check_wholes(to_dict(recipe), "recipe")
    found = {stage.id: stage for stage in _base(recipe)}
    for number, entry in enumerate(recipe.stages):
        found |= _own_text(recipe, entry, found)
        stage = _entry(recipe, found, entry, f"stages[{number}]")
        found[stage.id] = stage
    return tuple(for_trainings(stage, found) for stage in found.values())


def _own_text(recipe: Recipe, entry: Any, found: Mapping[str, Stage]) -> dict[str, Stage]:
    """The stages that make an entry's own text, which its seeds share; none where it reads the run's."""
    if not isinstance(entry, Mapping) or entry.get("data") is None:
        return {}
    data, tokens = text_ids(entry).values()
    options = entry["data"]
    where = f"{where_of(entry.get('id'))}.data"
    if not isinstance(options, Mapping):
        raise MixwellError(f"{where}: expected keys and values such as {{domains: {{mine: texts}}}}, got "
                           f"{shown(options)}.")
    usual = {key: value for key, value in recipe.data.items() if key not in ("domains", "validation")}
    config = _config("data", "data", {**usual, **options}, where)
    made = Stage(id=data, kind="data", method="data", config=config, inputs={"data": "data"}, seed=recipe.seed)
    if data in found and found[data] != made:
        raise MixwellError(f"{where}: the id {data!r} is taken by a stage with other text; call this entry otherwise.")
    both = {"data": data, "tokenizer": "tokenizer"}
    return {data: made, tokens: _made(tokens, "tokens", {}, both, recipe.seed)}


def _check_wholes(value: Any, where: str) -> None:
    """Refuse whole numbers that no counter of 64 bits holds: nothing here is meant to be as large."""
    if isinstance(value, dict):
        for key, item in value.items():
            _check_wholes(item, f"{where}.{key}")
    if isinstance(value, list):
        for number, item in enumerate(value):
            _check_wholes(item, f"{where}[{number}]")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise MixwellError(f"{where}: a number of {len(str(value))} digits came; expected one below 2^63.")


def _base(recipe: Recipe) -> list[Stage]:
    """The stages that the top-level keys make."""
    seed = recipe.seed
    options = {"path": recipe.tokenizer} if isinstance(recipe.tokenizer, str) else recipe.tokenizer or {}
    kind = "load" if isinstance(recipe.model, str) else "build"
    settings = {"path": recipe.model} if isinstance(recipe.model, str) else recipe.model
    model = _made("model", kind, settings, {"tokenizer": "tokenizer"}, seed)
    if kind == "load" and not {"path", "vocab_size"} & set(options):
        options = {"path": model.config.path, **options}
    both = {"data": "data", "tokenizer": "tokenizer"}
    return [_made("data", "data", recipe.data, {}, seed),
            _made("tokenizer", "tokenizer", options, {"data": "data"}, seed),
            _made("tokens", "tokens", {}, both, seed), model]


def _made(id: str, kind: str, options: Mapping[str, Any], inputs: Mapping[str, str], seed: int) -> Stage:
    config = _config(kind, kind, options, id)
    return Stage(id=id, kind=kind, method=kind, config=config, inputs=inputs, seed=seed)


def _config(kind: str, method: str, options: Mapping[str, Any], where: str) -> Any:
    """The config of a kind, or of the method that it runs."""
    parse = KINDS[kind].parse
    if parse:
        return parse(options, where)
    own = registry.find(method).module().Config
    return from_dict(own, options, where)


def _entry(recipe: Recipe, found: Mapping[str, Stage], entry: Any, place: str) -> Stage:
    if not isinstance(entry, dict) or not isinstance(entry.get("id"), str):
        raise MixwellError(f"{place}: expected an entry with an id, such as {{id: dense, train: {{tokens: 1M}}}}.")
    id, where = entry["id"], f"stages.{entry['id']}"
    if len(id) > LONGEST_NAME or not re.fullmatch(r"[A-Za-z0-9][\w-]*", id):
        raise MixwellError(f"{place}: the id {id[:LONGEST_NAME]!r} becomes a folder; use letters, digits, '_' and "
                           f"'-', {LONGEST_NAME} at most.")
    if id in found or id in RESERVED:
        raise MixwellError(f"{place}: the id {id!r} is taken; give each stage its own.")
    name, options = _verb(entry, where)
    kind = KINDS[name]
    method = name
    if kind.family:
        method, options = _method(kind, options, where, name)
    if name == "train":
        has_own = BUDGET_KEYS & set(options)
        dropped = BUDGETS if has_own else set()  # a stage's own budget takes the place of the default
        options = {**{k: v for k, v in recipe.train.items() if k not in dropped}, **options}
    if name == "mix":
        usual = {key: value for key, value in recipe.train.items() if key not in BUDGETS}
        options = with_training(options, usual, where)
    if name == "adapt":
        options = with_defaults(options, recipe.train)
    seed = options.pop("seed", recipe.seed)
    if not _is_whole(seed) or seed not in SEED:
        raise MixwellError(f"{where}.seed: expected a whole number from 0 to 2^63 - 1, got {shown(seed)}.")
    side = entry.get("side") or side_name(id)
    if not isinstance(side, str):
        raise MixwellError(f"{where}.side: expected a name, got {shown(side)}.")
    config = _config(name, method, options, f"{where}.{name}")
    if kind.many or name in ("adapt", "federate"):
        method = config.method
    inputs = inputs_of(kind, entry, found, where)
    if name == "train":
        inputs |= mixture_of(config.weights, found, f"{where}.train.weights")
    return Stage(id=id, kind=name, method=method, config=config, inputs=inputs, seed=seed, side=side)


def _verb(entry: Mapping[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    """The kind that the entry names, and its options: those below the verb and those beside it."""
    verb = _only_verb(entry, where)
    under = below(verb, entry[verb], where)
    taken = {"id", "from", "side", "data", verb} | ({"base"} if KINDS[verb].many else set())
    beside = {key: value for key, value in entry.items() if key not in taken}
    if twice := sorted(set(under) & set(beside)):
        raise MixwellError(f"{where}: {shown(twice[0])} stands twice, below {verb!r} and beside it; keep one.")
    return verb, {**beside, **under}


def _only_verb(entry: Mapping[str, Any], where: str) -> str:
    verbs = [name for name, kind in KINDS.items() if kind.named_in_recipe]
    named = [key for key in entry if key in verbs]
    if len(named) == 1:
        return named[0]
    if set(named) == {"adapt", "train"}:
        raise MixwellError(f"{where}: an adapter's training stands beside `adapt`: {{id: {entry.get('id')}, adapt: "
                           "lora, tokens: 1M, lr: 1e-3}, without `train`.")
    known = ("id", "from", "base", "seed", "side", "data", *verbs)
    strange = [str(key) for key in entry if key not in known]
    hint = suggest(strange[0], verbs) if strange and not named else ""
    came = " and ".join(named) or ", ".join(map(shown, strange)) or "none"
    raise MixwellError(f"{where}: expected one verb, got {came}.{hint} Verbs: {', '.join(verbs)}.")


def below(verb: str, value: Any, where: str) -> dict[str, Any]:
    """The options below a verb; a bare word there means one of them. Raises `MixwellError` for what is neither."""
    bare = KINDS[verb].bare
    if value is None:
        return {}
    if bare and isinstance(value, str):
        return {bare: value}
    if not isinstance(value, dict):
        or_bare = f" or a {bare}" if bare else ""
        raise MixwellError(f"{where}.{verb}: expected options{or_bare}, got {shown(value)}.")
    return value


def _method(kind: Kind, options: dict[str, Any], where: str, verb: str) -> tuple[str, dict[str, Any]]:
    rest = {k: v for k, v in options.items() if k != "method"}
    if not isinstance(options.get("method"), str):
        known = ", ".join(e.name.rpartition(".")[2] for e in registry.family(kind.family))
        raise MixwellError(f"{where}.{verb}: name a method. Known: {known}.")
    try:
        return registry.find(options["method"], within=kind.family).name, rest
    except MixwellError as error:
        raise MixwellError(f"{where}.{verb}: {error}") from error
