"""Tensor names of the decoders, and the orders of rows that some of them keep.

The parts of a canonical tensor stand below each other in it. Names without a place here belong to experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixwell.lm.hf.forms import Layout, View

Parts = dict[str, tuple[str, ...]]


def _three(form: str) -> tuple[str, ...]:
    return tuple(form.format(x) for x in "qkv")


NORMS: Parts = {"sequence_norm.weight": ("input_layernorm.weight",),
                "channel_norm.weight": ("post_attention_layernorm.weight",)}
ATTENTION: Parts = {
    "sequence_mixer.qkv.weight": _three("self_attn.{}_proj.weight"),
    "sequence_mixer.qkv.bias": _three("self_attn.{}_proj.bias"),
    "sequence_mixer.out.weight": ("self_attn.o_proj.weight",),
    "sequence_mixer.out.bias": ("self_attn.o_proj.bias",),
    "sequence_mixer.q_norm.weight": ("self_attn.q_norm.weight",),
    "sequence_mixer.k_norm.weight": ("self_attn.k_norm.weight",),
}
BLOCK: Parts = {
    "channel_mixer.gate_up_proj": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "channel_mixer.gate_up_bias": ("mlp.gate_proj.bias", "mlp.up_proj.bias"),
    "channel_mixer.down_proj": ("mlp.down_proj.weight",),
    "channel_mixer.down_bias": ("mlp.down_proj.bias",),
}
LLAMA_PARTS = NORMS | ATTENTION | BLOCK
LLAMA = Layout(parts=LLAMA_PARTS)


def shared(name: str) -> Parts:
    """Shared experts under `name`, with the gate that some have."""
    return {
        "channel_mixer.shared_gate_up_proj": (f"mlp.{name}.gate_proj.weight", f"mlp.{name}.up_proj.weight"),
        "channel_mixer.shared_down_proj": (f"mlp.{name}.down_proj.weight",),
        "channel_mixer.shared_gate": (f"mlp.{name}_gate.weight",),
    }


ROUTER: Parts = {"channel_mixer.router.weight": ("mlp.gate.weight",),
                 "channel_mixer.router.bias": ("mlp.gate.e_score_correction_bias",)}
MIXTRAL = Layout(parts=LLAMA_PARTS | {"channel_mixer.router.weight": ("block_sparse_moe.gate.weight",)})
QWEN_MOE = Layout(parts=LLAMA_PARTS | ROUTER | shared("shared_expert"))
GLM_PARTS = LLAMA_PARTS | ROUTER | shared("shared_experts")
GLM_MOE = Layout(parts=GLM_PARTS)
GRANITE_MOE = Layout(parts=LLAMA_PARTS | {"channel_mixer.router.weight": ("block_sparse_moe.router.layer.weight",)})

OLMO2_PARTS = ATTENTION | BLOCK | {
    "sequence_norm_after.weight": ("post_attention_layernorm.weight",),
    "channel_norm_after.weight": ("post_feedforward_layernorm.weight",)}
OLMO2 = Layout(parts=OLMO2_PARTS)
GEMMA = Layout(parts=OLMO2_PARTS | {
    "sequence_norm.weight": ("input_layernorm.weight",),
    "channel_norm.weight": ("pre_feedforward_layernorm.weight",)})
PHI3 = Layout(parts=LLAMA_PARTS | {
    "sequence_mixer.qkv.weight": ("self_attn.qkv_proj.weight",),
    "channel_mixer.gate_up_proj": ("mlp.gate_up_proj.weight",)})


def _half_pairs(first: int, width: int) -> list[int]:
    """Rows (i, i + width / 2) that turn together, from rows (2 i, 2 i + 1), `first` the number of the first."""
    end = first + width
    evens = range(first, end, 2)
    odds = range(first + 1, end, 2)
    return [*evens, *odds]


def halves(arch: Mapping[str, Any], rows: int) -> list[int]:
    """Gate above up, from rows that take turns."""
    return _half_pairs(0, rows)


GPT_OSS = Layout(
    parts=LLAMA_PARTS | {
        "sequence_mixer.sinks": ("self_attn.sinks",),
        "channel_mixer.router.weight": ("mlp.router.weight",),
        "channel_mixer.router.bias": ("mlp.router.bias",),
        "channel_mixer.gate_up_bias": ("mlp.experts.gate_up_proj_bias",),
        "channel_mixer.down_bias": ("mlp.experts.down_proj_bias",)},
    views={
        "channel_mixer.gate_up_proj": View(order=halves, transposed=True),
        "channel_mixer.gate_up_bias": View(order=halves),
        "channel_mixer.down_proj": View(transposed=True)})


def turned_heads(arch: Mapping[str, Any], rows: int) -> list[int]:
    """Queries and keys whose pairs lie side by side in the file; values as they are."""
    queries, groups = arch["num_heads"], arch.get("num_kv_heads") or arch["num_heads"]
    width = rows // (queries + 2 * groups)
    order: list[int] = []
    for head in range(queries + groups):
        order += _half_pairs(head * width, width)
    return [*order, *range(len(order), rows)]


TURNED = {f"sequence_mixer.qkv.{part}": View(order=turned_heads) for part in ("weight", "bias")}
COHERE = Layout(parts=LLAMA.parts, views=TURNED)
ERNIE = Layout(
    parts=GLM_PARTS | {"channel_mixer.router.bias": ("mlp.moe_statics.e_score_correction_bias",)},
    views=TURNED | {"channel_mixer.router.bias": View(extra=True)})


def _latent(arch: Mapping[str, Any]) -> Mapping[str, Any]:
    mixers = arch["sequence_mixer"]
    return mixers if isinstance(mixers, Mapping) else mixers[0]


def turned_queries(arch: Mapping[str, Any], rows: int) -> list[int]:
    """Latent attention's queries: the pairs of each head's turning part lie side by side in the file."""
    still, turning = _latent(arch)["nope_dim"], _latent(arch)["rope_dim"]
    order: list[int] = []
    for first in range(0, rows, still + turning):
        order += [*range(first, first + still), *_half_pairs(first + still, turning)]
    return order


def turned_keys(arch: Mapping[str, Any], rows: int) -> list[int]:
    """The same of the keys' shared turning part, behind the latent."""
    first = _latent(arch)["kv_rank"]
    return [*range(first), *_half_pairs(first, rows - first)]


