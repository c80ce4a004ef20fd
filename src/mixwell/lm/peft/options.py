"""What a PEFT folder's `adapter_config.json` asks for: read whole, and refused where it is not understood."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mixwell.core.errors import MixwellError, shown, suggest
from mixwell.core.files import read_json
from mixwell.formats.plain import Schema, check_object, either, mapping, number, optional, sequence, text, whole
from mixwell.lm.peft.places import BASE, CONFIG, PACKING

KINDS = ("LORA", "IA3", "BOFT", "OFT", "LN_TUNING")
UNKNOWN = ("lora_bias", "use_qalora", "use_bdlora", "layer_replication", "trainable_token_indices", "arrow_config",
           "kasa_config", "velora_config", "alora_invocation_tokens", "monteclora_config", "coft")  # change the result
READ = ("peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern",
        "target_modules", "target_parameters", "exclude_modules", "layers_to_transform", "layers_pattern",
        "modules_to_save", "feedforward_modules", "init_lora_weights", "fan_in_fan_out", "bias", "boft_block_size",
        "boft_block_num", "boft_n_butterfly_factor", "boft_dropout", "oft_block_size", "module_dropout", "block_share",
        "use_cayley_neumann", "num_cayley_neumann_terms")
# of the training, of other programs, or about the folder: the file's tensors mean the same whatever they say
BESIDE = ("alora_invocation_tokens", "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying",
          "eps", "eva_config", "inference_mode", "init_ia3_weights", "init_weights", "loftq_config", "lora_ga_config",
          "megatron_config", "megatron_core", "peft_version", "qalora_group_size", "revision", "runtime_config",
          "task_type")
KNOWN = frozenset((*READ, *BESIDE, *UNKNOWN, PACKING, BASE))
CHANGED_BASES = ("pissa", "olora", "corda", "loftq", "lora_ga")  # starts that take themselves out of the base
ALL_LINEAR = "all-linear"  # in PEFT's words
EXPRESSIONS = "target_modules", "feedforward_modules"  # lists of names, or one regular expression
PATTERNS = "rank_pattern", "alpha_pattern"  # whose keys are regular expressions
RATES = "lora_dropout", "boft_dropout", "module_dropout"
SCHEMA: Schema = {
    **dict.fromkeys(EXPRESSIONS, optional(either(text(), sequence(text())))),
    **dict.fromkeys(("target_parameters", "modules_to_save"), optional(sequence(text()))),
    **dict.fromkeys(PATTERNS, optional(mapping())), **dict.fromkeys(RATES, optional(number(0, 1))),
    "num_cayley_neumann_terms": whole(0, 1000), PACKING: optional(text())}


def read_options(folder: Path) -> dict[str, Any]:
    """The config of the folder; one that asks for what is not understood raises `MixwellError`."""
    path = folder / CONFIG
    config = read_json(path)
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind not in KINDS:
        raise MixwellError(f"{path}: peft_type is {shown(kind)}; {', '.join(KINDS)} are read.")
    found: dict[str, Any] = config
    _check_keys(found, path)
    check_object(found, SCHEMA, str(path))
    _check_expressions(found, path)
    if kind == "LORA":
        _check_low_rank(found, path)
    return found


def _check_keys(config: Mapping[str, Any], path: Path) -> None:
    """A key that says something and is not known may change the result; one that says nothing does not."""
    strange = [key for key, value in config.items() if key not in KNOWN and value]
    if strange:
        near = suggest(strange[0], sorted(KNOWN))
        raise MixwellError(f"{path}: unknown key {shown(strange[0])}.{near} It may change the result; take it out "
                           "where it does not.")
    asked = [name for name in UNKNOWN if config.get(name)]
    if asked:
        raise MixwellError(f"{path} asks for {', '.join(asked)}, which would change the result and is not understood.")


def _check_expressions(config: Mapping[str, Any], path: Path) -> None:
    """What is read as a regular expression must be one."""
    alone = [config[key] for key in EXPRESSIONS if isinstance(config.get(key), str)]
    keys = [pattern for key in PATTERNS for pattern in config.get(key) or ()]
    for expression in (*alone, *keys):
        try:
            re.compile(expression)
        except re.error as error:
            raise MixwellError(f"{path}: {shown(expression)} is no regular expression ({error}).") from error


def _check_low_rank(config: Mapping[str, Any], path: Path) -> None:
    if "lora_alpha" not in config:
        raise MixwellError(f"{path} has no lora_alpha, so how much the change counts is not known.")
    alphas = {"lora_alpha": config["lora_alpha"], **(config.get("alpha_pattern") or {})}
    for name, alpha in alphas.items():
        if not _is_number(alpha) or not alpha > 0:
            raise MixwellError(f"{path}: {name} is {shown(alpha)}; expected a number above 0.")
    ranks = {"r": config.get("r", 8), **(config.get("rank_pattern") or {})}
    for name, rank in ranks.items():
        counted = isinstance(rank, int) and _is_number(rank)
        if not counted or rank < 1:
            raise MixwellError(f"{path}: {name} is {shown(rank)}; expected a whole number, 1 or more.")
    start = str(config.get("init_lora_weights"))
    if start.startswith(CHANGED_BASES):
        raise MixwellError(f"{path}: init_lora_weights is {shown(start)}, which took the start out of the base's own "
                           "weights; save it as a plain LoRA (PEFT: path_initial_model_for_weight_conversion).")


def _is_number(value: Any) -> bool:
    counted = isinstance(value, (int, float))
    return counted and not isinstance(value, bool)


def named(path: str, names: Iterable[str]) -> bool:
    """Whether one of the names is the path or its end behind a dot."""
    ends = tuple(f".{name}" for name in names)
    inside = f".{path}"
    return inside.endswith(ends)


def targeted(path: str, targets: Any) -> bool:
    """Whether `target_modules` means the module at a path: by its end, or as a regular expression of all of it."""
    if isinstance(targets, str):
        return re.fullmatch(targets, path) is not None
    return named(path, targets)


def check_targets(config: Mapping[str, Any], modules: Iterable[str], parameters: Iterable[str]) -> None:
    """Refuse a target that is the name of nothing in the model: the adapter was made for another."""
    paths = list(modules)
    targets = config.get("target_modules") or []
    wanted = [targets] if isinstance(targets, str) else list(targets)
    for name in wanted:
        own = targets if isinstance(targets, str) else [name]
        if name != ALL_LINEAR and not any(targeted(path, own) for path in paths):
            raise _names_nothing("target_modules", name, paths)
    tensors = list(parameters)
    for name in config.get("target_parameters") or ():
        if not any(named(path, [name]) for path in tensors):
            raise _names_nothing("target_parameters", name, tensors)


def _names_nothing(key: str, name: str, paths: Iterable[str]) -> MixwellError:
    ends = {path.rpartition(".")[2] for path in paths}
    near = suggest(name, sorted(ends))
    return MixwellError(f"{key}: {shown(name)} names nothing in this model.{near} The adapter was made for another "
                        "base.")


def rank_at(config: Mapping[str, Any], path: str) -> int:
    """r of a module: of the pattern that fits."""
    usual = config.get("r", 8)
    return int(_by_pattern(config.get("rank_pattern"), path, usual))


def alpha_at(config: Mapping[str, Any], path: str) -> float:
    """alpha of a module: of the pattern that fits."""
    usual = config["lora_alpha"]
    return float(_by_pattern(config.get("alpha_pattern"), path, usual))


def _by_pattern(patterns: Mapping[str, Any] | None, path: str, default: Any) -> Any:
    for pattern, own in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", path):
            return own
    return default
