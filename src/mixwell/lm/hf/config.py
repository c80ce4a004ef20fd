"""config.json to and from `ModelConfig` data, for the decoders of `families`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixwell.core.config import from_dict, to_dict
from mixwell.core.errors import MixwellError, suggest
from mixwell.lm.config import ModelConfig, expanded
from mixwell.lm.hf.families import EXPERT_KEYS, FAMILIES, HARMLESS, MIXER_KEYS, ONLY, SHARED_KEYS, Experts, Family

_TOP_K = "experts.routers.top_k"
SWITCH = 0.01  # coefficient of the switch loss in a mixture that names no balance rules
_ROPE = {"rope_theta", "rope_scaling", "rope_parameters"}


def read_config(config: Mapping[str, Any], where: str = "config.json") -> dict[str, Any]:
    """`ModelConfig` data of a Hugging Face config. What mixwell would compute otherwise raises `MixwellError`."""
    model_type = config.get("model_type")
    family = FAMILIES.get(str(model_type))
    if family is None:
        raise MixwellError(f"{where}: model_type {model_type!r} is not known.{suggest(str(model_type), FAMILIES)} "
                           f"Known: {', '.join(FAMILIES)} and mixwell's own.")
    _check_keys(config, str(model_type), family, where)
    full = {**family.defaults, **config}
    if (missing := [k for k in _required(family) if full.get(k) is None]):
        raise MixwellError(f"{where}: {missing[0]} is missing; a {model_type} model needs it.")
    arch = {field: full[key] for key, field in SHARED_KEYS.items() if key in full}
    arch |= dict(zip(("rope_theta", "rope_scaling"), _read_rope(full, where)))
    arch["sequence_mixer"] = _read_sequence(full, family)
    arch["channel_mixer"] = _read_channel(full, family, where)
    return to_dict(from_dict(ModelConfig, arch | {"architecture": model_type}, where))


def _required(family: Family) -> list[str]:
    keys = ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"]
    return [*keys, "intermediate_size"] if family.experts is None or not family.experts.per_layer else keys


def _check_keys(config: Mapping[str, Any], model_type: str, family: Family, where: str) -> None:
    known = set(SHARED_KEYS) | set(family.mixer_keys) | _ROPE | HARMLESS | family.harmless | {"intermediate_size"}
    known |= set(family.defaults) - set(MIXER_KEYS)
    known |= {"layer_types"} if family.layer_types else set()
    known |= EXPERT_KEYS if family.experts else set()
    for key, value in config.items():
        if key in ONLY:
            if value not in ONLY[key]:
                raise MixwellError(f"{where}: {key} is {value!r}; mixwell computes {ONLY[key][0]!r} only.")
        elif key not in known and value not in (None, False) and not key.startswith("_"):
            raise MixwellError(f"{where}: {key} = {value!r} is not known for {model_type} and may change its results; "
                               "remove it if it does not.")
    if not family.head_dim and (config.get("head_dim") or 0) * config.get("num_attention_heads", 0) not in (
            0, config.get("hidden_size")):
        raise MixwellError(f"{where}: head_dim = {config['head_dim']}; {model_type} has hidden_size / "
                           "num_attention_heads only.")


def _read_rope(full: Mapping[str, Any], where: str) -> tuple[float, dict[str, Any] | None]:
    options = dict(full.get("rope_scaling") or full.get("rope_parameters") or {})
    theta = (full.get("rope_parameters") or {}).get("rope_theta", full["rope_theta"])
    theta = options.pop("rope_theta", theta)
    old, kind = options.pop("type", "default"), options.pop("rope_type", None)
    kind = kind or old
    if options.pop("partial_rotary_factor", 1) not in (1, None):
        raise MixwellError(f"{where}: partial_rotary_factor is not 1; mixwell rotates whole heads only.")
    if kind == "default" and not options:
        return theta, None
    if kind == "llama3":
        options.setdefault("original_max_position_embeddings", full["max_position_embeddings"])
    return theta, {"type": kind, **options}


def _read_sequence(full: Mapping[str, Any], family: Family) -> dict[str, Any] | list[dict[str, Any]]:
    options = {MIXER_KEYS[key]: full[key] for key in family.mixer_keys}
    if family.window_switch and not full["use_sliding_window"]:
        options["sliding_window"] = None
    spec = {"method": "sequence.attention", "qk_norm": family.qk_norm, **options}
    if not family.layer_types or options["sliding_window"] is None:
        return spec
    kinds = full.get("layer_types") or ["sliding_attention" if i >= full["max_window_layers"] else "full_attention"
                                        for i in range(full["num_hidden_layers"])]
    return [spec | ({} if kind == "sliding_attention" else {"sliding_window": None}) for kind in kinds]


def _read_channel(full: Mapping[str, Any], family: Family, where: str) -> dict[str, Any] | list[dict[str, Any]]:
    dense = {"method": "experts.layers.swiglu", "hidden_dim": full.get("intermediate_size")}
    if family.experts is None:
        return dense
    sparse = _read_experts(full, family.experts, where)
    if not family.experts.per_layer:
        return sparse
    step, skipped = full["decoder_sparse_step"], set(full["mlp_only_layers"] or ())
    layers = [sparse if step > 0 and (i + 1) % step == 0 and i not in skipped else dense
              for i in range(full["num_hidden_layers"])]
    if dense in layers and dense["hidden_dim"] is None:
        raise MixwellError(f"{where}: intermediate_size is missing; the dense layers need it.")
    return layers if dense in layers else sparse


def _read_experts(full: Mapping[str, Any], experts: Experts, where: str) -> dict[str, Any]:
    other = "num_local_experts" if experts.count == "num_experts" else "num_experts"
    renormalise = bool(full["norm_topk_prob"]) if experts.norm_key else True
    if full["num_experts_per_tok"] == 1 and renormalise:
        raise MixwellError(f"{where}: one expert per token with renormalised weights leaves the router without effect; "
                           "mixwell does not build such a model.")
    return {"method": "experts.layers.moe", "num_experts": full.get(other) or full[experts.count],
            "hidden_dim": full[experts.hidden],
            "router": {"method": _TOP_K, "k": full["num_experts_per_tok"], "scores": "softmax",
                       "renormalise": renormalise},
            "balance": {"switch": full["router_aux_loss_coef"]}}


def comparable(arch: Mapping[str, Any]) -> dict[str, Any]:
    """`arch` reduced to what decides its logits, every default written out: equal models give equal data."""
    resolved = {**arch, "num_kv_heads": arch.get("num_kv_heads") or arch["num_heads"],
                "head_dim": arch.get("head_dim") or arch["dim"] // arch["num_heads"]}
    plain = expanded(resolved)
    del plain["architecture"]
    for options in plain["channel_mixer"]:
        options.pop("balance", None)
        router = options.get("router", {})
        if router.get("method") == _TOP_K:
            del router["jitter"]
            if router["renormalise"] is None:
                router["renormalise"] = router["k"] > 1
    return plain


def write_config(arch: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    """config.json of `arch` as a `model_type` model. What that decoder cannot say is left out; see `expresses`."""
    family, plain = FAMILIES[model_type], comparable(arch)
    mixers, channels = plain["sequence_mixer"], plain["channel_mixer"]
    config: dict[str, Any] = {"architectures": [family.class_name], "model_type": model_type, "hidden_act": "silu"}
    config |= {key: plain[field] for key, field in SHARED_KEYS.items() if key != "head_dim" or family.head_dim}
    config |= _write_rope(plain)
    config |= {key: mixers[0].get(MIXER_KEYS[key]) for key in family.mixer_keys}
    if family.window_switch:
        windows = [m.get("sliding_window") for m in mixers]
        config |= {"sliding_window": max((w for w in windows if w), default=None), "use_sliding_window": any(windows)}
        if family.layer_types:
            config["layer_types"] = ["sliding_attention" if w else "full_attention" for w in windows]
    sparse = [c for c in channels if "num_experts" in c]
    dense = [c for c in channels if "num_experts" not in c]
    config["intermediate_size"] = (dense or channels)[0].get("hidden_dim")
    if family.experts is not None and sparse:
        config |= _write_experts(sparse[0], family.experts, _aux(arch))
        if family.experts.per_layer:
            config |= {"decoder_sparse_step": 1, "mlp_only_layers": [i for i, c in enumerate(channels) if c in dense]}
    return config


def _write_rope(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Both spellings: rope_theta and rope_scaling are what other readers look for."""
    scaling = dict(plain["rope_scaling"]) if plain["rope_scaling"] else None
    if scaling:
        scaling["rope_type"] = scaling.pop("type")
    theta = {"rope_theta": plain["rope_theta"]}
    parameters = {**(scaling or {"rope_type": "default"}), **theta}
    return theta | {"rope_scaling": scaling, "rope_parameters": parameters}


