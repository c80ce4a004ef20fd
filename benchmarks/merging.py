"""Merging whole models, beside mergekit: seconds of processor time, peak memory, and whether the numbers agree.

    python benchmarks/merging.py --threads 1 --mergekit /path/to/venv/bin/python --save

Each merge is a process of its own, start and imports included, as a user runs it: `mixwell merge FILE --out DIR` beside
`mergekit-yaml FILE DIR`. Models are dense, of the sizes that the options name, in float32, drawn at random; fine-tunes
are a base and noise. Without --mergekit ours alone is measured.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from _parts import RESULTS, kind, machine, parser, save, start

from mixwell.formats.tensors import open_folder
from mixwell.lm.config import ModelConfig
from mixwell.lm.model import LanguageModel

MODELS = 4
METHODS: dict[str, tuple[int, str, bool]] = {  # models, parameters of each, whether they have a base
    "linear": (MODELS, "weight: 0.25", False),
    "slerp": (2, "", False),
    "task_arithmetic": (MODELS, "weight: 0.25", True),
    "ties": (MODELS, "weight: 0.25, density: 0.5", True),
    "dare_ties": (MODELS, "weight: 0.25, density: 0.5", True),
}
DRAWN = ("dare_ties",)  # methods whose masks are drawn, by other generators in the two


def write_models(root: Path, dim: int, layers: int, hidden: int, vocab: int) -> int:
    """A base and fine-tunes of it; returns the bytes of one."""
    config = ModelConfig(vocab_size=vocab, dim=dim, num_layers=layers, num_heads=dim // 64, tie_embeddings=True,
                         channel_mixer={"method": "swiglu", "hidden_dim": hidden})
    model = LanguageModel(config, torch.Generator().manual_seed(0))
    model.save(root / "base")
    for number in range(MODELS):
        draws = torch.Generator().manual_seed(number + 1)
        tuned = LanguageModel.from_checkpoint(model.to_checkpoint())
        with torch.no_grad():
            for parameter in tuned.parameters():
                parameter += 0.01 * torch.randn(parameter.shape, generator=draws)
        tuned.save(root / f"m{number}")
    return (root / "base" / "model.safetensors").stat().st_size


def file_of(root: Path, method: str) -> Path:
    """The merge file of a method."""
    count, own, has_base = METHODS[method]
    lines = [f"merge_method: {method}", "models:"]
    for number in range(count):
        lines.append(f"  - model: {root}/m{number}")
        if own:
            lines.append(f"    parameters: {{{own}}}")
    if has_base or method == "slerp":
        lines.append(f"base_model: {root}/{'m0' if method == 'slerp' else 'base'}")
    if method == "slerp":
        lines.append("parameters: {t: 0.3}")
    path = root / f"{method}.yaml"
    path.write_text("\n".join([*lines, "dtype: float32", ""]))
    return path


MEASURE = """
import json, os, sys
out = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
actions = [(os.POSIX_SPAWN_DUP2, out, 1), (os.POSIX_SPAWN_DUP2, out, 2)]
child = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ, file_actions=actions)
_, status, usage = os.wait4(child, 0)
print(json.dumps([status, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024]))
"""  # a small process of its own: a child's peak begins with that of the process that made it


def measured(command: Sequence[str], threads: int) -> dict[str, float]:
    """Processor time, wall time and peak memory of a command."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed program is compiled once, not at every start
    with tempfile.NamedTemporaryFile() as said:
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", MEASURE, said.name, *command], env=environment, check=True,
                              capture_output=True, text=True)
        wall = time.perf_counter() - began
        status, seconds, peak = json.loads(done.stdout)
        if status:
            sys.exit(f"{' '.join(command)} failed: {Path(said.name).read_text(errors='replace')[-2000:]}")
    return {"cpu_s": seconds, "wall_s": wall, "peak_bytes": peak}


def apart(first: Path, second: Path) -> tuple[float, float]:
    """Largest difference of a number in two folders, and the share of numbers that differ by more than 1e-5.

    Where several changes are as large as the last one kept, one program keeps all of them and the other some.
    """
    a, b = open_folder(first), open_folder(second)
    names = set(a) & set(b)
    if set(a) ^ set(b) - {"lm_head.weight"}:
        sys.exit(f"{first} and {second} hold other tensors")
    largest, count, total = 0.0, 0, 0
    for name in names:
        difference = (a[name] - b[name]).abs()
        largest = max(largest, float(difference.max()))
        count += int((difference > 1e-5).sum())
        total += difference.numel()
    return largest, count / total


