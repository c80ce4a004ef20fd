"""A model's architecture as the metadata of a GGUF file, in which the reader finds the same model again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixwell.core.errors import MixwellError, shown
from mixwell.lm.gguf.architectures import ARCHITECTURES, HEAD, IDS, KEYS, Architecture, config_of
from mixwell.lm.hf.config import read_config
from mixwell.lm.hf.writing import comparable, model_type_of, write_config

# what llama.cpp computes as the reader says; the others store norms or windows in ways that are not written here
WRITTEN = ("llama", "mixtral", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "olmoe")
WIDTHS = (*HEAD, "attention.value_length", "rope.dimension_count")  # keys that hold a head's width
FLOATS = ("rope.freq_base", "attention.layer_norm_rms_epsilon")


def written_as(arch: Mapping[str, Any]) -> tuple[str, Architecture]:
    """(name in GGUF, what it is) of the architecture that computes `arch`; none raises `MixwellError`."""
    model_type = model_type_of(arch)
    for name in WRITTEN:
        what = ARCHITECTURES[name]
        if what.model_type == model_type:
            shared = name == "mixtral"
            return "llama" if shared else name, what
    kind = "a model that no other library computes" if model_type == "mixwell" else f"a {model_type} model"
    raise MixwellError(f"{kind} cannot be written as GGUF; written are {', '.join(WRITTEN)}.")


def metadata_of(arch: Mapping[str, Any], name: str, what: Architecture) -> dict[str, Any]:
    """The metadata that say what the model is, and which the reader takes for the same one; name, what: `written_as`.

    An option that they cannot say raises `MixwellError`, which names it.
    """
    config = write_config(arch, what.model_type)
    _check_norms(name, config)
    own = {key: config.get(source) for key, source in {**KEYS, **what.keys}.items()}
    own["rope.freq_base"] = _theta(config)
    own["vocab_size"] = config["vocab_size"]
    own |= dict.fromkeys(WIDTHS, _head_width(config))
    own |= _stretch(config)
    found: dict[str, Any] = {"general.architecture": name}
    for key, value in own.items():
        if value is not None:
            found[f"{name}.{key}"] = float(value) if key in FLOATS else value
    tied = bool(config["tie_word_embeddings"])
    _check_same(arch, found, tied)
    return found


def _head_width(config: Mapping[str, Any]) -> int:
    heads = config["num_attention_heads"]
    return config.get("head_dim") or config["hidden_size"] // heads


def _check_norms(name: str, config: Mapping[str, Any]) -> None:
    """llama.cpp's olmoe wants norms of keys as wide as the model, and so as many heads of keys as of queries."""
    heads, groups = config["num_attention_heads"], config.get("num_key_value_heads")
    if name == "olmoe" and groups not in (None, heads):
        raise MixwellError(f"GGUF's olmoe has as many heads of keys as of queries; the model has {groups} and {heads}.")


def _rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What config.json says of rotary positions, in either of its forms."""
    return config.get("rope_parameters") or config.get("rope_scaling") or {}


def _theta(config: Mapping[str, Any]) -> float | None:
    return config.get("rope_theta") or _rope(config).get("rope_theta")


def _stretch(config: Mapping[str, Any]) -> dict[str, Any]:
    """How positions are stretched: by one factor, where they are."""
    rope = _rope(config)
    kind = rope.get("rope_type") or rope.get("type")
    if kind != "linear":  # another one fails the comparison, which names it
        return {}
    factor = float(rope["factor"])
    return {"rope.scaling.type": kind, "rope.scaling.factor": factor}


def _check_same(arch: Mapping[str, Any], metadata: Mapping[str, Any], tied: bool) -> None:
    """Refuse what would be read as another model; the ids of special tokens are the tokenizer's to say."""
    config = config_of(metadata, tied, {}, "the metadata")
    again = comparable(read_config(config))
    wanted = comparable(arch)
    for key, value in wanted.items():
        if key not in IDS and again[key] != value:
            name = metadata["general.architecture"]
            raise MixwellError(f"GGUF's {name} cannot say {_where(key, value, again[key])}; the model would be another "
                               "one there.")


def _where(key: str, wanted: Any, read: Any) -> str:
    """The first option that differs, as `key.option = value`."""
    ours, theirs = _inside(wanted), _inside(read)
    if ours is None or theirs is None:
        return f"{key} = {shown(wanted)} (it would read {shown(read)})"
    differing = (name for name in ours if ours[name] != theirs.get(name))
    inner = next(differing)
    place = f"{key}.{inner}"
    return _where(place, ours[inner], theirs.get(inner))


def _inside(value: Any) -> dict[str, Any] | None:
    """Options by name, or layers by number; None of what is neither."""
    if isinstance(value, Mapping):
        return dict(value)
    if not isinstance(value, list):
        return None
    numbered = enumerate(value)
    return {str(number): item for number, item in numbered}
