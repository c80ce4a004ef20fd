"""Which Hugging Face decoder a GGUF architecture is, and its metadata as that decoder's config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mixwell.core.errors import MixwellError, suggest
from mixwell.formats.plain import check_object
from mixwell.lm.schemas import CONFIG

Metadata = Mapping[str, Any]

KEYS = {  # metadata key below the architecture's name -> key of config.json
    "context_length": "max_position_embeddings", "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size", "embedding_length": "hidden_size",
    "attention.head_count": "num_attention_heads", "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps", "rope.freq_base": "rope_theta",
    "expert_used_count": "num_experts_per_tok"}
NEEDED = ("context_length", "block_count", "embedding_length", "attention.head_count")  # of every architecture
HEAD = {"attention.key_length": "head_dim"}
WINDOW = {"attention.sliding_window": "sliding_window"}
MOE = {"expert_count": "num_experts", "expert_feed_forward_length": "moe_intermediate_size"}
IDS = {"bos_token_id": "tokenizer.ggml.bos_token_id", "eos_token_id": "tokenizer.ggml.eos_token_id",
       "pad_token_id": "tokenizer.ggml.padding_token_id"}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One GGUF architecture."""

    model_type: str
    keys: Mapping[str, str] = field(default_factory=dict)  # beside `KEYS`
    fixed: Mapping[str, Any] = field(default_factory=dict)  # what the metadata do not say and llama.cpp computes
    interleaved: bool = False  # queries and keys lie with their turning pairs side by side
    norms_hold_one: bool = False  # norms are stored with the 1 that the decoder adds
    scaled_by_heads: int = 0  # the model of so many layers scales scores by D / H rather than by the head's width


ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(model_type="llama", interleaved=True, keys=HEAD),
    "mixtral": Architecture(model_type="mixtral", interleaved=True, keys={"expert_count": "num_local_experts", **HEAD},
                            fixed={"sliding_window": None}),
    "qwen2": Architecture(model_type="qwen2"),
    "qwen2moe": Architecture(
        model_type="qwen2_moe", fixed={"norm_topk_prob": False},
        keys=MOE | {"expert_shared_feed_forward_length": "shared_expert_intermediate_size"}),
    "qwen3": Architecture(model_type="qwen3", keys=HEAD),
    "qwen3moe": Architecture(model_type="qwen3_moe", keys=MOE | HEAD, fixed={"norm_topk_prob": True}),
    "olmoe": Architecture(model_type="olmoe", keys={"expert_count": "num_experts"}, fixed={"norm_topk_prob": False}),
    "gemma2": Architecture(
        model_type="gemma2", norms_hold_one=True, scaled_by_heads=46,
        keys=HEAD | WINDOW | {"attn_logit_softcapping": "attn_logit_softcapping",
                              "final_logit_softcapping": "final_logit_softcapping"}),
    "gemma3": Architecture(model_type="gemma3_text", norms_hold_one=True, scaled_by_heads=62, keys=HEAD | WINDOW),
    "phi3": Architecture(model_type="phi3", keys=WINDOW),
}


def architecture_of(metadata: Metadata, where: str) -> tuple[str, Architecture]:
    """(name in the metadata's keys, what it is); an architecture that is not known raises `MixwellError`."""
    name = str(metadata.get("general.architecture"))
    mixture = name == "llama" and metadata.get("llama.expert_count")
    found = ARCHITECTURES.get("mixtral" if mixture else name)
    if found is None:
        raise MixwellError(f"{where}: the architecture {name!r} is not read from GGUF.{suggest(name, ARCHITECTURES)} "
                           f"Read are {', '.join(ARCHITECTURES)}; hand in the Hugging Face folder.")
    return name, found


def config_of(metadata: Metadata, tied: bool, stretches: Metadata, where: str) -> dict[str, Any]:
    """config.json of the model; `stretches` holds the factors on wavelengths that lie among the tensors, by name.

    Raises `MixwellError` where the metadata lack a key.
    """
    name, architecture = architecture_of(metadata, where)
    config: dict[str, Any] = {"model_type": architecture.model_type, "tie_word_embeddings": tied}
    for key, target in {**KEYS, **architecture.keys}.items():
        value = metadata.get(f"{name}.{key}")
        if value is not None:
            config[target] = _short(value)
    config |= architecture.fixed
    config |= {target: metadata.get(key) for target, key in IDS.items()}
    config["vocab_size"] = metadata.get(f"{name}.vocab_size") or len(metadata.get("tokenizer.ggml.tokens", ()))
    _check_layers_alike(config, where)
    for key in NEEDED:
        if KEYS[key] not in config:
            raise MixwellError(f"{where}: the metadata lack {name}.{key}; copy the file again.")
    scaling = _scaling(metadata, name, config, stretches)
    if scaling is not None:
        config["rope_scaling"] = scaling
    check_object(config, CONFIG, where)
    if architecture.norms_hold_one:
        config["query_pre_attn_scalar"] = _score_width(config, architecture)
    return config


def _short(value: Any) -> Any:
    """1e-05 rather than the float64 nearest to its float32."""
    if not isinstance(value, float):
        return value
    digits = str(np.float32(value))
    return float(digits)


def _check_layers_alike(config: Metadata, where: str) -> None:
    for key, value in config.items():
        if isinstance(value, list):
            raise MixwellError(f"{where}: {key} differs from layer to layer; read are models whose layers are alike.")


def _score_width(config: Metadata, architecture: Architecture) -> int | None:
    if config["num_hidden_layers"] == architecture.scaled_by_heads:
        return config["hidden_size"] // config["num_attention_heads"]
    return config.get("head_dim")


def _scaling(metadata: Metadata, name: str, config: Metadata, stretches: Metadata) -> dict[str, Any] | None:
    """How rotary positions are stretched, as config.json says it."""
    prefix = f"{name}.rope.scaling."
    length = metadata.get(f"{prefix}original_context_length") or config["max_position_embeddings"]
    if stretches:
        short = stretches.get("rope_factors_short.weight", stretches.get("rope_freqs.weight"))
        attention = metadata.get(f"{prefix}attn_factor", 1.0)
        return {"type": "longrope", "short_factor": short, "factor": 1.0, "attention_factor": attention,
                "long_factor": stretches.get("rope_factors_long.weight", short),
                "original_max_position_embeddings": length}
    kind, factor = metadata.get(f"{prefix}type"), metadata.get(f"{prefix}factor")
    if kind in (None, "none") or not factor:
        return None
    scaling = {"type": kind, "factor": factor}
    return scaling if kind == "linear" else scaling | {"original_max_position_embeddings": length}
