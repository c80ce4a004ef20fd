"""config.json to `ModelConfig` data, for the decoders of `families`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixwell.core.config import from_dict, to_dict
from mixwell.core.errors import MixwellError, shown, suggest
from mixwell.lm.config import ModelConfig
from mixwell.lm.hf.experts import read_experts
from mixwell.lm.hf.families import FAMILIES
from mixwell.lm.hf.forms import EXPERT_COUNTS, HARMLESS, ONLY, SHARED_KEYS, SWIGLU, Family, Key
from mixwell.lm.hf.layers import FULL, SLIDING, routed, sliding, still, window
from mixwell.lm.hf.rope import ROPE_KEYS, read_rope, read_sliding_rope, rotary_dim

Keys = Mapping[str, Any]
Spec = dict[str, Any] | list[dict[str, Any]]


def as_key(option: str | Key) -> Key:
    """An option under a key, with the way between their values."""
    return option if isinstance(option, Key) else Key(option)


def model_keys(family: Family) -> dict[str, Key]:
    """Config keys of the fields of ModelConfig: the shared ones, but where the family has its own."""
    own = {key: as_key(option) for key, option in family.keys.items()}
    taken = {key.option for key in own.values()}
    if not family.head_dim:
        taken.add("head_dim")
    if not family.kv_heads:
        taken.add("num_kv_heads")
    shared = {key: Key(option) for key, option in SHARED_KEYS.items() if option not in taken}
    return shared | own


def read_config(config: Keys, where: str = "config.json") -> dict[str, Any]:
    """`ModelConfig` data of a Hugging Face config. What mixwell would compute otherwise raises `MixwellError`."""
    model_type = str(config.get("model_type"))
    family = FAMILIES.get(model_type)
    if family is None:
        near, known = suggest(model_type, FAMILIES), ", ".join(FAMILIES)
        raise MixwellError(f"{where}: model_type {config.get('model_type')!r} is not known.{near} Known: {known} and "
                           "mixwell's own.")
    _refuse_quantised(config, where)
    _check_keys(config, model_type, family, where)
    full = {**family.defaults, **config}
    for key in _required(family):
        if full.get(key) is None:
            raise MixwellError(f"{where}: {key} is missing; a {model_type} model needs it.")
    return to_dict(from_dict(ModelConfig, _arch(full, config, model_type, family, where), where))


def _arch(full: dict[str, Any], given: Keys, model_type: str, family: Family, where: str) -> dict[str, Any]:
    keys = model_keys(family)
    arch = {key.option: key.read(full[name]) for name, key in keys.items() if full.get(name) is not None}
    arch |= family.fixed
    _check_numbers(arch, where)
    full["num_hidden_layers"] = arch["num_layers"]  # whatever the family calls them
    full.setdefault("max_position_embeddings", arch.get("max_positions"))
    _check_lists(full, where)
    if family.root_scale:
        arch["embed_scale"] = arch["dim"] ** 0.5
    rope = read_rope(full, given, family, where)
    arch["rope_theta"], arch["rope_scaling"] = rope.theta, rope.scaling
    arch["sequence_mixer"] = _read_sequence(full, given, arch, rope.share, family, where)
    arch["channel_mixer"] = _read_channel(full, given, arch, family, where)
    arch["architecture"] = model_type
    return arch


def _check_numbers(arch: Keys, where: str) -> None:
    """The numbers that others are worked out from."""
    for name in ("dim", "num_layers", "num_heads"):
        value = arch[name]
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise MixwellError(f"{where}.{name}: expected a whole number, got {shown(value)}.")


def _check_lists(full: Keys, where: str) -> None:
    """The lists with an entry for each layer."""
    layers = full["num_hidden_layers"]
    for key in ("layer_types", "no_rope_layers"):
        listed = full.get(key) or ()
        if listed and len(listed) != layers:
            raise MixwellError(f"{where}: {key} has {len(listed)} entries; expected one for each of {layers} layers.")
    for kind in full.get("layer_types") or ():
        if kind not in (FULL, SLIDING):
            raise MixwellError(f"{where}: layer_types names {shown(kind)}; mixwell computes {FULL!r} and {SLIDING!r}.")


def _required(family: Family) -> list[str]:
    fields = ("vocab_size", "dim", "num_layers", "num_heads")
    keys = [name for name, key in model_keys(family).items() if key.option in fields]
    sparse = family.experts
    if sparse is not None:
        keys.append(sparse.k)
    if family.hidden_default or (sparse is not None and sparse.which == "step"):
        return keys
    return [*keys, family.hidden_key]


def _refuse_quantised(config: Keys, where: str) -> None:
    """Weights that stand for others by tables and scales of another program's."""
    found = config.get("quantization_config")
    if found is None:
        return
    way = found.get("quant_method", "unnamed") if isinstance(found, Mapping) else "unnamed"
    raise MixwellError(f"{where}: quantization_config is there (quant_method {shown(way)}): the weights are "
                       "quantised in a form that is not read; hand in a folder with them in bfloat16, float16 or "
                       "float32.")


