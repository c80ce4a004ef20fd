"""The Hugging Face decoders, as data: what each calls things, and what sets it apart from the others.

The forms stand here, the rows in `dense` and `mixtures`, the names of tensors in `layouts`. A new decoder is a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

ATTENTION, LATENT = "sequence.attention", "sequence.latent_attention"
SWIGLU, MOE = "experts.layers.swiglu", "experts.layers.moe"
TOP_K, LOSS_FREE = "experts.routers.top_k", "experts.routers.loss_free_bias"


def _same(value: Any) -> Any:
    return value


class Key(NamedTuple):
    """An option that a key of config.json stands for, and the way between their values."""

    option: str
    read: Callable[[Any], Any] = _same
    write: Callable[[Any], Any] = _same


def _rounded(value: float) -> float:
    """The short number that was meant: 49 for the reciprocal of 1/49."""
    return float(f"{value:.12g}")


def _reciprocal(value: float) -> float:
    return 1 / value


def _rounded_reciprocal(value: float) -> float:
    return _rounded(1 / value)


def reciprocal(option: str) -> Key:
    """`option` is one over the key's value."""
    return Key(option, _reciprocal, _rounded_reciprocal)


def _one_over_root(value: float) -> float:
    return value**-0.5


def _whole_square(value: float) -> int:
    """What `_one_over_root` was taken of: a whole number in every config class."""
    square = value**-2
    return round(square)


def one_over_root(option: str) -> Key:
    """`option` is one over the square root of the key's value."""
    return Key(option, _one_over_root, _whole_square)


ACTIVATION_NAMES = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh",
                    "gelu_new": "gelu_tanh", "relu": "relu"}


_WRITTEN = {"gelu_tanh": "gelu_pytorch_tanh"}
ACTIVATION = Key("activation", lambda x: ACTIVATION_NAMES.get(x, x), lambda x: _WRITTEN.get(x, x))


