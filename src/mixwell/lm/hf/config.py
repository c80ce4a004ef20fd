"""config.json to and from `ModelConfig` data, for the decoders of `families`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mixwell.core.config import from_dict, to_dict
from mixwell.core.errors import MixwellError, suggest
from mixwell.lm.config import ModelConfig, expanded
from mixwell.lm.hf.families import EXPERT_KEYS, FAMILIES, HARMLESS, MIXER_KEYS, ONLY, SHARED_KEYS, Experts, Family

_TOP_K = "experts.routers.top_k"
SWITCH = 0.01  # coefficient of the switch loss in a mixture that names no balance rules
SLIDING = "sliding_attention"  # the kind of a layer with a window
_ROPE = {"rope_theta", "rope_scaling", "rope_parameters"}


def read_config(config: Mapping[str, Any], where: str = "config.json") -> dict[str, Any]:
    """`ModelConfig` data of a Hugging Face config. What mixwell would compute otherwise raises `MixwellError`."""
    model_type = config.get("model_type")
    family = FAMILIES.get(str(model_type))
    if family is None:
        near, known = suggest(str(model_type), FAMILIES), ", ".join(FAMILIES)
        raise MixwellError(f"{where}: model_type {model_type!r} is not known.{near} Known: {known} and mixwell's own.")
    _check_keys(config, str(model_type), family, where)
    full = {**family.defaults, **config}
    for key in _required(family):
        if full.get(key) is None:
            raise MixwellError(f"{where}: {key} is missing; a {model_type} model needs it.")
    arch = {field: full[key] for key, field in SHARED_KEYS.items() if key in full}
    arch["rope_theta"], arch["rope_scaling"] = _read_rope(full, where)
    arch["sequence_mixer"] = _read_sequence(full, family)
    arch["channel_mixer"] = _read_channel(full, family, where)
    arch["architecture"] = model_type
    return to_dict(from_dict(ModelConfig, arch, where))


def _required(family: Family) -> list[str]:
    keys = ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"]
    if family.experts is not None and family.experts.per_layer:
        return keys
    return [*keys, "intermediate_size"]


def _check_keys(config: Mapping[str, Any], model_type: str, family: Family, where: str) -> None:
    known = _known_keys(family)
    for key, value in config.items():
        if key in ONLY:
            if value not in ONLY[key]:
                raise MixwellError(f"{where}: {key} is {value!r}; mixwell computes {ONLY[key][0]!r} only.")
            continue
        off = value in (None, False)
        if not (key in known or off or key.startswith("_")):
            raise MixwellError(f"{where}: {key} = {value!r} is not known for {model_type} and may change its results; "
                               "remove it if it does not.")
    if not (family.head_dim or _heads_fill_width(config)):
        raise MixwellError(f"{where}: head_dim = {config['head_dim']}; {model_type} has hidden_size / "
                           "num_attention_heads only.")


def _known_keys(family: Family) -> set[str]:
    """Keys that are read, and those that change nothing."""
    known = {"intermediate_size"}.union(SHARED_KEYS, family.mixer_keys, _ROPE, HARMLESS, family.harmless)
    known |= set(family.defaults) - set(MIXER_KEYS)
    if family.layer_types:
        known.add("layer_types")
    if family.experts:
        known |= EXPERT_KEYS
    return known


def _heads_fill_width(config: Mapping[str, Any]) -> bool:
    """Whether a head_dim, where there is one, is the width over the number of heads."""
    size, heads = config.get("head_dim"), config.get("num_attention_heads")
    if not size or not heads:
        return True
    return size * heads == config.get("hidden_size")


def _read_rope(full: Mapping[str, Any], where: str) -> tuple[float, dict[str, Any] | None]:
    parameters = full.get("rope_parameters") or {}
    options = dict(full.get("rope_scaling") or parameters)
    theta = parameters.get("rope_theta", full["rope_theta"])
    theta = options.pop("rope_theta", theta)
    old = options.pop("type", "default")
    kind = options.pop("rope_type", None) or old
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
    whole = spec | {"sliding_window": None}
    return [spec if slides else whole for slides in _sliding(full)]


def _sliding(full: Mapping[str, Any]) -> list[bool]:
    """Whether each layer has a window."""
    kinds = full.get("layer_types")
    if kinds:
        return [kind == SLIDING for kind in kinds]
    first, layers = full["max_window_layers"], full["num_hidden_layers"]
    return [layer >= first for layer in range(layers)]


def _read_channel(full: Mapping[str, Any], family: Family, where: str) -> dict[str, Any] | list[dict[str, Any]]:
    dense = {"method": "experts.layers.swiglu", "hidden_dim": full.get("intermediate_size")}
    if family.experts is None:
        return dense
    sparse = _read_experts(full, family.experts, where)
    if not family.experts.per_layer:
        return sparse
    layers = [sparse if routed else dense for routed in _routed(full)]
    if dense not in layers:
        return sparse
    if dense["hidden_dim"] is None:
        raise MixwellError(f"{where}: intermediate_size is missing; the dense layers need it.")
    return layers


def _routed(full: Mapping[str, Any]) -> list[bool]:
    """Whether each layer has experts: every `decoder_sparse_step`-th, but those of `mlp_only_layers`."""
    step, layers = full["decoder_sparse_step"], full["num_hidden_layers"]
    if step <= 0:
        return [False] * layers
    routed = [number % step == 0 for number in range(1, layers + 1)]
    for layer in full["mlp_only_layers"] or ():
        if layer in range(layers):
            routed[layer] = False
    return routed


def _read_experts(full: Mapping[str, Any], experts: Experts, where: str) -> dict[str, Any]:
    other = "num_local_experts" if experts.count == "num_experts" else "num_experts"
    count = full.get(other) or full[experts.count]
    k = full["num_experts_per_tok"]
    renormalise = bool(full["norm_topk_prob"]) if experts.norm_key else True
    if k == 1 and renormalise:
        raise MixwellError(f"{where}: one expert per token with renormalised weights leaves the router without effect; "
                           "mixwell does not build such a model.")
    router = {"method": _TOP_K, "k": k, "scores": "softmax", "renormalise": renormalise}
    balance = {"switch": full["router_aux_loss_coef"]}
    return {"method": "experts.layers.moe", "num_experts": count, "hidden_dim": full[experts.hidden],
            "router": router, "balance": balance}


def comparable(arch: Mapping[str, Any]) -> dict[str, Any]:
    """`arch` reduced to what decides its logits, every default written out: equal models give equal data."""
    kv_heads = arch.get("num_kv_heads") or arch["num_heads"]
    head_dim = arch.get("head_dim") or arch["dim"] // arch["num_heads"]
    plain = expanded({**arch, "num_kv_heads": kv_heads, "head_dim": head_dim})
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
    config: dict[str, Any] = {"architectures": [family.class_name], "model_type": model_type, "hidden_act": "silu"}
    config |= {key: plain[field] for key, field in SHARED_KEYS.items()}
    if not family.head_dim:
        del config["head_dim"]
    config |= _write_rope(plain)
    config |= _write_sequence(plain["sequence_mixer"], family)
    config |= _write_channel(plain["channel_mixer"], family, _aux(arch))
    return config


def _write_sequence(mixers: Sequence[Mapping[str, Any]], family: Family) -> dict[str, Any]:
    first = mixers[0]
    config: dict[str, Any] = {key: first.get(MIXER_KEYS[key]) for key in family.mixer_keys}
    if not family.window_switch:
        return config
    windows = [mixer.get("sliding_window") or 0 for mixer in mixers]
    config["sliding_window"] = max(windows) or None
    config["use_sliding_window"] = any(windows)
    if family.layer_types:
        config["layer_types"] = [SLIDING if window else "full_attention" for window in windows]
    return config


def _write_channel(mixers: Sequence[Mapping[str, Any]], family: Family, aux: float) -> dict[str, Any]:
    sparse = [mixer for mixer in mixers if "num_experts" in mixer]
    dense = [mixer for mixer in mixers if mixer not in sparse]
    first = dense[0] if dense else mixers[0]
    config = {"intermediate_size": first.get("hidden_dim")}
    if family.experts is None or not sparse:
        return config
    config |= _write_experts(sparse[0], family.experts, aux)
    if family.experts.per_layer:
        config["decoder_sparse_step"] = 1
        config["mlp_only_layers"] = [layer for layer, mixer in enumerate(mixers) if mixer in dense]
    return config


def _write_rope(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Both spellings: rope_theta and rope_scaling are what other readers look for."""
    scaling = dict(plain["rope_scaling"] or {})
    if scaling:
        scaling["rope_type"] = scaling.pop("type")
    theta = {"rope_theta": plain["rope_theta"]}
    parameters = scaling or {"rope_type": "default"}
    return theta | {"rope_scaling": scaling or None, "rope_parameters": parameters | theta}


