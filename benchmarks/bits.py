"""One row at a time in 32, 16, 8 and 4 bits: mixwell beside llama.cpp (xllamacpp) at equal bits, same weights.

    python benchmarks/bits.py --threads 1 --xllamacpp /path/to/venv/bin/python --save

The mixture of benchmarks/decode.py (224 million parameters, 48 million of them for a token), every matrix rounded in
groups of 32 by `precision.integers` and by llama.cpp's q8_0 and q4_0, which have groups of 32, too. mixwell's inputs
stay floating: float32, or bfloat16 where that computes faster; llama.cpp rounds them to eight bits in q8_0 and q4_0.
Reading a prompt of 512 tokens, and writing 64 tokens behind one of 32; the best of a few turns, each of all in order.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import decode
import torch
from _parts import parser, save, start

from mixwell.kernels.packing import prepack
from mixwell.kernels.rates import compute_dtype, rates
from mixwell.lm.gguf.writing import write_gguf
from mixwell.lm.model import LanguageModel
from mixwell.lm.tokenizer import Tokenizer
from mixwell.precision.integers import Config, integers

GROUP = 32
LONG, SHORT, NEW = 512, 32, 64
EQUAL = {"float32": "f32", "bfloat16": "bf16", "int8": "q8_0", "int4": "q4_0"}
BITS = {"float32": 32.0, "bfloat16": 16.0, "int8": 8 + 16 / GROUP, "int4": 4 + 16 / GROUP}


def models() -> dict[str, LanguageModel]:
    """mixwell's, by the bits of their weights."""
    decode.CONFIG = dataclasses.replace(decode.CONFIG, max_positions=1024)
    whole = decode.model("bfloat16")
    whole.tokenizer = Tokenizer.train(["the weights of a mixture are worked out for each item anew"] * 4, 280)
    checkpoint = whole.to_checkpoint()
    found = {"float32": whole}
    dtype = compute_dtype()
    if dtype == torch.bfloat16:
        found["bfloat16"] = LanguageModel.from_checkpoint(checkpoint, dtype=dtype).eval()
    for bits in (8, 4):
        config = Config(bits=bits, group_size=GROUP, head=True)
        rounded = integers(checkpoint, config, torch.Generator())
        found[f"int{bits}"] = LanguageModel.from_checkpoint(rounded, dtype=dtype).eval()
    return found


def active() -> int:
    """Numbers in the matrices that one token is multiplied with."""
    config = decode.CONFIG
    experts = config.channel_mixer
    each = 3 * config.dim * experts["hidden_dim"] * experts["router"]["k"] + 4 * config.dim**2
    return config.num_layers * each + config.vocab_size * config.dim


def timed(model: LanguageModel, length: int, new: int, clock: Callable[[], float]) -> float:
    """Seconds of one answer."""
    prompt = torch.arange(length).mul(7).remainder(decode.CONFIG.vocab_size)[None]
    began = clock()
    model.generate(prompt, new, eos_token_id=())
    return clock() - began


def ours(found: dict[str, LanguageModel], repeats: int, clock: Callable[[], float]) -> dict[str, dict[str, float]]:
    """Tokens a second of each model; the first turn warms up."""
    speeds = {name: {"decode": 0.0, "prefill": 0.0} for name in found}
    for turn in range(repeats + 1):
        for name, model in found.items():
            reading = timed(model, LONG, 1, clock)
            first, whole = timed(model, SHORT, 1, clock), timed(model, SHORT, NEW + 1, clock)
            if turn:
                own = speeds[name]
                own["prefill"] = max(own["prefill"], LONG / reading)
                own["decode"] = max(own["decode"], NEW / (whole - first))
    return speeds


def theirs(python: str, files: dict[str, str], threads: int, repeats: int) -> dict[str, dict[str, float]]:
    """The same of llama.cpp."""
    given = {"files": files, "threads": threads, "repeats": repeats, "prompt": LONG, "short": SHORT, "new": NEW,
             "vocabulary": 256}
    script = Path(__file__).with_name("_llama_cpp.py")
    answer = subprocess.run([python, str(script)], input=json.dumps(given), capture_output=True, text=True, check=True)
    line = next(line for line in answer.stdout.splitlines() if line.startswith("figures "))
    found: dict[str, dict[str, float]] = json.loads(line.removeprefix("figures "))
    return found


def written(model: LanguageModel, folder: Path, kinds: list[str]) -> dict[str, str]:
    """GGUF files of the model; those that lie there are taken."""
    files = {kind: folder / f"mixture-{kind}.gguf" for kind in kinds}
    for kind, file in files.items():
        if not file.exists():
            write_gguf(model.to_checkpoint(), file, kind)
    return {kind: str(file) for kind, file in files.items()}


def compared(speeds: dict[str, dict[str, float]], peers: dict[str, dict[str, float]], numbers: int) -> dict[str, Any]:
    """One row for each width, printed and returned."""
    gbps = rates().memory_gbps
    rows: dict[str, Any] = {}
    for name, own in speeds.items():
        peer = peers.get(EQUAL[name], {})
        ratios = {f"{what}_ratio": own[what] / peer[what] for what in own if what in peer}
        read_gb = numbers * BITS[name] / 8 / 1e9
        share = own["decode"] * read_gb / gbps
        rows[name] = {**own, **ratios, "llama_cpp": peer, "share_of_memory_rate": share}
        told = " ".join(f"{key} {value:.2f}" for key, value in rows[name].items() if isinstance(value, float))
        print(f"{name:9s} {told} | llama.cpp {EQUAL[name]} {peer}", flush=True)
    return rows


def main() -> None:
    """Run, print, and save where asked."""
    options = parser(__doc__ or "")
    options.add_argument("--xllamacpp", help="a Python that has xllamacpp")
    options.add_argument("--folder", help="where GGUF files are kept for another run; default: nowhere")
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--write-only", action="store_true", help="write the GGUF files and stop")
    given = options.parse_args()
    clock = start(given)
    found = models()
    numbers = active()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(given.folder or temporary)
        kinds = [EQUAL[name] for name in found]
        files = written(found["float32"], folder, kinds) if given.xllamacpp or given.write_only else {}
        if given.write_only:
            return
        prepack(found["float32"])
        if "bfloat16" in found:
            prepack(found["bfloat16"])
        peers = theirs(given.xllamacpp, files, given.threads, given.repeats) if files else {}
    rows = compared(ours(found, given.repeats, clock), peers, numbers)
    save("bits", given, {"group_size": GROUP, "active_numbers": numbers, "memory_gbps": rates().memory_gbps,
                         "prompt_tokens": {"prefill": LONG, "decode": SHORT}, "new_tokens": NEW, "rows": rows})


if __name__ == "__main__":
    main()