class View(NamedTuple):
    """How a tensor lies in a file where it is not simply as mixwell holds it."""

    order: Callable[[Mapping[str, Any], int], list[int]] | None = None  # the file's row of each canonical row
    transposed: bool = False  # the last two dimensions are exchanged
    extra: bool = False  # a leading dimension of 1 more


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Tensor names. A canonical tensor is made of the parts named, one below the other."""

    bases: tuple[str, ...] = ("model.",)  # before every name but the head's; the first is written, any is read
    layer: str = "layers.{}."
    embedding: str = "embed_tokens.weight"
    head: str = "lm_head.weight"
    whole: Mapping[str, str] = field(default_factory=lambda: {"norm.weight": "norm.weight"})
    parts: Mapping[str, tuple[str, ...]]
    views: Mapping[str, View] = field(default_factory=dict)  # by canonical name in a layer
    constants: tuple[str, ...] = ("rotary_emb.inv_freq",)  # ends of names that older files hold and nobody needs


@dataclass(frozen=True, kw_only=True)
class Experts:
    """How a decoder names its mixture of experts."""

    count: str = "num_experts"  # config key of E, as it is written; `EXPERT_COUNTS` are read
    k: str = "num_experts_per_tok"
    hidden: str = "intermediate_size"  # config key of the experts' width
    renormalise: str | bool = "norm_topk_prob"  # the key, or what is always so
    router: Mapping[str, Any] = field(default_factory=lambda: {"method": TOP_K, "scores": "softmax"})
    router_keys: Mapping[str, str] = field(default_factory=dict)  # config key -> option of the router
    options: Mapping[str, Any] = field(default_factory=dict)  # options of the layer that are always so
    option_keys: Mapping[str, str] = field(default_factory=dict)  # config key -> option of the layer
    shared: str | None = None  # key of the number of shared experts, each as wide as the others
    which: Literal["all", "step", "after_first", "span"] = "all"  # layers that have experts
    loss: str | None = "router_aux_loss_coef"  # key of the coefficient of the switch loss
    block: str = "mlp"  # module name in tensor names
    stored: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")  # of each expert
    fused: tuple[str, str] = ("experts.gate_up_proj", "experts.down_proj")  # of all experts at once, below the block
    apart: bool = True  # files hold experts one by one; else always at once


@dataclass(frozen=True, kw_only=True)
class Family:
    """One decoder. `defaults` is what its own config class assumes where config.json is silent (transformers 5.24)."""

    class_name: str
    defaults: Mapping[str, Any]
    keys: Mapping[str, str | Key] = field(default_factory=dict)  # config key -> field of ModelConfig of its own
    fixed: Mapping[str, Any] = field(default_factory=dict)  # fields of ModelConfig that are always so
    root_scale: bool = False  # embeddings are multiplied by the square root of the width
    mixer: Mapping[str, Any] = field(default_factory=lambda: {"method": ATTENTION})  # always so of the sequence mixer
    mixer_keys: Mapping[str, str | Key] = field(default_factory=dict)  # config key -> option of the sequence mixer
    switches: Mapping[str, tuple[str, Any]] = field(default_factory=dict)  # flag -> option and value where set
    slides: Callable[[Mapping[str, Any], int], bool] | None = None  # whether a layer has the window, where layer_types
    # does not say so; None: every layer has it, and layer_types is not read
    window_flag: bool = False  # the window counts only with use_sliding_window
    still: Literal["none", "full", "listed"] = "none"  # layers without rotary positions
    rope_by_type: bool = False  # sliding layers have rotary positions of their own
    partial_key: str | None = None  # older key of the share of a head that turns
    theta_key: str = "rope_theta"  # older key of the base of the wavelengths
    kv_heads: bool = True  # has num_key_value_heads; else keys and values have H heads
    head_dim: bool = True  # has the config key; else always D / H
    whole_heads: bool = False  # refuses a D that H does not divide
    block: Mapping[str, Any] = field(default_factory=dict)  # always so of the dense block
    block_keys: Mapping[str, Key] = field(default_factory=lambda: {"hidden_act": ACTIVATION})
    hidden_key: str = "intermediate_size"  # config key of the dense block's width
    hidden_default: int = 0  # so many times D where the key is null
    experts: Experts | None = None
    layout: Layout
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)  # keys of one value, beside `ONLY`
    harmless: frozenset[str] = frozenset()  # keys that this decoder never reads


BASE: dict[str, Any] = {
    "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "rope_theta": 10000.0, "head_dim": None,
    "num_key_value_heads": None, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
    "attention_bias": False, "clip_qkv": None, "sliding_window": None, "hidden_act": "silu"}

SHARED_KEYS: dict[str, str] = {  # config.json -> ModelConfig
    "vocab_size": "vocab_size", "hidden_size": "dim", "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads", "num_key_value_heads": "num_kv_heads", "head_dim": "head_dim",
    "rms_norm_eps": "norm_eps", "max_position_embeddings": "max_positions", "tie_word_embeddings": "tie_embeddings",
    "bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "pad_token_id",
}
ONLY: dict[str, tuple[Any, ...]] = {  # keys with one value that mixwell computes; absent means that value
    "rope_interleaved": (False, None), "add_cross_attention": (False, None),
    "use_bidirectional_attention": (False, None), "lm_head_bias": (False, None),
}
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")  # names of one number
HARMLESS = frozenset({  # keys that change no logit of a trained model
    "architectures", "model_type", "transformers_version", "torch_dtype", "dtype", "use_cache", "initializer_range",
    "attention_dropout", "output_router_logits", "router_aux_loss_coef", "router_jitter_noise", "pretraining_tp",
    "output_attentions", "output_hidden_states", "return_dict", "is_llama_config", "use_bfloat16", "tokenizer_class",
    "transformers.js_config", "name_or_path", "mixwell", "is_decoder", "is_encoder_decoder", "id2label", "label2id",
    "problem_type", "finetuning_task", "task_specific_params", "torchscript", "unsloth_fixed", "unsloth_version",
    "sep_token_id", "decoder_start_token_id", "chunk_size_feed_forward", "resid_pdrop", "embd_pdrop", "hidden_dropout",
    "attn_pdrop", "classifier_dropout", "attn_implementation", "_attn_implementation", "auto_map",
    "max_sequence_length", "model_max_length", "input_jitter_noise", "aux_loss_alpha", "seq_aux", "ep_size",
    "experts_implementation",
    "summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj",
    "reorder_and_upcast_attn", "gradient_checkpointing", "num_nextn_predict_layers", "num_mtp_layers",
    # what generation once took from config.json
    "max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty",
    "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences", "output_scores", "max_new_tokens",
    "return_dict_in_generate", "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values", "suppress_tokens",
    "exponential_decay_length_penalty", "begin_suppress_tokens", "prefix", "pruned_heads", "tie_encoder_decoder",
    "cross_attention_hidden_size", "tf_legacy_loss",
})
