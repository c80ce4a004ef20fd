"""Write the README's figures from the files that benchmarks left: every number there has such a file.

    python benchmarks/readme.py
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
START, END = "<!-- figures -->", "<!-- /figures -->"


def read(path: str) -> Any:
    """A result file as data; None where it has not been made."""
    file = ROOT / path
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


KINDS = {"avx512-bf16": "AVX512-BF16", "avx512": "AVX512", "avx2": "AVX2", "default": "no AVX2"}
Found = dict[str, dict[str, Any]]  # the figures of one benchmark by kind of machine


def of_kinds(name: str) -> Found:
    """What a benchmark left on each kind of machine, the widest instructions first."""
    found = {kind: read(f"benchmarks/results/{name}-{kind}.json") for kind in KINDS}
    return {kind: data for kind, data in found.items() if data is not None}


def table(found: Found, first: list[str], columns: list[str], rows: dict[tuple[str, ...], dict[str, list[str]]]
          ) -> list[str]:
    """A table with the kinds of machine side by side; `rows` holds each kind's cells, empty where it has none."""
    heads = [*first, *(f"{KINDS[kind]}{column and ': '}{column}" for kind in found for column in columns)]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for labels, cells in rows.items():
        filled = [cell for kind in found for cell in cells.get(kind, [""] * len(columns))]
        lines.append("| " + " | ".join([*labels, *filled]) + " |")
    return lines


def commands(found: Found) -> list[str]:
    """The command and the machine of each kind."""
    return ["", *(f"{KINDS[kind]}: `{data['command']}` on {where(data['machine'])}{_held(data['command'])}."
                  for kind, data in found.items())]


def _held(command: str) -> str:
    """That a processor was told to do less than it can, where the command says so."""
    return "; the processor can do more and is held to AVX2 by these settings" if "ATEN_CPU_" in command else ""


def where(machine: dict[str, Any]) -> str:
    """The machine in a few words."""
    return (f"{machine['processor']}, {machine['threads']} of {machine['cores']} cores, torch {machine['torch']}, "
            f"transformers {machine['transformers']}")


def train_step(found: Found) -> list[str]:
    """The training step beside transformers."""
    some = next(iter(found.values()))
    rows: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for kind, data in found.items():
        seconds = data["timings"]["mixwell"]["median_s"]
        cells = {"computed in": data.get("type", "bf16"), "tokens/s": f"{data['tokens_per_step'] / seconds:,.0f}",
                 "share of the machine's own GEMM rate in that type": f"{data['share_of_gemm_rate']:.0%}"}
        for label, ratio in data["ratios"].items():
            setting = ratio["setting"].removeprefix("transformers ")
            cells[f"against transformers' Mixtral, {label}"] = f"{ratio['median']:.2f}x ({setting})"
        for label, cell in cells.items():
            rows.setdefault((label,), {})[kind] = [cell]
    return [f"**A training step** of a small mixture ({some['tokens_per_step']} tokens; vocabulary 2048, width 256, "
            "4 layers, 8 experts of 512, top-2; forward, backward, AdamW on float32 masters; medians):", "",
            *table(found, [""], [""], rows), *commands(found)]


def moe_layer(found: Found) -> list[str]:
    """The expert layer beside transformers and a dense block."""
    rows: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for kind, data in found.items():
        for dtype, label, row in _layer_rows(data):
            over = f"{row['mixwell_over_dense_median']:.2f}" if "mixwell_over_dense_median" in row else ""
            rows.setdefault((dtype, label), {})[kind] = [f"{row['transformers_over_mixwell_median']:.2f}x", over,
                                                         f"{row['share_of_gemm_rate']:.0%}"]
    return ["**An expert layer** beside transformers' fastest expert implementation, and beside a dense SwiGLU of "
            "equal active FLOPs (medians):", "",
            *table(found, ["type", "case"], ["against transformers", "time over dense", "of GEMM rate"], rows),
            *commands(found)]


