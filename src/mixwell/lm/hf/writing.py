"""`ModelConfig` data to config.json, and the decoder that computes the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mixwell.core.errors import MixwellError
from mixwell.lm.config import expanded
from mixwell.lm.hf.config import as_key, model_keys, read_config
from mixwell.lm.hf.experts import write_experts
from mixwell.lm.hf.families import FAMILIES
from mixwell.lm.hf.forms import LOSS_FREE, TOP_K, Family
from mixwell.lm.hf.layers import write_routed, write_windows
from mixwell.lm.hf.rope import write_rope

SWITCH = 0.01  # coefficient of the switch loss in a mixture that names no balance rules
_TRAINING = {TOP_K: ("jitter",), LOSS_FREE: ("update_rate", "rule")}  # options of routers that change no logit


def comparable(arch: Mapping[str, Any]) -> dict[str, Any]:
    """`arch` reduced to what decides its logits, every default written out: equal models give equal data."""
    kv_heads = arch.get("num_kv_heads") or arch["num_heads"]
    head_dim = arch.get("head_dim") or arch["dim"] // arch["num_heads"]
    plain = expanded({**arch, "num_kv_heads": kv_heads, "head_dim": head_dim})
    del plain["architecture"]
    for options in plain["channel_mixer"]:
        options.pop("balance", None)
        router = options.get("router", {})
        if router.get("method") in _TRAINING:
            for name in _TRAINING[router["method"]]:
                del router[name]
            if router["renormalise"] is None:
                router["renormalise"] = router["k"] > 1
    return plain


def write_config(arch: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    """config.json of `arch` as a `model_type` model. What that decoder cannot say is left out; see `expresses`."""
    family, plain = FAMILIES[model_type], comparable(arch)
    mixers = plain["sequence_mixer"]
    config: dict[str, Any] = {"architectures": [family.class_name], "model_type": model_type}
    for name, key in model_keys(family).items():
        value = plain[key.option]
        config[name] = value if value is None else key.write(value)
    config |= _write_sequence(mixers, family)
    config |= write_windows(mixers, family)
    if family.mixer.get("rotary_dim") != 0:
        config |= write_rope(plain, mixers, family)
    config |= _write_channel(plain["channel_mixer"], family, _aux(arch))
    return config


def _write_sequence(mixers: Sequence[Mapping[str, Any]], family: Family) -> dict[str, Any]:
    first = mixers[0]
    config: dict[str, Any] = {}
    for name, key in family.mixer_keys.items():
        key = as_key(key)
        value = first.get(key.option)
        config[name] = value if value is None else key.write(value)
    for flag, (option, value) in family.switches.items():
        config[flag] = first.get(option) == value
    return config


def _write_channel(mixers: Sequence[Mapping[str, Any]], family: Family, aux: float) -> dict[str, Any]:
    sparse = [mixer for mixer in mixers if "num_experts" in mixer]
    dense = [mixer for mixer in mixers if mixer not in sparse]
    first = dense[0] if dense else mixers[0]
    config = {family.hidden_key: first.get("hidden_dim")}
    for name, key in family.block_keys.items():
        value = first.get(key.option, "silu" if key.option == "activation" else None)
        config[name] = value if value is None else key.write(value)
    if family.experts is None or not sparse:
        return config
    config |= write_experts(sparse[0], family.experts, aux)
    return config | write_routed([mixer in sparse for mixer in mixers], family.experts.which)


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
