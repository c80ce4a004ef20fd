"""The six Hugging Face decoders, as data: what sets each apart from the others.

`defaults` is what the decoder's own config class assumes where config.json is silent (transformers 5.23).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Experts:
    """How a decoder names its mixture of experts."""

    count: str = "num_experts"  # config key of E, as it is written; either name is read
    hidden: str = "intermediate_size"  # config key of the experts' width
    norm_key: bool = True  # has norm_topk_prob; without it weights are always renormalised
    per_layer: bool = False  # has mlp_only_layers and decoder_sparse_step
    block: str = "mlp"  # module name in tensor names
    parts: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, kw_only=True)
class Family:
    """One decoder."""

    class_name: str
    defaults: Mapping[str, Any]
    qk_norm: Literal["none", "head", "full"] = "none"
    mixer_keys: tuple[str, ...] = ()  # of attention_bias, clip_qkv, sliding_window: those it reads
    window_switch: bool = False  # sliding_window counts only with use_sliding_window
    layer_types: bool = False  # which layers slide is said layer by layer
    head_dim: bool = True  # has the config key; else always D / H
    whole_heads: bool = False  # refuses a D that H does not divide
    experts: Experts | None = None
    harmless: frozenset[str] = field(default_factory=frozenset)  # keys that this decoder never reads


_BASE: dict[str, Any] = {
    "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "rope_theta": 10000.0, "head_dim": None,
    "num_key_value_heads": None, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
    "attention_bias": False, "clip_qkv": None, "sliding_window": None}
_LLAMA_IDS = {"bos_token_id": 1, "eos_token_id": 2}
_LONG = 4096 * 32

FAMILIES: dict[str, Family] = {
    "llama": Family(
        class_name="LlamaForCausalLM", mixer_keys=("attention_bias",), whole_heads=True,
        defaults=_BASE | _LLAMA_IDS | {"max_position_embeddings": 2048}),
    "mistral": Family(
        class_name="MistralForCausalLM", mixer_keys=("sliding_window",),
        defaults=_BASE | _LLAMA_IDS | {"max_position_embeddings": _LONG, "num_key_value_heads": 8,
                                       "sliding_window": 4096}),
    "qwen3": Family(
        class_name="Qwen3ForCausalLM", mixer_keys=("attention_bias", "sliding_window"), qk_norm="head",
        window_switch=True, layer_types=True,
        defaults=_BASE | {"max_position_embeddings": 32768, "num_key_value_heads": 32, "head_dim": 128,
                          "sliding_window": 4096, "use_sliding_window": False, "max_window_layers": 28}),
    "mixtral": Family(
        class_name="MixtralForCausalLM", mixer_keys=("sliding_window",),
        experts=Experts(count="num_local_experts", norm_key=False, block="block_sparse_moe", parts=("w1", "w3", "w2")),
        defaults=_BASE | _LLAMA_IDS | {"max_position_embeddings": _LONG, "num_key_value_heads": 8, "rms_norm_eps": 1e-5,
                                       "rope_theta": 1e6, "num_experts_per_tok": 2, "num_local_experts": 8,
                                       "router_aux_loss_coef": 0.001}),
    "qwen3_moe": Family(
        class_name="Qwen3MoeForCausalLM", mixer_keys=("attention_bias", "sliding_window"), qk_norm="head",
        window_switch=True, harmless=frozenset({"max_window_layers"}),
        experts=Experts(hidden="moe_intermediate_size", per_layer=True),
        defaults=_BASE | {"max_position_embeddings": 32768, "num_key_value_heads": 4, "sliding_window": 4096,
                          "use_sliding_window": False, "num_experts_per_tok": 8, "num_experts": 128,
                          "moe_intermediate_size": 768, "norm_topk_prob": False, "decoder_sparse_step": 1,
                          "mlp_only_layers": None, "router_aux_loss_coef": 0.001}),
    "olmoe": Family(
        class_name="OlmoeForCausalLM", mixer_keys=("attention_bias", "clip_qkv"), qk_norm="full", head_dim=False,
        experts=Experts(),
        defaults=_BASE | {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "pad_token_id": 1,
                          "eos_token_id": 50279, "num_experts_per_tok": 8, "num_experts": 64, "norm_topk_prob": False,
                          "router_aux_loss_coef": 0.01}),
}

SHARED_KEYS = {  # config.json -> ModelConfig
    "vocab_size": "vocab_size", "hidden_size": "dim", "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads", "num_key_value_heads": "num_kv_heads", "head_dim": "head_dim",
    "rms_norm_eps": "norm_eps", "max_position_embeddings": "max_positions", "tie_word_embeddings": "tie_embeddings",
    "bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "pad_token_id",
}
MIXER_KEYS = {"attention_bias": "bias", "clip_qkv": "clip_qkv", "sliding_window": "sliding_window"}
ONLY = {  # keys with one value that mixwell computes; absent means that value
    "hidden_act": ("silu", "swish"), "mlp_bias": (False, None), "partial_rotary_factor": (1, None),
    "rope_interleaved": (False, None), "quantization_config": (None,), "add_cross_attention": (False, None),
}
HARMLESS = frozenset({  # keys that change no logit of a trained model
    "architectures", "model_type", "transformers_version", "torch_dtype", "dtype", "use_cache", "initializer_range",
    "attention_dropout", "output_router_logits", "router_aux_loss_coef", "router_jitter_noise", "pretraining_tp",
    "output_attentions", "output_hidden_states", "return_dict", "is_llama_config", "use_bfloat16", "tokenizer_class",
    "transformers.js_config", "name_or_path", "mixwell", "is_decoder", "is_encoder_decoder", "id2label", "label2id",
    "problem_type", "finetuning_task", "task_specific_params", "torchscript", "unsloth_fixed", "unsloth_version",
    "sep_token_id", "decoder_start_token_id", "chunk_size_feed_forward", "resid_pdrop", "embd_pdrop", "hidden_dropout",
})
EXPERT_KEYS = frozenset({"num_experts", "num_local_experts", "num_experts_per_tok"})
EXPERT_TENSORS = "experts.gate_up_proj", "experts.down_proj"  # the fused 3-D form, below `mlp` or the family's block