def copy_rate(path: Path) -> float:
    """Bytes a second at which a file is read from the system's memory and written to the disk, synced."""
    target = path.with_suffix(".copy")
    began = time.perf_counter()
    with open(path, "rb") as source, open(target, "wb") as sink:
        shutil.copyfileobj(source, sink, 2**22)
        sink.flush()
        os.fsync(sink.fileno())
    seconds = time.perf_counter() - began
    target.unlink()
    return path.stat().st_size / seconds


def compared(root: Path, method: str, options: Any) -> dict[str, Any]:
    """Both programs on one method, and how far their numbers are apart."""
    config = file_of(root, method)
    ours, theirs = root / "ours", root / "theirs"
    found: dict[str, Any] = {"ours": [], "theirs": []}
    for _ in range(options.repeat):
        for folder in (ours, theirs):
            shutil.rmtree(folder, ignore_errors=True)
        command = [sys.executable, "-m", "mixwell.cli.main", "merge", str(config), "--out", str(ours)]
        found["ours"].append(measured(command, options.threads))
        if options.mergekit:
            program = str(Path(options.mergekit).with_name("mergekit-yaml"))
            found["theirs"].append(measured([program, str(config), str(theirs), "--no-copy-tokenizer"],
                                            options.threads))
    if options.mergekit and method not in DRAWN:
        found["largest_difference"], found["share_apart"] = apart(ours, theirs)
    return {name: least(value) if isinstance(value, list) else value for name, value in found.items() if value != []}


def least(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The smallest of each quantity over the runs."""
    return {name: min(run[name] for run in runs) for name in runs[0]}


def saved_methods() -> dict[str, Any]:
    """The figures of each method that were saved on this kind of machine."""
    path = RESULTS / f"merging-{kind()}.json"
    return json.loads(path.read_text(encoding="utf-8"))["methods"]


def main() -> None:
    """Measure, print and save."""
    options = parser(__doc__ or "")
    options.add_argument("--mergekit", help="Python of an environment that has mergekit")
    options.add_argument("--repeat", type=int, default=1, help="runs of each merge, of which the smallest count")
    options.add_argument("--methods", nargs="+", choices=sorted(METHODS), default=list(METHODS))
    options.add_argument("--add", action="store_true", help="keep the saved figures of other methods")
    for name, size in (("dim", 768), ("layers", 12), ("hidden", 2048), ("vocab", 32000)):
        options.add_argument(f"--{name}", type=int, default=size)
    options.add_argument("--folder", help="where models are written; default: a temporary folder")
    given = options.parse_args()
    start(given)
    empty = ["-c", "import mixwell.run.mergekit, mixwell.cli.main"]
    measured([sys.executable, *empty], given.threads)  # writes bytecode where there is none yet
    with tempfile.TemporaryDirectory(prefix="mixwell-merging-", dir=given.folder) as folder:
        root = Path(folder)
        size = write_models(root, given.dim, given.layers, given.hidden, given.vocab)
        rows: dict[str, Any] = {}
        for method in given.methods:
            rows[method] = row = compared(root, method, given)
            line = f"{method:<16} ours {row['ours']['cpu_s']:.1f} s {row['ours']['peak_bytes'] / 1e9:.2f} GB"
            if "theirs" in row:
                theirs = row["theirs"]
                row["times_quicker"] = theirs["cpu_s"] / row["ours"]["cpu_s"]
                line += (f", mergekit {theirs['cpu_s']:.1f} s {theirs['peak_bytes'] / 1e9:.2f} GB: "
                         f"{row['times_quicker']:.1f}x")
            if "share_apart" in row:
                line += f" ({row['share_apart']:.1e} of all apart by 1e-5, {row['largest_difference']:.1e} at most)"
            print(line, flush=True)
        alone = measured([sys.executable, *empty], given.threads)
        figures = {"model_bytes": size, "models": MODELS, "methods": rows, "imports_alone": alone,
                   "copy_bytes_per_s": copy_rate(root / "base" / "model.safetensors"), "machine": machine(given)}
        print(f"models of {size / 1e6:.0f} MB; imports alone {alone['cpu_s']:.1f} s {alone['peak_bytes'] / 1e9:.2f} GB")
        if given.add:
            figures["methods"] = {**saved_methods(), **rows}
        places = {given.mergekit: "VENV/bin/python", given.folder: "FOLDER"}
        sys.argv = [places.get(word, word) for word in sys.argv]  # what another machine would be told
        save("merging", given, figures)


if __name__ == "__main__":
    main()
