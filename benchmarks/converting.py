"""Peak memory of conversions, each a process of its own as a user runs it: `mixwell apply convert.upcycle --out DIR`.

    python benchmarks/converting.py --threads 1 --save

The model is dense, of the sizes that the options name, in float32, drawn at random. Receipts are measured on random
tokens, but for methods that look at text, which get this file's.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from _parts import machine, parser, save, start
from merging import measured

from mixwell.core.rng import generator
from mixwell.lm.config import ModelConfig
from mixwell.lm.model import LanguageModel
from mixwell.lm.tokenizer import Tokenizer

METHODS: dict[str, tuple[str, list[str]]] = {  # method -> the model that it starts from, its options
    "upcycle": ("dense", ["num_experts=4", "noise=0.01"]),
    "carve": ("dense", ["num_experts=8", "split=random"]),
    "prune": ("carve", ["tokens=512"]),
}
LOOKING = ("prune",)  # those that read text


def write_model(folder: Path, dim: int, layers: int, hidden: int, vocab: int) -> int:
    """A dense model with a tokenizer; returns its bytes."""
    config = ModelConfig(vocab_size=vocab, dim=dim, num_layers=layers, num_heads=dim // 64, tie_embeddings=True,
                         channel_mixer={"method": "swiglu", "hidden_dim": hidden})
    model = LanguageModel(config, generator(0))
    text = Path(__file__).read_text(encoding="utf-8")
    model.tokenizer = Tokenizer.train([text], 300)
    model.save(folder)
    return size_of(folder)


def size_of(folder: Path) -> int:
    """Bytes of a folder's weights."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def converted(root: Path, name: str, threads: int) -> dict[str, Any]:
    """One conversion in a process of its own."""
    before, options = METHODS[name]
    out = root / name
    command = [sys.executable, "-m", "mixwell.cli.main", "apply", f"convert.{name}", "--in", str(root / before),
               "--out", str(out), *options]
    if name in LOOKING:
        command += ["--text", __file__]
    shutil.rmtree(out, ignore_errors=True)
    return {**measured(command, threads), "result_bytes": size_of(out), "options": options}


def main() -> None:
    """Measure, print and save."""
    options = parser(__doc__ or "")
    options.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    for name, size in (("dim", 768), ("layers", 12), ("hidden", 2048), ("vocab", 32000)):
        options.add_argument(f"--{name}", type=int, default=size)
    options.add_argument("--folder", help="where models are written; default: a temporary folder")
    given = options.parse_args()
    start(given)
    with tempfile.TemporaryDirectory(prefix="mixwell-converting-", dir=given.folder) as folder:
        root = Path(folder)
        size = write_model(root / "dense", given.dim, given.layers, given.hidden, given.vocab)
        rows = {}
        for name in given.methods:
            rows[name] = row = converted(root, name, given.threads)
            print(f"{name:<10} {row['result_bytes'] / 1e6:7.0f} MB  peak {row['peak_bytes'] / 1e6:6.0f} MB  "
                  f"{row['cpu_s']:.0f} s", flush=True)
        empty = measured([sys.executable, "-c", "import mixwell.run.apply"], given.threads)
        print(f"model of {size / 1e6:.0f} MB; imports alone {empty['peak_bytes'] / 1e6:.0f} MB")
        save("converting", given, {"model_bytes": size, "methods": rows, "imports_alone": empty,
                                   "machine": machine(given)})


if __name__ == "__main__":
    main()
