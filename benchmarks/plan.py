"""Seconds of a training step over processes of this machine, measured and as `mixwell plan` predicts them.

The machine is measured before and behind every training (`run.measuring`), and what is planned from both is averaged:
where the two differ by more than `STEADY` other programs were at work, and the row counts in no error. The same for
bytes sent, which the wires count, and for the memory that a process comes to need.

    python benchmarks/plan.py --save
    python benchmarks/plan.py --save --model dense --processes 2     # a piece; what the file holds of others stays
"""

from __future__ import annotations

import importlib
import itertools
import json
import multiprocessing
import os
import socket
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _parts import RESULTS, kind, parser, save

from mixwell.core import machine
from mixwell.core.config import from_dict
from mixwell.core.rng import generator
from mixwell.lm.config import ModelConfig
from mixwell.lm.data import TokenData, write_shards
from mixwell.lm.documents import Document
from mixwell.lm.model import LanguageModel
from mixwell.lm.splitting import split_documents
from mixwell.lm.tokenizer import Tokenizer
from mixwell.lm.training.loop import TrainConfig, train
from mixwell.parallel.launch import crew
from mixwell.parallel.search import layouts
from mixwell.parallel.simulate import estimate
from mixwell.parallel.team import Layout
from mixwell.parallel.workload import Spread
from mixwell.run.measuring import measure
from mixwell.run.stages.train import Training
from mixwell.run.workload import Step, work_of

LENGTH, VOCABULARY = 128, 2048
SIZES = (2, 4)
STEPS = 12
STEADY = 0.15  # share by which two predictions may differ, made before and behind a training
DENSE = {"method": "swiglu", "hidden_dim": 1024}
MIXTURE = {"method": "moe", "num_experts": 8, "hidden_dim": 512, "router": {"method": "top_k", "k": 2}}
MODELS = {"dense": DENSE, "mixture": MIXTURE}


def arch_of(mixer: dict[str, Any]) -> dict[str, Any]:
    """Four layers of width 256."""
    return {"vocab_size": VOCABULARY, "dim": 256, "num_layers": 4, "num_heads": 4, "channel_mixer": mixer}


def step_of(mixer: dict[str, Any], processes: int) -> Step:
    """Sixteen rows of 128 tokens."""
    config = Training(steps=STEPS, batch_size=16, seq_len=LENGTH, dtype="fp32", save_every_s=0.0)
    arch = arch_of(mixer)
    return Step(work=work_of(arch, config), arch=arch, config=config, processes=processes)


def text(folder: Path) -> TokenData:
    """Made-up text as tokens."""
    draws = np.random.default_rng(0)
    words = ["".join(draws.choice(list("abcdefghij"), 4)) for _ in range(3000)]
    documents = [Document(f"{i}.txt", " ".join(draws.choice(words, 400))) for i in range(60)]
    split = split_documents(documents)
    texts = [document.text for document in documents]
    return write_shards(folder, {"text": split}, Tokenizer.train(texts, VOCABULARY))


def trained(rank: int, size: int, port: int, spread: Spread, arch: dict[str, Any], data: str, out: str, there: Any,
            ) -> None:
    """One process of a training: the median second of its steps, what it sent a step, what memory it took."""
    own = {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in own.items()})
    torch.set_num_threads(1)
    importlib.import_module("torch.distributed.checkpoint")  # what it takes in memory is no model's
    importlib.import_module("mixwell.parallel.shards")
    config = TrainConfig(steps=STEPS, batch_size=16, seq_len=LENGTH, dtype="fp32", save_every_s=0.0)
    model = LanguageModel(from_dict(ModelConfig, arch), generator(0))
    machine.reset_peak()
    rest = machine.peak_bytes()
    weights = 4 * sum(parameter.numel() for parameter in model.parameters())
    times: list[float] = []
    sent: list[int] = []
    with crew(Layout(expert=spread.expert, shard=spread.sharded)) as found:
        assert found is not None
        team = found.team.fitting(model)

        def note(step: int, share: float, info: dict[str, Any]) -> None:
            times.append(time.perf_counter())
            sent.append(sum(sum(wire.sent.values()) for wire in (team.world, team.experts, team.copies)))

        train(model, TokenData.open(Path(data)), config, out, team=team, progress=note)
        if rank:
            return
        steps = [after - before for before, after in itertools.pairwise(times[1:])]
        grown = machine.peak_bytes() - rest + weights
        there.put({"seconds": statistics.median(steps), "sent": (sent[-1] - sent[0]) / (len(sent) - 1),
                   "memory": grown})