DEEPSEEK = Layout(
    parts=NORMS | BLOCK | ROUTER | shared("shared_experts") | {
        "sequence_mixer.q.weight": ("self_attn.q_proj.weight",),
        "sequence_mixer.q_down.weight": ("self_attn.q_a_proj.weight",),
        "sequence_mixer.q_down.bias": ("self_attn.q_a_proj.bias",),
        "sequence_mixer.q_norm.weight": ("self_attn.q_a_layernorm.weight",),
        "sequence_mixer.q_up.weight": ("self_attn.q_b_proj.weight",),
        "sequence_mixer.kv_down.weight": ("self_attn.kv_a_proj_with_mqa.weight",),
        "sequence_mixer.kv_down.bias": ("self_attn.kv_a_proj_with_mqa.bias",),
        "sequence_mixer.kv_norm.weight": ("self_attn.kv_a_layernorm.weight",),
        "sequence_mixer.kv_up.weight": ("self_attn.kv_b_proj.weight",),
        "sequence_mixer.out.weight": ("self_attn.o_proj.weight",),
        "sequence_mixer.out.bias": ("self_attn.o_proj.bias",)},
    views={
        "sequence_mixer.q.weight": View(order=turned_queries),
        "sequence_mixer.q_up.weight": View(order=turned_queries),
        "sequence_mixer.kv_down.weight": View(order=turned_keys),
        "sequence_mixer.kv_down.bias": View(order=turned_keys)})


def _with_biases(names: Mapping[str, str]) -> Parts:
    """A weight and a bias for each canonical stem and its stem in the file."""
    found: Parts = {}
    for canonical, stored in names.items():
        dot = "_" if canonical.endswith(("up", "down")) else "."
        weight = f"{canonical}_proj" if dot == "_" else f"{canonical}.weight"
        found[weight] = (f"{stored}.weight",)
        found[f"{canonical}{dot}bias"] = (f"{stored}.bias",)
    return found


def split_heads(arch: Mapping[str, Any], rows: int) -> list[int]:
    """Queries, keys and values of all heads in turn, from rows where each head holds its three."""
    heads = arch["num_heads"]
    width = rows // (3 * heads)
    order: list[int] = []
    for part in range(3):
        for head in range(heads):
            first = (3 * head + part) * width
            order += range(first, first + width)
    return order


_FINAL = ("weight", "bias")
GPT_NEOX = Layout(
    bases=("gpt_neox.",), embedding="embed_in.weight", head="embed_out.weight",
    whole={f"norm.{x}": f"final_layer_norm.{x}" for x in _FINAL},
    parts=_with_biases({
        "sequence_norm": "input_layernorm", "channel_norm": "post_attention_layernorm",
        "sequence_mixer.qkv": "attention.query_key_value", "sequence_mixer.out": "attention.dense",
        "channel_mixer.up": "mlp.dense_h_to_4h", "channel_mixer.down": "mlp.dense_4h_to_h"}),
    views={f"sequence_mixer.qkv.{x}": View(order=split_heads) for x in _FINAL},
    constants=("rotary_emb.inv_freq", "attention.bias", "attention.masked_bias"))

GPT2 = Layout(
    bases=("transformer.", ""), layer="h.{}.", embedding="wte.weight",
    whole={"positions.weight": "wpe.weight"} | {f"norm.{x}": f"ln_f.{x}" for x in _FINAL},
    parts=_with_biases({
        "sequence_norm": "ln_1", "channel_norm": "ln_2", "sequence_mixer.qkv": "attn.c_attn",
        "sequence_mixer.out": "attn.c_proj", "channel_mixer.up": "mlp.c_fc", "channel_mixer.down": "mlp.c_proj"}),
    views=dict.fromkeys(("sequence_mixer.qkv.weight", "sequence_mixer.out.weight", "channel_mixer.up_proj",
                         "channel_mixer.down_proj"), View(transposed=True)),
    constants=("attn.bias", "attn.masked_bias"))