def _write_experts(options: Mapping[str, Any], experts: Experts, aux: float) -> dict[str, Any]:
    router = options.get("router", {})
    config = {
        experts.count: options["num_experts"],
        experts.hidden: options.get("hidden_dim"),
        "num_experts_per_tok": router.get("k"),
        "router_aux_loss_coef": aux,
        "output_router_logits": False,
    }
    if experts.norm_key:
        config["norm_topk_prob"] = router.get("renormalise")
    return config


def _aux(arch: Mapping[str, Any]) -> float:
    """The coefficient of the switch loss, 0 where there is none."""
    for options in expanded(arch)["channel_mixer"]:
        rules = options.get("balance")
        if rules is None:
            rules = {"switch": SWITCH} if "num_experts" in options else {}
        value = rules.get("switch")
        if isinstance(value, Mapping):
            value = value["coefficient"]
        if value is not None:
            return float(value)
    return 0.0


def expresses(model_type: str, arch: Mapping[str, Any]) -> bool:
    """Whether a `model_type` model computes what `arch` says: what is written reads back as the same model."""
    if FAMILIES[model_type].whole_heads and arch["dim"] % arch["num_heads"]:
        return False
    try:
        again = read_config(write_config(arch, model_type))
        return comparable(again) == comparable(arch)
    except MixwellError:
        return False


def model_type_of(arch: Mapping[str, Any]) -> str:
    """The Hugging Face decoder that computes `arch`: the one it came from, else the first that can, else "mixwell"."""
    first = str(arch.get("architecture", "auto"))
    order = [first, *FAMILIES] if first in FAMILIES else list(FAMILIES)
    return next((name for name in order if expresses(name, arch)), "mixwell")
