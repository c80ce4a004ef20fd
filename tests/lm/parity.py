"""Small random models of every Hugging Face decoder that mixwell reads, and how closely the two agree on each.

    python -m tests.lm.parity           # prints the table
    python -m tests.lm.parity --save    # and writes it to docs/families.md
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from safetensors.torch import load_file

import mixwell

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8, "rope_theta": 10000.0}
BASE = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "pad_token_id": 0}
FOUR = {"num_experts": 4, "num_experts_per_tok": 2}
LATENT = {"kv_lora_rank": 12, "q_lora_rank": 10, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 5,
          "num_key_value_heads": 4, "moe_intermediate_size": 16}
GROUPED = {"n_routed_experts": 8, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2}
MULTIPLIERS = {"embedding_multiplier": 3.0, "residual_multiplier": 0.7, "logits_scaling": 1.7,
               "attention_multiplier": 0.2}
WINDOWED = {"head_dim": 8, "num_hidden_layers": 3, "sliding_window": 4, "query_pre_attn_scalar": 20}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama, scaled and biased": {"attention_bias": True, "rope_scaling": LLAMA3, "eos_token_id": [2, 5]},
    "llama, tied": {"tie_word_embeddings": True, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "llama, YaRN": {"rope_parameters": YARN, "mlp_bias": True},
    "llama, dynamic": {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": 8},
    "llama, gelu": {"hidden_act": "gelu"},
    "mistral": {"sliding_window": 5, "head_dim": 12},
    "qwen2": {},
    "qwen2, windows in some layers": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1,
                                      "rope_parameters": YARN | {"attention_factor": 1.3, "truncate": False}},
    "qwen3": {"head_dim": 16, "attention_bias": True},
    "qwen3, windows in some layers": {"head_dim": 8, "use_sliding_window": True, "sliding_window": 4,
                                      "max_window_layers": 1},
    "olmo2": {"eos_token_id": 2, "attention_bias": True},
    "smollm3": {"num_hidden_layers": 4, "no_rope_layer_interval": 2, "eos_token_id": 2, "bos_token_id": 1},
    "smollm3, windows": {"num_hidden_layers": 4, "no_rope_layers": [1, 0, 0, 1], "eos_token_id": 2, "bos_token_id": 1,
                         "use_sliding_window": True, "sliding_window": 3, "mlp_bias": True},
    "granite": MULTIPLIERS | {"mlp_bias": True},
    "gemma2": WINDOWED | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 1.5},
    "gemma3_text": WINDOWED | {"sliding_window_pattern": 3, "attention_bias": True},
    "gemma3_text, stretched": WINDOWED | {
        "sliding_window_pattern": 2,
        "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5000.0},
                            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}}},
    "phi3": {"eos_token_id": 2, "sliding_window": 6},
    "phi3, LongRoPE": {
        "eos_token_id": 2, "original_max_position_embeddings": 8, "max_position_embeddings": 48, "head_dim": None,
        "rope_parameters": {"rope_type": "longrope", "short_factor": [1.0, 1.1, 1.3], "long_factor": [1.5, 3.0, 7.0],
                            "rope_theta": 10000.0, "partial_rotary_factor": 0.75}},
    "cohere2": {"logit_scale": 0.5, "num_hidden_layers": 4, "sliding_window": 4, "eos_token_id": 2, "bos_token_id": 1},
    "gpt_neox": {"num_key_value_heads": None},
    "gpt_neox, in sequence": {"num_key_value_heads": None, "use_parallel_residual": False, "attention_bias": False,
                              "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0,
                                                  "partial_rotary_factor": 0.5}},
    "gpt2": {"n_positions": 32, "bos_token_id": 1, "eos_token_id": 2},
    "mixtral": {"num_local_experts": 4},
    "mixtral, one expert a token": {"num_local_experts": 4, "num_experts_per_tok": 1},
    "qwen2_moe": FOUR | {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 20},
    "qwen2_moe, some layers dense": FOUR | {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 20,
                                            "mlp_only_layers": [1], "norm_topk_prob": True, "qkv_bias": False},
    "qwen3_moe": FOUR | {"moe_intermediate_size": 16, "norm_topk_prob": True},
    "qwen3_moe, some layers dense": FOUR | {"moe_intermediate_size": 16, "decoder_sparse_step": 2, "head_dim": 16},
    "olmoe": FOUR | {"eos_token_id": 2},
    "olmoe, clipped": {"num_experts": 4, "num_experts_per_tok": 3, "eos_token_id": 2, "clip_qkv": 0.5,
                       "norm_topk_prob": True},
    "granitemoe": MULTIPLIERS | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": LATENT | GROUPED | {"first_k_dense_replace": 1, "n_shared_experts": 2},
    "deepseek_v3, YaRN": LATENT | GROUPED | {
        "first_k_dense_replace": 0, "q_lora_rank": None, "attention_bias": True,
        "rope_parameters": YARN | {"mscale": 0.7, "mscale_all_dim": 1.2}},
    "deepseek_v2": LATENT | GROUPED | {"topk_method": "group_limited_greedy", "first_k_dense_replace": 1},
    "deepseek_v2, greedy": LATENT | {"n_routed_experts": 8, "num_experts_per_tok": 3, "q_lora_rank": None,
                                     "routed_scaling_factor": 1.5, "rope_parameters": YARN},
    "glm4_moe": GROUPED | {"moe_intermediate_size": 16, "head_dim": 16, "use_qk_norm": True, "attention_bias": True},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16, "num_hidden_layers": 3},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, "sliding_window": 4,
                "swiglu_limit": 1.0},
}
TOKENS = torch.tensor([[7, 61, 5, 33, 12, 9, 50, 18, 44, 3, 27], [6, 6, 19, 40, 8, 55, 23, 4, 31, 62, 15]])
NEW = 10  # tokens to generate


def config_of(name: str) -> Any:
    """The transformers config of one of `MODELS`."""
    import transformers

    model_type, own = name.split(",")[0], MODELS[name]
    base = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "pad_token_id": 0}
    options = (base if model_type == "gpt2" else BASE) | own
    return transformers.AutoConfig.for_model(model_type, **{k: v for k, v in options.items() if v is not None
                                                            or k == "q_lora_rank"})


def reference(name: str, folder: Path, **options: Any) -> Any:
    """A random transformers model, and the folder that it saved."""
    import transformers

    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config_of(name)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3) if parameter.ndim > 1 else parameter.uniform_(0.3, 0.6)
        for buffer_name, buffer in model.named_buffers():
            if buffer_name.endswith("e_score_correction_bias"):
                buffer.normal_(0, 0.2)
    model.save_pretrained(folder, **options)
    return model


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    """Float32 logits of `TOKENS`."""
    out = model(TOKENS)
    return out.logits_BTV if hasattr(out, "logits_BTV") else out.logits


def compare(name: str, folder: Path) -> dict[str, Any]:
    """Load what transformers saved, and compare logits, generation, and the folder saved and read again."""
    import transformers

    theirs = reference(name, folder / "theirs")
    ours = mixwell.load(folder / "theirs").eval()
    expected = logits(theirs)
    wanted = theirs.generate(TOKENS, max_new_tokens=NEW, do_sample=False)
    written = ours.save(folder / "ours")
    again, report = transformers.AutoModelForCausalLM.from_pretrained(written, output_loading_info=True)
    stored, saved = (load_file(path / "model.safetensors") for path in (folder / "theirs", written))
    return {
        "model_type": name.split(",")[0],
        "class": type(theirs).__name__,
        "spread": expected.std().item(),
        "logit_error": (logits(ours) - expected).abs().max().item(),
        "same_tokens": torch.equal(ours.generate(TOKENS, NEW), wanted),
        "same_bits": stored.keys() == saved.keys() and all(torch.equal(stored[n], saved[n]) for n in stored),
        "read_again": type(again) is type(theirs) and not any(report.values()),
        "again_error": (logits(again) - expected).abs().max().item(),
        "same_stops": again.generation_config.eos_token_id == theirs.generation_config.eos_token_id,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """One line a decoder, the largest error of its variants."""
    import transformers

    head = ("| decoder | model_type | variants tried | largest logit error | greedy tokens | saved again |\n"
            "|---|---|---|---|---|---|\n")
    lines = []
    for model_type in dict.fromkeys(row["model_type"] for row in rows):
        own = [row for row in rows if row["model_type"] == model_type]
        error = max(row["logit_error"] for row in own)
        tokens = "the same" if all(row["same_tokens"] for row in own) else "differ"
        bits = "the same bits" if all(row["same_bits"] and row["read_again"] for row in own) else "differs"
        name = own[0]["class"].removesuffix("ForCausalLM").removesuffix("LMHeadModel")
        lines.append(f"| {name} | `{model_type}` | {len(own)} | {error:.0e} | {tokens} | {bits} |\n")
    return (f"{head}{''.join(lines)}\n`python -m tests.lm.parity --save` with torch {torch.__version__}, transformers "
            f"{transformers.__version__}: random models of two to four layers in float32 beside transformers' own; "
            f"{NEW} tokens generated after {TOKENS.shape[1]}; the folder written again and read by transformers.\n")


def main() -> None:
    """Compare every model, print the table, and with --save write it into the page."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--save", action="store_true", help=f"write {PAGE.name}")
    arguments = parser.parse_args()
    rows = []
    for name in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(compare(name, Path(folder)))
    found = table(rows)
    print(found)
    if arguments.save:
        head = PAGE.read_text().split("<!-- parity -->")[0]
        PAGE.write_text(f"{head}<!-- parity -->\n{found}")


if __name__ == "__main__":
    main()
