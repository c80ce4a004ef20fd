"""What the files of a model folder must hold, key by key, before anything is done with it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from mixwell.core.errors import MixwellError
from mixwell.core.files import read_bytes
from mixwell.formats.places import held
from mixwell.formats.plain import (
    FLAG,
    Schema,
    check_object,
    either,
    keyed,
    mapping,
    number,
    optional,
    parse,
    sequence,
    text,
    whole,
)

_SIZE = whole(1, 2**31 - 1)  # rows, columns, heads, layers, positions
_COUNT = whole(0, 2**31 - 1)
_ID = whole(-1, 2**31 - 1)  # -1: none, as older files have it
_IDS = optional(either(_ID, sequence(_ID)))
_NAME = text(1000)

_ROTARY: Schema = {
    "type": optional(_NAME), "rope_type": optional(_NAME), "rope_theta": number(0), "factor": number(0),
    "low_freq_factor": number(0), "high_freq_factor": number(0),
    "original_max_position_embeddings": optional(number(0)), "partial_rotary_factor": optional(number(0, 1)),
}
_BY_TYPE = dict.fromkeys(("full_attention", "sliding_attention"), optional(keyed(_ROTARY)))
_ROPE = optional(keyed({**_ROTARY, **_BY_TYPE}))
_FLAG, _FACTOR, _SHARE = optional(FLAG), optional(number(0)), optional(number(0, 1))
_DIVISOR = optional(number(1e-6))

CONFIG: Schema = {  # config.json, of any model_type; what a decoder does with its keys is checked by `hf.config`
    "model_type": _NAME, "arch": mapping(),
    "vocab_size": optional(_SIZE), "hidden_size": optional(_SIZE), "num_hidden_layers": optional(_SIZE),
    "num_attention_heads": optional(_SIZE), "num_key_value_heads": optional(_SIZE),
    "head_dim": optional(_SIZE), "max_position_embeddings": _SIZE,
    "intermediate_size": optional(_SIZE), "moe_intermediate_size": optional(_SIZE),
    "rms_norm_eps": number(0, 1), "rope_theta": optional(number(0)),
    "rope_scaling": _ROPE, "rope_parameters": _ROPE,
    "tie_word_embeddings": FLAG, "attention_bias": optional(FLAG), "clip_qkv": optional(number(0)),
    "sliding_window": optional(_COUNT), "use_sliding_window": optional(FLAG), "max_window_layers": _COUNT,
    "layer_types": optional(sequence(_NAME)), "mlp_only_layers": optional(sequence(_COUNT)),
    "sliding_window_pattern": optional(_COUNT), "_sliding_window_pattern": optional(_COUNT),
    "no_rope_layers": optional(sequence(_COUNT)), "no_rope_layer_interval": _SIZE,
    "n_embd": _SIZE, "n_layer": _SIZE, "n_head": _SIZE, "n_positions": _SIZE, "n_inner": optional(_SIZE),
    "kv_lora_rank": _SIZE, "q_lora_rank": optional(_SIZE), "qk_nope_head_dim": _SIZE, "qk_rope_head_dim": _SIZE,
    "v_head_dim": _SIZE,
    "layer_norm_eps": _SHARE, "layer_norm_epsilon": _SHARE, "rotary_pct": _SHARE, "partial_rotary_factor": _SHARE,
    "rotary_emb_base": _FACTOR, "rope_local_base_freq": number(0), "original_max_position_embeddings": _FACTOR,
    "hidden_act": optional(_NAME), "hidden_activation": optional(_NAME), "activation_function": optional(_NAME),
    "mlp_bias": _FLAG, "qkv_bias": _FLAG, "use_qk_norm": _FLAG, "use_parallel_residual": _FLAG,
    "embedding_multiplier": _FACTOR, "residual_multiplier": _FACTOR, "attention_multiplier": _FACTOR,
    "logit_scale": _FACTOR, "logits_scaling": _DIVISOR, "query_pre_attn_scalar": _DIVISOR,
    "attn_logit_softcapping": _FACTOR, "final_logit_softcapping": _FACTOR,
    "num_experts": optional(_COUNT), "num_local_experts": optional(_COUNT), "num_experts_per_tok": optional(_COUNT),
    "n_routed_experts": optional(_COUNT), "moe_num_experts": optional(_COUNT), "moe_k": optional(_COUNT),
    "n_shared_experts": optional(_COUNT), "moe_num_shared_experts": optional(_COUNT),
    "shared_expert_intermediate_size": optional(_SIZE), "n_group": optional(_COUNT), "topk_group": optional(_COUNT),
    "decoder_sparse_step": whole(-1, 2**31 - 1), "first_k_dense_replace": _COUNT, "moe_layer_start_index": _COUNT,
    "moe_layer_end_index": whole(-1, 2**31 - 1), "moe_layer_interval": _SIZE, "norm_topk_prob": optional(FLAG),
    "router_aux_loss_coef": optional(number()), "routed_scaling_factor": _FACTOR, "topk_method": optional(_NAME),
    "swiglu_limit": number(0), "swiglu_alpha": number(0),
    "bos_token_id": _IDS, "eos_token_id": _IDS, "pad_token_id": _IDS,
}
RECORD: Schema = {"mixwell": _NAME, "arch": optional(mapping()), "lineage": sequence(mapping()), "digest": _NAME,
                  "files": mapping(_NAME), "checksums": FLAG}  # mixwell.json
_SPECIAL = optional(either(text(), mapping(), sequence()))
_NAMED_TEMPLATE = keyed({"name": _NAME, "template": text()}, ("name", "template"))
_MARKS: Schema = {**dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), _SPECIAL),
                  "chat_template": optional(either(text(), sequence(_NAMED_TEMPLATE)))}
_SAMPLING: Schema = {
    "bos_token_id": _IDS, "eos_token_id": _IDS, "pad_token_id": _IDS, "temperature": optional(number(0)),
    "top_p": optional(number(0, 1)), "top_k": optional(_COUNT), "do_sample": optional(FLAG),
}
_TOKENIZER: Schema = {"model": mapping(), "added_tokens": optional(sequence(mapping()))}

Check = Callable[[bytes, str], Any]


def _object(schema: Schema) -> Check:
    """Keys and values in JSON."""
    return lambda data, where: check_object(parse(data, where), schema, where)


def _text(data: bytes, where: str) -> None:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MixwellError(f"{where} is not text in UTF-8 ({error}).") from error


def _pieces(data: bytes, where: str) -> None:
    """SentencePiece's protocol buffer, whose first field is a piece, or lines of a piece in base64 and its rank."""
    if not data.startswith(b"\n") and _RANKED.match(data) is None:
        raise MixwellError(f"{where} is not a list of pieces as SentencePiece or tiktoken write it.")


_RANKED = re.compile(rb"[A-Za-z0-9+/]+=* \d+\r?\n")


SIDE: Mapping[str, Check] = {  # what comes along with a model, and how each is read before it does
    "tokenizer.json": _object(_TOKENIZER),
    "tokenizer_config.json": _object(_MARKS),
    "special_tokens_map.json": _object(_MARKS),
    "added_tokens.json": _object({}),
    "tokenizer.model": _pieces,
    "vocab.json": _object({}),
    "merges.txt": _text,
    "chat_template.jinja": _text,
    "generation_config.json": _object(_SAMPLING),
}


def side_files(folder: Path, names: Iterable[str] = SIDE) -> dict[str, bytes]:
    """Those of the files `names` that are in a folder, each read as what it claims to be before it is handed on."""
    found = {}
    for name in names:
        path = held(folder, name)
        if path is not None:
            found[name] = read_bytes(path)
            SIDE[name](found[name], str(path))
    return found
