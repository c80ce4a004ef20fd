"""The decoders with mixtures of experts, one row each."""

from __future__ import annotations

from typing import Any

from mixwell.lm.hf import layouts
from mixwell.lm.hf.dense import BIAS, LLAMA_IDS, LONG, MULTIPLIER_DEFAULTS, MULTIPLIERS, QWEN_DEFAULTS, WINDOW
from mixwell.lm.hf.forms import ATTENTION, BASE, LATENT, LOSS_FREE, TOP_K, Experts, Family
from mixwell.lm.hf.layers import alternating, every

_QWEN_EXPERTS = {"num_experts_per_tok": 8, "num_experts": 128, "moe_intermediate_size": 768, "norm_topk_prob": False,
                 "decoder_sparse_step": 1, "mlp_only_layers": None, "router_aux_loss_coef": 0.001}
_FREE: dict[str, Any] = {  # sigmoid scores whose choice a bias shifts, in groups
    "count": "n_routed_experts", "hidden": "moe_intermediate_size", "shared": "n_shared_experts",
    "router": {"method": LOSS_FREE, "scores": "sigmoid"}, "which": "after_first", "loss": None,
    "router_keys": {"n_group": "groups", "topk_group": "groups_kept", "routed_scaling_factor": "scale"}}
_LATENT_KEYS = {"q_lora_rank": "q_rank", "kv_lora_rank": "kv_rank", "qk_nope_head_dim": "nope_dim",
                "qk_rope_head_dim": "rope_dim", "v_head_dim": "value_dim", **BIAS}
