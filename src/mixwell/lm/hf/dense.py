"""The dense decoders, one row each."""

from __future__ import annotations

from typing import Any

from mixwell.lm.hf import layouts
from mixwell.lm.hf.forms import ACTIVATION, ATTENTION, BASE, SWIGLU, Family, Key, one_over_root, reciprocal
from mixwell.lm.hf.layers import every, late, without_turning

LLAMA_IDS = {"bos_token_id": 1, "eos_token_id": 2}
LONG = 4096 * 32
MLP_BIAS = {"hidden_act": ACTIVATION, "mlp_bias": Key("bias")}
WINDOW = {"sliding_window": "sliding_window"}
BIAS = {"attention_bias": "bias"}
QWEN_DEFAULTS = BASE | {"max_position_embeddings": 32768, "sliding_window": 4096, "use_sliding_window": False,
                        "max_window_layers": 28}
MULTIPLIERS: dict[str, str | Key] = {"embedding_multiplier": "embed_scale", "residual_multiplier": "residual_scale",
                                     "logits_scaling": reciprocal("logit_scale")}
MULTIPLIER_DEFAULTS = {"embedding_multiplier": 1.0, "residual_multiplier": 1.0, "logits_scaling": 1.0,
                       "attention_multiplier": 1.0}
_GEMMA: dict[str, Any] = {
    "keys": {"final_logit_softcapping": "logit_softcap"}, "root_scale": True,
    "fixed": {"norm": "rms_plus_one", "norm_place": "around"},
    "mixer_keys": BIAS | WINDOW | {"query_pre_attn_scalar": one_over_root("score_scale"),
                                   "attn_logit_softcapping": "softcap"},
    "block_keys": {"hidden_activation": ACTIVATION}, "layout": layouts.GEMMA,
    "harmless": frozenset({"hidden_act", "cache_implementation"})}  # Gemma's code reads hidden_activation
_GEMMA_DEFAULTS = BASE | {
    "head_dim": 256, "num_key_value_heads": 4, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0,
    "tie_word_embeddings": True, "query_pre_attn_scalar": 256, "sliding_window": 4096,
    "hidden_activation": "gelu_pytorch_tanh", "attn_logit_softcapping": None, "final_logit_softcapping": None}