def measured(spread: Spread, arch: dict[str, Any], data: Path) -> dict[str, float]:
    """A training in that layout."""
    context = multiprocessing.get_context("spawn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as out:
        there = context.SimpleQueue()
        size = spread.processes
        workers = [context.Process(target=trained, args=(rank, size, port, spread, arch, str(data), out, there))
                   for rank in range(size)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return there.get()


def rows_of(name: str, size: int, data: Path) -> list[dict[str, Any]]:
    """Each layout in which a model trains over so many processes, as planned and as measured."""
    step = step_of(MODELS[name], size)
    before = measure(size, step)
    rows = []
    for spread in [one for one in layouts(step.work, size) if one.trains]:
        found = measured(spread, step.arch, data)
        behind = measure(size, step)
        told, then = (estimate(step.work, spread, cluster) for cluster in (before, behind))
        before = behind
        seconds = sorted((told.seconds, then.seconds))
        row = {"model": name, "processes": size, "layout": spread.words(),
               "predicted_s": statistics.fmean(seconds), "measured_s": found["seconds"],
               "steady": seconds[1] / seconds[0] - 1 <= STEADY,
               "predicted_memory": told.memory_bytes, "measured_memory": found["memory"]}
        if not spread.sharded:  # torch sends for shards, past the wires that count
            row |= {"predicted_sent": told.sent, "measured_sent": found["sent"]}
        kinds = [what for what in ("s", "sent", "memory") if f"measured_{what}" in row]
        row |= {f"{what}_error": row[f"predicted_{what}"] / row[f"measured_{what}"] - 1 for what in kinds}
        rows.append(row)
        errors = ", ".join(f"{what} {row[f'{what}_error']:+.0%}" for what in kinds)
        print(f"{name:8s} {row['layout']:16s} predicted {1e3 * row['predicted_s']:6.0f} ms, measured "
              f"{1e3 * found['seconds']:6.0f} ms; {errors}; {found['memory'] / 1e6:.0f} MB"
              f"{'' if row['steady'] else '; disturbed'}", flush=True)
    return rows


def others(name: str, size: int) -> list[dict[str, Any]]:
    """What the file holds of other models and numbers of processes."""
    path = RESULTS / f"plan-{kind()}.json"
    kept = json.loads(path.read_text())["rows"] if path.exists() else []
    return [row for row in kept if (row["model"], row["processes"]) != (name, size)]


def main() -> None:
    """Run, print, and save where asked."""
    options = parser(__doc__ or "")
    options.add_argument("--model", choices=sorted(MODELS), nargs="+", default=list(MODELS))
    options.add_argument("--processes", type=int, nargs="+", default=SIZES)
    asked = options.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "tokens"
        text(data)
        for name, size in itertools.product(asked.model, asked.processes):
            rows += rows_of(name, size, data)
            all_rows = [*(row for row in others(name, size) if row not in rows), *rows]
            worst = max((abs(row["s_error"]) for row in all_rows if row["steady"]), default=None)
            print("no row was measured in peace" if worst is None else f"largest error of seconds: {worst:.0%}")
            save("plan", asked, {"steps": STEPS, "rows": all_rows, "largest_error_of_seconds": worst})


if __name__ == "__main__":
    main()