_LATENT = {"q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
_DEEPSEEK = frozenset({"qk_head_dim", "head_dim"})  # told by the keys that are read

MIXTURES: dict[str, Family] = {
    "mixtral": Family(
        class_name="MixtralForCausalLM", mixer_keys=WINDOW, layout=layouts.MIXTRAL,
        experts=Experts(count="num_local_experts", renormalise=True, block="block_sparse_moe",
                        stored=("w1", "w3", "w2")),
        defaults=BASE | LLAMA_IDS | {"max_position_embeddings": LONG, "num_key_value_heads": 8, "rms_norm_eps": 1e-5,
                                     "rope_theta": 1e6, "num_experts_per_tok": 2, "num_local_experts": 8,
                                     "router_aux_loss_coef": 0.001}),
    "qwen2_moe": Family(
        class_name="Qwen2MoeForCausalLM", mixer={"method": ATTENTION, "out_bias": False},
        mixer_keys=WINDOW | {"qkv_bias": "bias"}, window_flag=True, slides=alternating, head_dim=False,
        layout=layouts.QWEN_MOE,
        experts=Experts(hidden="moe_intermediate_size", which="step",
                        options={"shared_experts": 1, "shared_gate": True},
                        option_keys={"shared_expert_intermediate_size": "shared_hidden_dim"}),
        defaults=QWEN_DEFAULTS | _QWEN_EXPERTS | {
            "num_key_value_heads": 16, "num_experts_per_tok": 4, "num_experts": 60, "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632, "intermediate_size": 5632, "qkv_bias": True}),
    "qwen3_moe": Family(
        class_name="Qwen3MoeForCausalLM", mixer={"method": ATTENTION, "qk_norm": "head"},
        mixer_keys=BIAS | WINDOW, harmless=frozenset({"max_window_layers"}), layout=layouts.QWEN_MOE,
        window_flag=True,
        experts=Experts(hidden="moe_intermediate_size", which="step"),
        defaults=BASE | _QWEN_EXPERTS | {"max_position_embeddings": 32768, "num_key_value_heads": 4,
                                         "sliding_window": 4096, "use_sliding_window": False}),
    "olmoe": Family(
        class_name="OlmoeForCausalLM", mixer={"method": ATTENTION, "qk_norm": "full"},
        mixer_keys=BIAS | {"clip_qkv": "clip_qkv"}, head_dim=False, layout=layouts.QWEN_MOE, experts=Experts(),
        defaults=BASE | {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "pad_token_id": 1,
                         "eos_token_id": 50279, "num_experts_per_tok": 8, "num_experts": 64, "norm_topk_prob": False,
                         "router_aux_loss_coef": 0.01}),
    "granitemoe": Family(
        class_name="GraniteMoeForCausalLM", keys=MULTIPLIERS,
        mixer_keys=BIAS | {"attention_multiplier": "score_scale"}, head_dim=False, layout=layouts.GRANITE_MOE,
        experts=Experts(count="num_local_experts", renormalise=True, block="block_sparse_moe", apart=False,
                        fused=("input_linear.weight", "output_linear.weight")),
        defaults=BASE | LLAMA_IDS | MULTIPLIER_DEFAULTS | {
            "max_position_embeddings": 2048, "num_local_experts": 8, "num_experts_per_tok": 2,
            "router_aux_loss_coef": 0.001}),
    "deepseek_v3": Family(
        class_name="DeepseekV3ForCausalLM", mixer={"method": LATENT}, mixer_keys=_LATENT_KEYS, head_dim=False,
        experts=Experts(**_FREE), layout=layouts.DEEPSEEK, harmless=_DEEPSEEK,
        only={"rope_interleave": (True, None), "scoring_func": ("sigmoid", None), "topk_method": ("noaux_tc", None),
              "moe_layer_freq": (1, None)},
        defaults=BASE | _LATENT | {
            "num_nextn_predict_layers": 1, "max_position_embeddings": 4096, "num_key_value_heads": 128,
            "bos_token_id": 0, "eos_token_id": 1, "n_shared_experts": 1, "n_routed_experts": 256,
            "routed_scaling_factor": 2.5, "n_group": 8, "topk_group": 4,
            "num_experts_per_tok": 8, "first_k_dense_replace": 3, "norm_topk_prob": True,
            "moe_intermediate_size": 2048}),
    "deepseek_v2": Family(
        class_name="DeepseekV2ForCausalLM", mixer={"method": LATENT}, mixer_keys=_LATENT_KEYS, head_dim=False,
        whole_heads=True, layout=layouts.DEEPSEEK, harmless=_DEEPSEEK,
        experts=Experts(**_FREE | {"router": {"method": TOP_K, "scores": "softmax", "group_rank": "best"},
                                   "renormalise": False}),
        only={"scoring_func": ("softmax", None), "norm_topk_prob": (False, None), "mlp_bias": (False, None),
              "topk_method": ("greedy", "group_limited_greedy", None), "moe_layer_freq": (1, None)},
        defaults=BASE | LLAMA_IDS | _LATENT | {
            "max_position_embeddings": 2048, "n_shared_experts": 2, "n_routed_experts": 64,
            "routed_scaling_factor": 1.0, "n_group": None, "topk_group": None, "topk_method": "greedy",
            "num_experts_per_tok": None, "first_k_dense_replace": 0, "moe_intermediate_size": 1407}),
    "glm4_moe": Family(
        class_name="Glm4MoeForCausalLM", mixer={"method": ATTENTION, "out_bias": False}, mixer_keys=BIAS,
        switches={"use_qk_norm": ("qk_norm", "head")}, partial_key="partial_rotary_factor", layout=layouts.GLM_MOE,
        experts=Experts(**_FREE),
        defaults=BASE | {
            "max_position_embeddings": 131072, "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "use_qk_norm": False,
            "num_nextn_predict_layers": 1, "partial_rotary_factor": 0.5, "n_shared_experts": 1, "n_routed_experts": 128,
            "routed_scaling_factor": 1.0, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 8,
            "first_k_dense_replace": 1, "norm_topk_prob": True, "moe_intermediate_size": 1408}),
    "ernie4_5_moe": Family(
        class_name="Ernie4_5_MoeForCausalLM", layout=layouts.ERNIE, only={"use_bias": (False, None)},
        harmless=frozenset({"moe_norm_min", "moe_capacity", "moe_use_aux_free", "num_nextn_predict_layers"}),
        experts=Experts(count="moe_num_experts", k="moe_k", hidden="moe_intermediate_size", renormalise=True,
                        router={"method": LOSS_FREE, "scores": "softmax"}, shared="moe_num_shared_experts",
                        which="span"),
        defaults=BASE | LLAMA_IDS | {
            "max_position_embeddings": 131072, "num_key_value_heads": 4, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
            "pad_token_id": 0, "tie_word_embeddings": True, "moe_num_experts": 64, "moe_k": 6,
            "moe_num_shared_experts": 2, "moe_intermediate_size": 1536, "moe_layer_start_index": 1,
            "moe_layer_end_index": -1, "moe_layer_interval": 1, "router_aux_loss_coef": 0.001}),
    "gpt_oss": Family(
        class_name="GptOssForCausalLM", mixer={"method": ATTENTION, "sinks": True}, mixer_keys=BIAS | WINDOW,
        slides=every(2), layout=layouts.GPT_OSS,
        experts=Experts(count="num_local_experts", renormalise=True, apart=False,
                        router={"method": TOP_K, "scores": "softmax", "bias": True},
                        option_keys={"swiglu_limit": "clamp", "swiglu_alpha": "alpha"}),
        harmless=frozenset({"initial_context_length", "experts_per_token"}),
        defaults=BASE | {
            "head_dim": 64, "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "sliding_window": 128,
            "attention_bias": True, "max_position_embeddings": 131072, "rope_theta": 150000.0,
            "num_local_experts": 128, "num_experts_per_tok": 4, "swiglu_limit": 7.0, "swiglu_alpha": 1.702,
            "router_aux_loss_coef": 0.001,
            "rope_scaling": {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
                             "truncate": False, "original_max_position_embeddings": 4096}}),
}