def _layer_rows(data: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(type, case, figures) of each measurement."""
    names = {"inference": "prepacked inference", "inference, bf16 weights": "prepacked, weights from bf16"}
    for dtype in ("bf16", "fp32"):
        parts = data.get(dtype, {})
        for case, row in parts.get("training", {}).items():
            yield dtype, f"T 4096, D 512, F 1024, E 16, K 2, {case}", row
        for part, label in names.items():
            for tokens, row in parts.get(part, {}).items():
                yield dtype, f"T {tokens}, D 512, F 512, {label}", row


def transformers_experts(found: Found) -> list[str]:
    """transformers' own layers with mixwell's experts beside its own implementations."""
    rows: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for kind, data in found.items():
        for dtype, shape in itertools.product(("bf16", "fp32"), ("Qwen3-MoE", "Mixtral")):
            for case, row in _inside_rows(data.get(dtype, {}).get(shape)):
                cells = [_ratio(row["over"], "grouped_mm"), _ratio(row["over"], "eager"),
                         _ratio(row.get("packed_over", {}), "grouped_mm")]
                rows.setdefault((dtype, shape, case), {})[kind] = cells
    return ["**transformers' own expert layers** with `experts_implementation=\"mixwell\"`, beside its implementations "
            "`grouped_mm` (its default) and `eager`, at half (Qwen3-MoE: 128 experts, 8 a token) and a quarter "
            "(Mixtral: 8 experts, 2 a token; both backward) of the published widths; the last column with weights "
            "packed by `mixwell.pack_experts` (medians):", "",
            *table(found, ["type", "layer", "case"], ["against grouped_mm", "against eager", "packed, grouped_mm"],
                   rows), *commands(found)]


def _inside_rows(figures: dict[str, Any] | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """(case, figures) of each measurement of a layer."""
    if figures is not None:
        for tokens, row in figures["inference"]["tokens"].items():
            yield f"forward, {tokens} token{'s' if tokens != '1' else ''}", row
        yield "forward and backward, 512 tokens", figures["training"]


def _ratio(over: dict[str, float], name: str) -> str:
    return f"{over[name]:.2f}x" if name in over else ""


def decode(found: Found) -> list[str]:
    """Generation beside transformers."""
    rows: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for kind, data in found.items():
        for weights, row in data["weights"].items():
            ours = data["new_tokens"] / row["timings"]["mixwell"]["median_s"]
            cells = [f"{ours:.1f}", f"{row['ratio_of_medians']:.2f}x ({row['fastest_transformers'].split()[1]})"]
            rows.setdefault((weights,), {})[kind] = cells
    return ["**Generation** of 64 tokens after 32, one row, by a mixture of 224 million parameters (width 512, 12 "
            "layers, 16 experts of 704, top-2) in float32, beside transformers' `generate`; weights with all their "
            "digits, and weights from bfloat16 as public checkpoints hold them (medians):", "",
            *table(found, ["weights"], ["tokens/s", "against transformers"], rows), *commands(found)]


def merging(found: Found) -> list[str]:
    """Merges beside mergekit."""
    rows: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for kind, data in found.items():
        for method, row in data["methods"].items():
            ours, theirs = row["ours"], row["theirs"]
            cells = [f"{ours['cpu_s']:.1f}", f"{ours['peak_bytes'] / 1e9:.2f}", f"{row['times_quicker']:.1f}x",
                     f"{theirs['peak_bytes'] / 1e9:.2f}"]
            rows.setdefault((method,), {})[kind] = cells
    first = next(iter(found.values()))
    apart = first["methods"]["ties"]["share_apart"]
    return [f"**Merging** {first['models']} models of {first['model_bytes'] / 1e6:.0f} MB in float32 (slerp: 2) beside "
            "mergekit 0.1.5, each a process of its own with start and imports "
            f"({first['imports_alone']['cpu_s']:.1f} s of ours); seconds of one core, peak memory in GB. Numbers are "
            f"equal to 1e-6, but in TIES {apart:.0e} of them, where several changes are as large as the last one kept; "
            "dare_ties draws:", "",
            *table(found, ["method"], ["s", "GB", "mergekit's time", "mergekit's GB"], rows), *commands(found)]


def converting(found: Found) -> list[str]:
    """Peak memory of conversions."""
    rows: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for kind, data in found.items():
        for method, row in data["methods"].items():
            label = f"convert.{method} {' '.join(row['options'])}"
            cells = [f"{row['result_bytes'] / 1e6:.0f}", f"{row['peak_bytes'] / 1e6:.0f}", f"{row['cpu_s']:.0f}"]
            rows.setdefault((label,), {})[kind] = cells
    first = next(iter(found.values()))
    alone = first["imports_alone"]["peak_bytes"] / 1e6
    return [f"**Conversions** of a model of {first['model_bytes'] / 1e6:.0f} MB in float32, each a process of its own "
            f"with its receipt ({alone:.0f} MB are imports); MB of the result, MB at the peak, seconds of one core:",
            "", *table(found, ["method"], ["result", "peak", "s"], rows), *commands(found)]


def conversions(found: Found) -> list[str]:
    """The recipe's stages by domain, on the first kind of machine that ran it."""
    kind, data = next(iter(found.items()))
    stages = data["stages"]
    domains = list(stages[0]["bits_per_byte"])
    minutes = data["seconds"] / 60
    lines = [f"**A model's life** (`mixwell run conversions`, {minutes:.1f} minutes here): bits per byte of held-out "
             "text by domain after each stage, and millions of parameters, in all and for a token.", "",
             "| stage | " + " | ".join(domains) + " | mean | parameters | active |",
             "|---" * (len(domains) + 4) + "|"]
    for stage in stages:
        bits = [f"{stage['bits_per_byte'][name]:.3f}" for name in domains]
        sizes = [f"{stage[name] / 1e6:.2f}" for name in ("parameters", "active_parameters")]
        cells = [stage["id"], *bits, f"{stage['mean']:.3f}", *sizes]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, "", *commands({kind: data})]


