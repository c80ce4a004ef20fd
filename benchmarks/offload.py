"""Peak memory and speed of a mixture whose experts wait on disk, beside the same model in memory.

    python benchmarks/offload.py --threads 1 --save

A model of 12 layers with 32 experts each (width 512, hidden 704, top-2; 0.45 billion parameters) is made and saved in
bfloat16. Each way of serving it is a process of its own, that draws a continuation by the engine, computing in
float32. Peak memory counts reading the model, pages of its file among them, which the system takes back where it needs
them; held is what the process has of its own while it writes. The routers are not trained: those of a trained
model ask for the same experts more often, so that fewer are read.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from _parts import machine, parser, save, start

from mixwell.core.machine import peak_bytes
from mixwell.core.rng import generator
from mixwell.lm.config import ModelConfig
from mixwell.lm.model import LanguageModel, load
from mixwell.lm.streaming import Text
from mixwell.lm.tokenizer import Tokenizer
from mixwell.serve.engine import Engine, Limits
from mixwell.serve.larger import read_apart
from mixwell.serve.offload import Config, Offload
from mixwell.serve.request import Options, Row

EXPERTS, NEW = 32, 48
WAYS = {"in memory": None, "16 of 32 experts": 16, "4 of 32 experts": 4}


def made(folder: Path) -> Path:
    """The model, saved."""
    tokenizer = Tokenizer.train([__doc__ or ""], 300)
    experts = {"method": "experts.layers.moe", "num_experts": EXPERTS, "hidden_dim": 704,
               "router": {"method": "top_k", "k": 2}}
    config = ModelConfig(vocab_size=tokenizer.vocab_size, dim=512, num_layers=12, num_heads=8, num_kv_heads=4,
                         max_positions=512, sequence_mixer={"method": "sequence.attention"}, channel_mixer=experts)
    model = LanguageModel(config, generator(0)).cast(torch.bfloat16)
    model.tokenizer = tokenizer
    return Path(model.save(folder / "model"))


def part(path: Path, resident: int | None) -> dict[str, Any]:
    """One way of serving, in this process."""
    counts = {}
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        if resident is None:
            model = load(path, "fp32").eval()
        else:
            model, fetch = read_apart(path, Path(folder))
            offload = Offload(model, fetch, Config(resident=resident))
        engine = Engine(model, Limits(context=512))
        assert model.tokenizer is not None
        ids = model.tokenizer.encode("A model of 12 layers with 32 experts")
        row = Row(ids, Options(max_tokens=NEW, temperature=1.0, seed=0), Text(model.tokenizer, ()))
        engine.submit(row)
        engine.step()
        began = time.perf_counter()
        while engine.busy:
            engine.step()
        spent = time.perf_counter() - began
        if resident is not None:
            counts = dict(offload.counts())
        held = own_bytes()
    return {"peak_bytes": peak_bytes(), "held_bytes": held, "tokens_per_s": (NEW - 1) / spent, "ids": row.said,
            "asked_for": counts}


def own_bytes() -> int:
    """Memory of this process that is no file's, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def main() -> None:
    """Measure, print and save."""
    options = parser(__doc__ or "")
    options.add_argument("--part", nargs=2, help=argparse.SUPPRESS)
    given = options.parse_args()
    start(given)
    if given.part:
        path, resident = given.part
        print(json.dumps(part(Path(path), int(resident) or None)))
        return
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = made(Path(folder))
        for name, resident in WAYS.items():
            command = [sys.executable, __file__, "--threads", str(given.threads), "--part", str(path),
                       str(resident or 0)]
            told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            figures[name] = json.loads(told.splitlines()[-1])
            print(f"{name:<18} {figures[name]['peak_bytes'] / 2**30:.2f} GiB at most, "
                  f"{figures[name]['held_bytes'] / 2**30:.2f} GiB held, "
                  f"{figures[name]['tokens_per_s']:.1f} tokens/s {figures[name]['asked_for']}", flush=True)
    answers = {tuple(each.pop("ids")) for each in figures.values()}
    if len(answers) > 1:
        sys.exit("the ways do not say the same.")
    save("offload", given, {"machine": machine(given), "ways": figures})


if __name__ == "__main__":
    main()
