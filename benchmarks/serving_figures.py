"""Write the figures of docs/serving.md from the files that benchmarks and loads left.

    python benchmarks/serving_figures.py
"""

from __future__ import annotations

from typing import Any

from readme import END, ROOT, START, Found, commands, of_kinds, read, table, where

PAGE = ROOT / "docs" / "serving.md"
LOADS = (16, 64)  # clients of the loads that are told


def serving(found: Found) -> list[str]:
    """The server beside others, by clients."""
    rows: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for kind, data in found.items():
        for server in ("mixwell", "llama.cpp", "transformers serve"):
            for clients, row in data.get(server, {}).items():
                cells = [f"{row['tokens_per_s']:.1f}", f"{row['first_median_s']:.2f}",
                         f"{1e3 * row['between_median_s']:.0f}", f"{1e3 * row['between_p99_s']:.0f}"]
                rows.setdefault((server, clients), {})[kind] = cells
    some = next(iter(found.values()))
    lines = [f"**Servers** of SmolLM2-135M in float32, one core, continuations of {some['tokens']} tokens after "
             "prompts of about 90 that share nothing, as streams (`generate` of a lone row: "
             f"{some['generate_tokens_per_s']:.1f} tokens/s with the reading of its prompt):", "",
             *table(found, ["server", "clients"], ["tokens/s of all", "first token, s", "between tokens, ms",
                                                   "99 of 100 within, ms"], rows), ""]
    for data in found.values():
        pieces = "; ".join(f"`{piece}`" for piece in data["pieces"])
        lines.append(f"{pieces} on {where(data['machine'])}.")
    return lines


def offload(found: Found) -> list[str]:
    """Experts that wait on disk."""
    rows: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for kind, data in found.items():
        for way, row in data["ways"].items():
            asked = row["asked_for"]
            there = f"{asked['hits'] / sum(asked.values()):.0%}" if asked else ""
            cells = [f"{row['held_bytes'] / 2**30:.2f}", f"{row['peak_bytes'] / 2**30:.2f}",
                     f"{row['tokens_per_s']:.1f}", there]
            rows.setdefault((way,), {})[kind] = cells
    return ["**Experts on disk**: a mixture of 0.45 billion parameters (12 layers, 32 experts, top-2, untrained), "
            "stored in bfloat16 and computed with in float32, one row; `--resident K` keeps K experts of each layer:",
            "",
            *table(found, ["experts"], ["GiB held", "GiB at most", "tokens/s", "found in memory"], rows),
            *commands(found)]


def load() -> list[str]:
    """What memory does under many clients."""
    lines = ["**Memory under load**: clients of twelve kinds, most of whom misbehave, at a server of a tiny model; its "
             "resident memory in MiB, medians of thirds of the run. No fault was found: no answer without the key, "
             "every stream complete, all blocks free at the end.", "",
             "| clients | minutes | requests | at the start | first third | second | last |", "|---" * 7 + "|"]
    told = []
    for clients in LOADS:
        data: Any = read(f"benchmarks/results/load-{clients}.json")
        cells = [clients, f"{data['minutes']:g}", f"{data['requests']:,}", data["start_mib"], data["first_third_mib"],
                 data["middle_third_mib"], data["last_third_mib"]]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
        told.append(f"`{data['command']}`")
    return [*lines, "", "; ".join(told) + "."]


def filled(text: str) -> str:
    """`text` with today's figures between the markers."""
    blocks = [serving(of_kinds("serving")), load(), offload(of_kinds("offload"))]
    figures = "\n\n".join("\n".join(block) for block in blocks)
    before, _, rest = text.partition(START)
    return f"{before}{START}\n{figures}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
