"""Write the README's figures from the files that benchmarks and claims left: every number there has such a file.

    python benchmarks/readme.py
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
START, END = "<!-- figures -->", "<!-- /figures -->"


def read(path: str) -> Any:
    """A result file as data; None where it has not been made."""
    file = ROOT / path
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def where(machine: dict[str, Any]) -> str:
    """The machine in a few words."""
    wide = ", AVX512-BF16" if "avx512_bf16" in machine["instructions"] else ""
    return (f"{machine['processor']}{wide}, {machine['threads']} of {machine['cores']} cores, "
            f"torch {machine['torch']}, transformers {machine['transformers']}")


def train_step(data: dict[str, Any]) -> list[str]:
    """The training step beside transformers."""
    ours = data["timings"]["mixwell"]
    lines = [f"**A training step** of a small mixture ({data['tokens_per_step']} tokens; vocabulary 2048, width 256, "
             "4 layers, 8 experts of 512, top-2; forward, backward, AdamW on float32 masters): "
             f"{data['tokens_per_step'] / ours['median_s']:,.0f} tokens/s, "
             f"{data['share_of_gemm_rate']:.0%} of the machine's own bf16 GEMM rate.", "",
             "| beside | setting | mixwell is (medians) |", "|---|---|---|"]
    lines += [f"| transformers' Mixtral, {label} | {r['setting'].removeprefix('transformers ')} | {r['median']:.2f}x |"
              for label, r in data["ratios"].items()]
    return [*lines, "", f"`{data['command']}` on {where(data['machine'])}."]


def moe_layer(data: dict[str, Any]) -> list[str]:
    """The expert layer beside transformers and a dense block."""
    lines = ["**An expert layer** beside transformers' fastest expert implementation, and beside a dense SwiGLU of "
             "equal active FLOPs (medians):", "",
             "| type | case | against transformers | time over dense | of GEMM rate |", "|---|---|---|---|---|"]
    for dtype in ("bf16", "fp32"):
        for case, row in data[dtype]["training"].items():
            lines.append(f"| {dtype} | T 4096, D 512, F 1024, E 16, K 2, {case} | "
                         f"{row['transformers_over_mixwell_median']:.2f}x | "
                         f"{row['mixwell_over_dense_median']:.2f} | {row['share_of_gemm_rate']:.0%} |")
        for tokens, row in data[dtype]["inference"].items():
            lines.append(f"| {dtype} | T {tokens}, D 512, F 512, prepacked inference | "
                         f"{row['transformers_over_mixwell_median']:.2f}x | | {row['share_of_gemm_rate']:.0%} |")
    return [*lines, "", f"`{data['command']}` on {where(data['machine'])}."]


def em(data: dict[str, Any]) -> list[str]:
    """Gaussian mixtures beside scikit-learn and pomegranate."""
    versions, missing = data["versions"], data["missing"]
    lines = [f"**Gaussian mixtures** beside scikit-learn {versions['scikit-learn']} and pomegranate "
             f"{versions['pomegranate']}: ten EM iterations over 200,000 x 16 from the same start, 32 components; "
             "medians:", "",
             "| type | covariances | mixwell, s | scikit-learn, s | ratio | pomegranate's | of GEMM rate | "
             "log-likelihood apart from scikit-learn's |", "|---|---|---|---|---|---|---|---|"]
    for fit in data["fits"]:
        ours = fit["mixwell_s"]["median"]
        other = f"{fit['pomegranate_s']['median'] / ours:.1f}x" if "pomegranate_s" in fit else \
            "fails" if "pomegranate_failed" in fit else ""
        lines.append(f"| {fit['dtype']} | {fit['covariance_type']} | {ours:.2f} | {fit['sklearn_s']['median']:.2f} | "
                     f"{fit['ratio_of_median']:.1f}x | {other} | {fit['share_of_product_rate']:.0%} | "
                     f"{fit['log_likelihood_difference']:.0e} |")
    stream, thin = data["stream"], data["thin"]
    holes, whole = (1e3 * missing[f"{name}_s_per_step"] for name in ("with_holes", "whole"))
    return [*lines, "", f"Where components are so thin that steps are redone in float64, full float32 is "
            f"{thin['ratio_of_median']:.1f}x. {stream['rows']:,} x {stream['columns']} streamed from disk: "
            f"{stream['seconds_per_pass']:.1f} s a pass in {stream['peak_rss_gib']:.2f} GiB. A tenth of "
            f"{missing['rows']:,} x {missing['columns']} float64 values missing, in {missing['patterns']} patterns: "
            f"{holes:.0f} ms a step, {whole:.0f} without holes ({missing['components']} components). "
            f"`python benchmarks/em.py --repeat 5 --stream 10000000` with {data['threads']} threads."]


def claims(rooms: dict[str, dict[str, Any]]) -> list[str]:
    """How many of the papers' claims held here."""
    lines = ["**The papers' claims**, tried on small models and synthetic tasks with three seeds or more:", "",
             "| room | held | did not hold | not testable here |", "|---|---|---|---|"]
    for room, evidence in rooms.items():
        count = Counter(e["outcome"] for e in evidence.values())
        lines.append(f"| [{room}](docs/evidence/{room}.md) | {count['held']} | {count['did not hold']} | "
                     f"{count['not testable here']} |")
    return [*lines, "", "`mixwell claims ROOM` repeats them."]


def figures() -> str:
    """The block between the markers."""
    blocks = [make(data) for make, name in ((train_step, "train_step"), (moe_layer, "moe_layer"), (em, "em"))
              if (data := read(f"benchmarks/results/{name}.json"))]
    rooms = {path.stem: read(f"docs/evidence/{path.name}") for path in sorted(ROOT.glob("docs/evidence/*.json"))}
    if rooms:
        blocks.append(claims(rooms))
    return "\n\n".join("\n".join(block) for block in blocks)


def filled(text: str) -> str:
    """`text` with today's figures between the markers."""
    before, _, rest = text.partition(START)
    return f"{before}{START}\n{figures()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    page = ROOT / "README.md"
    page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