def _check_keys(config: Keys, model_type: str, family: Family, where: str) -> None:
    known, only = _known_keys(family), {**ONLY, **family.only}
    for key, value in config.items():
        if key in only:
            if value not in only[key]:
                raise MixwellError(f"{where}: {key} is {shown(value)}; mixwell computes {only[key][0]!r} only.")
            continue
        off = value in (None, False) or (key == "layer_types" and set(value) <= {FULL})
        if not (key in known or off or key.startswith("_")):
            raise MixwellError(f"{where}: {key} = {shown(value)} is not known for {model_type} and may change its "
                               "results; remove it if it does not.")
    if not (family.head_dim or "head_dim" in family.harmless or _heads_fill_width(config)):
        raise MixwellError(f"{where}: head_dim = {config['head_dim']}; {model_type} has hidden_size / "
                           "num_attention_heads only.")


def _known_keys(family: Family) -> set[str]:
    """Keys that are read, and those that change nothing."""
    assumed = set(family.defaults) - {"attention_bias", "clip_qkv", "sliding_window"}
    known = {family.hidden_key}.union(assumed, model_keys(family), family.mixer_keys, family.block_keys)
    known.add("quantization_config")
    known |= set(family.switches) | ROPE_KEYS | HARMLESS | family.harmless
    if family.slides is not None:
        known |= {"layer_types", "sliding_window_pattern"}
    if family.experts:
        known |= {*EXPERT_COUNTS, family.experts.k, "num_experts_per_tok"}
    return known


def _heads_fill_width(config: Keys) -> bool:
    """Whether a head_dim, where there is one, is the width over the number of heads."""
    size, heads = config.get("head_dim"), config.get("num_attention_heads")
    if not size or not heads:
        return True
    return size * heads == config.get("hidden_size")


def _read_sequence(full: Keys, given: Keys, arch: Keys, share: float, family: Family, where: str) -> Spec:
    spec = dict(family.mixer)
    for name, key in family.mixer_keys.items():
        key = as_key(key)
        value = full[name]
        spec[key.option] = value if value is None else key.read(value)
    for flag, (option, value) in family.switches.items():
        if full[flag]:
            spec[option] = value
    turned = rotary_dim(share, arch)
    if turned is not None:
        spec["rotary_dim"] = turned
    return _by_layer(spec, full, given, family, where)


def _by_layer(spec: dict[str, Any], full: Keys, given: Keys, family: Family, where: str) -> Spec:
    """One entry for all layers where they are alike, else one for each."""
    width = window(full, family)
    local: dict[str, Any] = {}
    if family.rope_by_type:
        rope = read_sliding_rope(full, given, family, where)
        local = {"rope_theta": rope.theta, "rope_scaling": rope.scaling}
    specs = []
    for slides, stands in zip(sliding(full, family), still(full, family)):
        own = {**spec, "sliding_window": width if slides else None} if "sliding_window" in spec else dict(spec)
        own |= local if slides else {}
        own |= {"rotary_dim": 0} if stands else {}
        specs.append(own)
    alike = all(own == specs[0] for own in specs)
    return specs[0] if alike else specs


def _read_channel(full: Keys, given: Keys, arch: Keys, family: Family, where: str) -> Spec:
    dense = _read_block(full, arch, family)
    if family.experts is None:
        return dense
    sparse = read_experts(full, given, family.experts, where)
    layers = [sparse if routes else dense for routes in routed(full, family.experts.which)]
    if dense not in layers:
        return sparse
    if dense["hidden_dim"] is None:
        raise MixwellError(f"{where}: intermediate_size is missing; the dense layers need it.")
    return layers


def _read_block(full: Keys, arch: Keys, family: Family) -> dict[str, Any]:
    """Options of a dense block."""
    hidden = full.get(family.hidden_key)
    if hidden is None and family.hidden_default:
        hidden = family.hidden_default * arch["dim"]
    spec = {"method": SWIGLU, "hidden_dim": hidden, **family.block}
    for name, key in family.block_keys.items():
        spec[key.option] = key.read(full[name])
    return spec
