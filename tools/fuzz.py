"""The readers of what may come from anywhere, under atheris (libFuzzer): safetensors, JSON, YAML.

    pip install atheris
    python tools/fuzz.py safetensors --seconds 300
    python tools/fuzz.py json --found kept/json        # inputs that reached something new are kept, and gone on from
    python tools/fuzz.py yaml crash-0123               # once more, with this input alone

An input must be refused with `MixwellError`, in one line, or mean what an independent reader says that it means, and
take no more than 5 s of the processor. The first one that does otherwise ends the program and is left in `crash-...`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

try:
    import atheris
except ImportError:
    sys.exit("fuzzing needs atheris, which is not installed: pip install atheris")

READERS = ["mixwell.core", "mixwell.formats", "mixwell.lm.schemas", "mixwell.lm.hf", "mixwell.run.recipe",
           "mixwell.run.yaml_data", "yaml", "json"]
with atheris.instrument_imports(include=READERS, enable_loader_override=False):
    from tests.mutations import LONGEST, PATIENCE_S
    from tests.run.tiny import RECIPE

    from mixwell.core.errors import MixwellError
    from mixwell.formats import plain, tensors
    from mixwell.lm import schemas
    from mixwell.lm.hf.config import read_config
    from mixwell.run import recipe, yaml_data

Target = Callable[[bytes, Path], None]


def safetensors(data: bytes, place: Path) -> None:
    """The first byte says whether the rest is the file, or a header of which the length is told, and what follows."""
    path = place / "model.safetensors"
    header, _, numbers = data[1:].partition(b"\0")
    told = len(header).to_bytes(8, "little") + header + numbers
    path.write_bytes(told if data[:1] == b"h" else data[1:])
    held = tensors.open_file(path)
    expected = _plainly(path.read_bytes())
    assert sorted(held) == sorted(expected)
    for name, (kind, shape, raw) in expected.items():
        form = held.form(name)
        assert (form.dtype, form.shape) == (tensors.DTYPES.get(kind), shape)
        with suppress(MixwellError):  # a type that torch has not, a checksum that is another
            read = held[name].contiguous().reshape(-1)
            assert read.view(torch.uint8).numpy().tobytes() == raw


def _plainly(data: bytes) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Name -> type, shape and bytes, by the format's description."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        found[name] = (entry["dtype"], tuple(entry["shape"]), data[end + first : end + last])
    return found


def json_files(data: bytes, place: Path) -> None:
    """As plain JSON; then as each file of a model folder, and as what config.json says of a model."""
    value = plain.parse(data, "a.json")
    assert value == json.loads(data.decode())
    for name, check in schemas.SIDE.items():
        with suppress(MixwellError):
            check(data, name)
    plain.check_object(value, schemas.RECORD, "mixwell.json")
    config = plain.check_object(value, schemas.CONFIG, "config.json")
    layers = config.get("num_hidden_layers") or config.get("n_layer") or 0
    if layers < 100:  # a folder's tensors bound their number, and here are none
        read_config(config)


def yaml_files(data: bytes, place: Path) -> None:
    """As plain data; then as a recipe, up to its stages."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return
    value = yaml_data.parse(text, "a.yaml")
    assert _same(value, yaml.load(text, _Reference))
    chosen = recipe.from_plain(recipe.counted(value))
    recipe.stages(recipe.replace(chosen, stages=recipe.with_seeds(chosen.stages, chosen.seed)))


class _Reference(yaml.SafeLoader):
    """PyYAML's own, but for dates, which stay text."""


_Reference.add_constructor("tag:yaml.org,2002:timestamp", yaml.SafeLoader.construct_yaml_str)


def _same(one: Any, other: Any) -> bool:
    return json.dumps(one) == json.dumps(other)  # NaN is NaN, 1 is not 1.0


TARGETS: dict[str, Target] = {"safetensors": safetensors, "json": json_files, "yaml": yaml_files}
WORDS = {"safetensors": ["dtype", "shape", "data_offsets", "F32", "BF16", "I8", "F4", "__metadata__", "format"],
         "json": ["model_type", "llama", "mixtral", "num_hidden_layers", "rope_scaling", "lineage", "NaN", "1e999"],
         "yaml": ["<<: *", "&a ", "*a", "!!", "stages", "train", "tokens", "router", "seeds", "|", "- {", "? "]}


def beginnings(name: str) -> list[bytes]:
    """Inputs to begin with."""
    if name == "yaml":
        return [RECIPE.format(folder="texts", seed=0, tokens=300).encode(), recipe.DEFAULT.read_bytes(), b"a: &a [1]"]
    if name == "json":
        config = {"model_type": "mixtral", "vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 2,
                  "num_attention_heads": 2, "intermediate_size": 8, "num_local_experts": 2, "rope_scaling": None}
        record = {"mixwell": "0", "lineage": [{"stage": "train"}], "arch": {}, "files": {}}
        return [json.dumps(one).encode() for one in (config, record, [[[1.5e3, "\u00e9", None]]])]
    made = save({"a": torch.from_numpy(np.arange(6.0).reshape(2, 3)), "b": torch.zeros(3, dtype=torch.bfloat16)},
                metadata={"format": "pt"})
    end = 8 + int.from_bytes(made[:8], "little")
    return [b"w" + made, b"h" + made[8:end] + b"\0" + made[end:]]


def judged(target: Target, place: Path) -> Callable[[bytes], None]:
    """The target, with what it may raise and how long it may take."""
    def run(data: bytes) -> None:
        begun = time.process_time()
        try:
            target(data, place)
        except MixwellError as error:
            line = str(error)
            assert line.isprintable() and len(line) < LONGEST, f"{len(line)} characters: {line[:300]!r}"
        assert time.process_time() - begun < PATIENCE_S, "it took too long"

    return run


def main() -> int:
    """Fuzz one reader; returns what libFuzzer ends with, 0 where nothing was found."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("target", choices=TARGETS)
    words.add_argument("inputs", nargs="*", help="try these files alone")
    words.add_argument("--seconds", type=int, default=300)
    words.add_argument("--found", type=Path, help="folder that keeps what was found; default: none")
    asked = words.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        child = os.fork()  # libFuzzer ends the process that it is called in
        if not child:
            _fuzz(asked, Path(scratch))
        _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _fuzz(asked: argparse.Namespace, place: Path) -> None:
    found = asked.found or place / "found"
    found.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(beginnings(asked.target)):
        (found / f"beginning-{number}").write_bytes(data)
    dictionary = place / "words"
    dictionary.write_text("".join(f'"{word}"\n' for word in WORDS[asked.target]))
    options = [f"-max_total_time={asked.seconds}", f"-dict={dictionary}", "-max_len=4096", "-len_control=0",
               "-timeout=100", "-rss_limit_mb=4096"]
    target = judged(TARGETS[asked.target], place)
    atheris.Setup([sys.argv[0], *options, *(asked.inputs or [str(found)])], target)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