DENSE: dict[str, Family] = {
    "llama": Family(
        class_name="LlamaForCausalLM", mixer_keys=BIAS, whole_heads=True, block_keys=MLP_BIAS, layout=layouts.LLAMA,
        defaults=BASE | LLAMA_IDS | {"max_position_embeddings": 2048, "mlp_bias": False}),
    "mistral": Family(
        class_name="MistralForCausalLM", mixer_keys=WINDOW, layout=layouts.LLAMA,
        defaults=BASE | LLAMA_IDS | {"max_position_embeddings": LONG, "num_key_value_heads": 8,
                                     "sliding_window": 4096}),
    "qwen2": Family(
        class_name="Qwen2ForCausalLM", mixer={"method": ATTENTION, "bias": True, "out_bias": False},
        mixer_keys=WINDOW, window_flag=True, slides=late,
        head_dim=False, layout=layouts.LLAMA, defaults=QWEN_DEFAULTS | {"num_key_value_heads": 32}),
    "qwen3": Family(
        class_name="Qwen3ForCausalLM", mixer={"method": ATTENTION, "qk_norm": "head"},
        mixer_keys=BIAS | WINDOW, window_flag=True, slides=late, layout=layouts.LLAMA,
        defaults=QWEN_DEFAULTS | {"num_key_value_heads": 32, "head_dim": 128}),
    "olmo2": Family(
        class_name="Olmo2ForCausalLM", fixed={"norm_place": "after"}, mixer={"method": ATTENTION, "qk_norm": "full"},
        mixer_keys=BIAS, head_dim=False, layout=layouts.OLMO2,
        defaults=BASE | {"max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "pad_token_id": 1,
                         "eos_token_id": 50279}),
    "smollm3": Family(
        class_name="SmolLM3ForCausalLM", mixer_keys=BIAS | WINDOW, window_flag=True, slides=without_turning,
        still="listed",
        block_keys=MLP_BIAS, layout=layouts.LLAMA, harmless=frozenset({"max_window_layers"}),
        defaults=BASE | {"max_position_embeddings": 32768, "num_key_value_heads": 4, "rope_theta": 2e6,
                         "pad_token_id": 128004, "bos_token_id": 128000, "eos_token_id": 128001,
                         "tie_word_embeddings": True, "use_sliding_window": False, "no_rope_layers": None,
                         "no_rope_layer_interval": 4, "mlp_bias": False}),
    "granite": Family(
        class_name="GraniteForCausalLM", keys=MULTIPLIERS, mixer_keys=BIAS | {"attention_multiplier": "score_scale"},
        head_dim=False, block_keys=MLP_BIAS, layout=layouts.LLAMA,
        defaults=BASE | LLAMA_IDS | MULTIPLIER_DEFAULTS | {"max_position_embeddings": 2048, "mlp_bias": False}),
    "gemma2": Family(
        class_name="Gemma2ForCausalLM", **_GEMMA, slides=every(2),
        defaults=_GEMMA_DEFAULTS | {"max_position_embeddings": 8192, "attn_logit_softcapping": 50.0,
                                    "final_logit_softcapping": 30.0}),
    "gemma3_text": Family(
        class_name="Gemma3ForCausalLM", **_GEMMA, slides=every(6), rope_by_type=True,
        mixer={"method": ATTENTION, "qk_norm": "head"},
        defaults=_GEMMA_DEFAULTS | {"max_position_embeddings": LONG, "rope_theta": 1e6,
                                    "rope_local_base_freq": 10000.0}),
    "phi3": Family(
        class_name="Phi3ForCausalLM", mixer_keys=WINDOW, partial_key="partial_rotary_factor",
        head_dim=False, layout=layouts.PHI3,
        defaults=BASE | {"max_position_embeddings": 4096, "original_max_position_embeddings": 4096,
                         "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 32000, "pad_token_id": 32000}),
    "cohere2": Family(
        class_name="Cohere2ForCausalLM", keys={"layer_norm_eps": "norm_eps", "logit_scale": "logit_scale"},
        fixed={"norm": "layer", "norm_place": "parallel_shared"}, mixer_keys=BIAS | WINDOW, slides=every(4),
        still="full", head_dim=False, layout=layouts.COHERE,
        only={"use_qk_norm": (False, None), "use_parallel_block": (True, None), "use_gated_activation": (True, None),
              "position_embedding_type": ("rope_gptj", None), "rotary_pct": (1.0, 1, None)},
        harmless=frozenset({"cache_implementation", "order_of_interleaved_layers", "use_embedding_sharing",
                            "layer_switch"}),
        defaults=BASE | {"max_position_embeddings": 8192, "layer_norm_eps": 1e-5, "logit_scale": 0.0625,
                         "bos_token_id": 5, "eos_token_id": 255001, "pad_token_id": 0, "tie_word_embeddings": True,
                         "sliding_window": 4096}),
    "gpt_neox": Family(
        class_name="GPTNeoXForCausalLM",
        keys={"layer_norm_eps": "norm_eps",
              "use_parallel_residual": Key("norm_place", lambda x: "parallel" if x else "before",
                                           lambda x: x == "parallel")},
        fixed={"norm": "layer_bias"}, mixer_keys=BIAS, partial_key="rotary_pct", theta_key="rotary_emb_base",
        kv_heads=False, head_dim=False, block={"method": SWIGLU, "gated": False, "bias": True},
        layout=layouts.GPT_NEOX,
        harmless=frozenset({"rms_norm_eps", "num_key_value_heads"}),
        defaults=BASE | {"max_position_embeddings": 2048, "layer_norm_eps": 1e-5, "use_parallel_residual": True,
                         "rotary_pct": 0.25, "attention_bias": True, "hidden_act": "gelu", "bos_token_id": 0,
                         "eos_token_id": 2}),
    "gpt2": Family(
        class_name="GPT2LMHeadModel",
        keys={"n_embd": "dim", "n_layer": "num_layers", "n_head": "num_heads", "n_positions": "max_positions",
              "layer_norm_epsilon": "norm_eps"},
        fixed={"norm": "layer_bias", "learned_positions": True},
        mixer={"method": ATTENTION, "bias": True, "rotary_dim": 0}, kv_heads=False, head_dim=False,
        hidden_key="n_inner", hidden_default=4, block={"method": SWIGLU, "gated": False, "bias": True},
        block_keys={"activation_function": ACTIVATION}, layout=layouts.GPT2,
        only={"scale_attn_weights": (True, None), "scale_attn_by_inverse_layer_idx": (False, None)},
        harmless=frozenset({"n_ctx"}),
        defaults=BASE | {"n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_inner": None,
                         "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new", "bos_token_id": 50256,
                         "eos_token_id": 50256, "tie_word_embeddings": True}),
}