def _write_experts(options: Mapping[str, Any], experts: Experts, aux: float) -> dict[str, Any]:
    router = options.get("router", {})
    config = {experts.count: options["num_experts"], experts.hidden: options.get("hidden_dim"),
              "num_experts_per_tok": router.get("k"), "router_aux_loss_coef": aux, "output_router_logits": False}
    return config | {"norm_topk_prob": router.get("renormalise")} if experts.norm_key else config


def _aux(arch: Mapping[str, Any]) -> float:
    """The coefficient of the switch loss, 0 where there is none."""
    for options in expanded(arch)["channel_mixer"]:
        rules = options.get("balance")
        value = SWITCH if rules is None and "num_experts" in options else (rules or {}).get("switch")
        if value is not None:
            return float(value["coefficient"] if isinstance(value, Mapping) else value)
    return 0.0


def expresses(model_type: str, arch: Mapping[str, Any]) -> bool:
    """Whether a `model_type` model computes what `arch` says: what is written reads back as the same model."""
    if FAMILIES[model_type].whole_heads and arch["dim"] % arch["num_heads"]:
        return False
    try:
        return comparable(read_config(write_config(arch, model_type))) == comparable(arch)
    except MixwellError:
        return False


def model_type_of(arch: Mapping[str, Any]) -> str:
    """The Hugging Face decoder that computes `arch`: the one it came from, else the first that can, else "mixwell"."""
    first = str(arch.get("architecture", "auto"))
    order = [first, *FAMILIES] if first in FAMILIES else list(FAMILIES)
    return next((name for name in order if expresses(name, arch)), "mixwell")