def adapters(found: Found) -> list[str]:
    """Training adapters on experts beside peft, and several adapters in one batch."""
    rows: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for kind, data in found.items():
        steps, peaks = data["timings"], data["peak_bytes"]
        for name, timing in steps.items():
            over = steps["peft"]["median_s"] / timing["median_s"]
            cells = [f"{timing['median_s']:.2f}", f"{over:.2f}x", f"{peaks[name] / 1e9:.2f}"]
            rows.setdefault((name,), {})[kind] = cells
    first = next(iter(found.values()))
    beside = ", ".join(f"{KINDS[kind]} {_several(data)}" for kind, data in found.items())
    return [f"**A training step with LoRA** (rank {first['rank']}) on all experts of a Qwen3-MoE of "
            f"{first['parameters'] / 1e6:.0f} million parameters, {first['tokens']} tokens, in float32 beside peft "
            f"{first['peft']}; `full` trains all parameters and has no optimiser's step. Peak memory of the process in "
            "GB; medians. A token of each of "
            f"{first['rows']} rows takes, with an adapter each, so much of the time with one for all: {beside}.", "",
            *table(found, [""], ["s", "peft's time", "GB"], rows), *commands(found)]


def _several(data: dict[str, Any]) -> str:
    """Time of rows with adapters of their own over that of rows with one."""
    each, one = (data["many"][name]["median_s"] for name in ("each its own", "one adapter"))
    return f"{each / one:.2f}x"


def gguf_export(found: Found) -> list[str]:
    """Files for llama.cpp beside package gguf's own quantiser."""
    rows: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for kind, data in found.items():
        for name, row in data["types"].items():
            rows.setdefault((name,), {})[kind] = [f"{row['ours_s']:.2f}", f"{row['times_quicker']:.1f}x"]
    first = next(iter(found.values()))
    return [f"**Export to GGUF** of {first['parameters'] / 1e6:.0f} million parameters that lie in memory, beside "
            "package gguf's own quantiser and writer; the least time of a few:", "",
            *table(found, ["type"], ["s", "package gguf's time"], rows), *commands(found)]


def em(found: Found) -> list[str]:
    """Gaussian mixtures beside scikit-learn and pomegranate."""
    versions = next(iter(found.values()))["versions"]
    rows: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for kind, data in found.items():
        for fit in data["fits"]:
            label = fit["dtype"], fit["covariance_type"]
            ours = fit["mixwell_s"]["median"]
            rows.setdefault(label, {})[kind] = [f"{ours:.2f}", f"{fit['ratio_of_median']:.1f}x", _pomegranate(fit),
                                                f"{fit['share_of_product_rate']:.0%}"]
    beside = [f"pomegranate {versions['pomegranate']}"] if "pomegranate" in versions else []
    others = " and ".join([f"scikit-learn {versions['scikit-learn']}", *beside])
    return [f"**Gaussian mixtures** beside {others}: ten EM iterations over 200,000 x 16 from the same start, 32 "
            "components; medians:", "",
            *table(found, ["type", "covariances"], ["s", "scikit-learn's time", "pomegranate's", "of GEMM rate"], rows),
            "", *(f"{KINDS[kind]}: {_em_beside(data)}" for kind, data in found.items()), *commands(found)]


def _pomegranate(fit: dict[str, Any]) -> str:
    """Its time over ours."""
    if "pomegranate_failed" in fit:
        return "fails"
    if "pomegranate_s" not in fit:
        return ""
    return f"{fit['pomegranate_s']['median'] / fit['mixwell_s']['median']:.1f}x"


def _em_beside(data: dict[str, Any]) -> str:
    """Agreement, thin components, rows from disk and missing values."""
    missing, apart = data["missing"], max(fit["log_likelihood_difference"] for fit in data["fits"])
    holes, whole = (1e3 * missing[f"{name}_s_per_step"] for name in ("with_holes", "whole"))
    streamed = ""
    if stream := data.get("stream"):
        size, pace = f"{stream['rows']:,} x {stream['columns']}", f"{stream['seconds_per_pass']:.1f} s a pass"
        streamed = f"{size} streamed from disk: {pace} in {stream['peak_rss_gib']:.2f} GiB. "
    return (f"log-likelihoods at most {apart:.0e} from scikit-learn's. Where components are so thin that steps are "
            f"redone in float64, full float32 is {data['thin']['ratio_of_median']:.1f}x. {streamed}A tenth of "
            f"{missing['rows']:,} x {missing['columns']} float64 values missing, in {missing['patterns']} patterns: "
            f"{holes:.0f} ms a step, {whole:.0f} without holes.")


def figures() -> str:
    """The block between the markers."""
    makers = (train_step, moe_layer, transformers_experts, decode, merging, converting, conversions, adapters,
              gguf_export, em)
    blocks = [make(found) for make in makers if (found := of_kinds(make.__name__))]
    return "\n\n".join("\n".join(block) for block in blocks)


def filled(text: str) -> str:
    """`text` with today's figures between the markers."""
    before, _, rest = text.partition(START)
    return f"{before}{START}\n{figures()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    page = ROOT / "README.md"
    page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
