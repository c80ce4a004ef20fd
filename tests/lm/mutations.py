"""Model folders, damaged at random, and what becomes of each when it is loaded.

    python -m tests.lm.mutations --count 2500 --seed 1

prints counts by kind of damage and by what happened:

    refused    one line that says what is wrong
    same       loaded, with the very numbers of the sound folder
    told       loaded with other numbers, and a warning says why
    otherwise  loaded with other numbers, which no record, digest or checksum in the folder speaks against
    silent     loaded with other numbers in spite of a record, digest or checksum: a fault
    traceback  an error that is not for people: a fault
    hang       no answer within 5 s of the processor, or of waiting for something: a fault

Folders are loaded in a process beside this one, which is ended where it hangs.
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import os
import random
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECONDS = 5.0
FAULTS = ("silent", "traceback", "hang")
OUTCOMES = ("refused", "same", "told", "otherwise", *FAULTS)
WEIGHTS, INDEX, RECORD = "model.safetensors", "model.safetensors.index.json", "mixwell.json"


# Sound folders

def sound_folders(root: Path) -> dict[str, Path]:
    """One folder of each kind that damage may meet in a way of its own."""
    from mixwell.lm import folder as folders
    from mixwell.lm.tokenizer import Tokenizer
    from tests.lm.test_folder import DENSE, SPARSE, build, quantised

    tokenizer = Tokenizer.train(["to be or not to be, that is the question"] * 3, 270)
    window = {"method": "attention", "sliding_window": 3}
    by_head, full = {"method": "attention", "qk_norm": "head"}, {"method": "attention", "qk_norm": "full"}
    kinds: dict[str, dict[str, Any]] = {
        "llama": {"channel_mixer": DENSE}, "mistral": {"channel_mixer": DENSE, "sequence_mixer": window},
        "qwen3": {"channel_mixer": DENSE, "sequence_mixer": by_head, "rope_scaling": {"type": "linear", "factor": 2.0}},
        "mixtral": {"channel_mixer": SPARSE}, "olmoe": {"channel_mixer": SPARSE, "sequence_mixer": full},
        "qwen3_moe": {"channel_mixer": [DENSE, SPARSE], "sequence_mixer": by_head},
        "own": {"channel_mixer": SPARSE | {"shared_experts": 1}}, "int8": {"channel_mixer": SPARSE},
        "shards": {"channel_mixer": SPARSE}, "foreign": {"channel_mixer": SPARSE},
        "foreign dense": {"channel_mixer": DENSE},
    }
    found = {}
    for name, options in kinds.items():
        model = build(vocab_size=tokenizer.vocab_size, **options)
        model.tokenizer = tokenizer
        model.lineage = ({"stage": "train", "tokens": 5, "receipt": {"kl_nats": 0.25, "promises": {"kl_nats": 0.5}}},)
        checkpoint = model.to_checkpoint()
        if name == "int8":
            checkpoint = quantised(checkpoint)
        shard_bytes = 6000 if name == "shards" else 2**30
        found[name] = folders.write(checkpoint, root / name, shard_bytes=shard_bytes)
        if name.startswith("foreign"):
            _make_foreign(found[name])
    return found


def _make_foreign(folder: Path) -> None:
    """As another program would have saved it: without record and checksums."""
    from safetensors.torch import load_file, save_file

    (folder / RECORD).unlink()
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS, metadata={"format": "pt"})


# Damage: each kind changes a folder in place, by the draws of `rng`; one that finds nothing to change returns False

def _json_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix == ".json")


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def _odd_value(rng: random.Random) -> Any:
    values = [None, True, False, 0, 1, -1, 2, 3, 2**31, 2**63, -2**63, 10**300, 0.5, 1e-9, 1e308, -0.0, math.nan,
              math.inf,
              "", "text", "1", "\ud800\n\x1b[2J", "x" * 5000, [], [None], {}, {"a": 1}, [[]], [1, "a"], _nested(70),
              _nested(30)]
    return rng.choice(values)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything inside a JSON value."""
    found: list[tuple[Any, Any]] = []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found += [(value, key), *_places(item)]
    return found


def _some_json(folder: Path, rng: random.Random, shallow: float = 0.7) -> tuple[Path, Any, list[tuple[Any, Any]]]:
    path = rng.choice([*_json_files(folder), *[folder / "config.json"] * 3])
    content = json.loads(path.read_text())
    places = _places(content)
    if rng.random() < shallow:
        places = [place for place in places if place[0] is content]
    return path, content, places


def json_value(folder: Path, rng: random.Random) -> None:
    """A value of a JSON file is another one, of any type."""
    path, content, places = _some_json(folder, rng)
    container, key = rng.choice(places or [([content], 0)])
    container[key] = _odd_value(rng)
    path.write_text(json.dumps(content))


def json_nudge(folder: Path, rng: random.Random) -> bool | None:
    """A number of a JSON file is another number of its type; a flag is turned."""
    path, content, places = _some_json(folder, rng, shallow=0.5)
    numbers = [(box, key) for box, key in places if isinstance(box[key], (int, float))]
    if not numbers:
        return False
    box, key = rng.choice(numbers)
    old = box[key]
    if isinstance(old, bool):
        box[key] = not old
    elif isinstance(old, int):
        box[key] = old + rng.choice([-1, 1, 2])
    else:
        box[key] = old * rng.choice([0.5, 2.0, 10.0])
    path.write_text(json.dumps(content))
    return None


def json_drop(folder: Path, rng: random.Random) -> bool | None:
    """A key or an item is gone."""
    path, content, places = _some_json(folder, rng)
    if not places:
        return False
    box, key = rng.choice(places)
    del box[key]
    path.write_text(json.dumps(content))
    return None


def json_twice(folder: Path, rng: random.Random) -> bool | None:
    """A key stands twice, with another value the second time."""
    path, content, _ = _some_json(folder, rng)
    if not isinstance(content, dict) or not content:
        return False
    key = rng.choice(sorted(content))
    text = json.dumps(content)
    path.write_text(f"{text[:-1]}, {json.dumps(key)}: {json.dumps(_odd_value(rng))}}}")
    return None


def json_whole(folder: Path, rng: random.Random) -> None:
    """The whole content of a JSON file is another value."""
    path = rng.choice(_json_files(folder))
    path.write_text(rng.choice(["", "null", "[]", "{}", "3", '"x"', "[" * 3000, '{"a":' * 3000, "NaN", "1" * 6000,
                                "[" * 200 + "]" * 200, "\ufeff{}", '{"a": 1}\0']))


def text_bytes(folder: Path, rng: random.Random) -> None:
    """A byte of a text file is another one, is gone, or is there once more."""
    path = rng.choice([path for path in sorted(folder.iterdir()) if path.suffix != ".safetensors"])
    data = bytearray(path.read_bytes())
    place = rng.randrange(len(data))
    how = rng.randrange(3)
    data[place : place + 1] = (bytes([rng.randrange(256)]), b"", bytes([data[place]] * 2))[how]
    path.write_bytes(data)


def _weights(folder: Path, rng: random.Random) -> tuple[Path, bytearray, int]:
    """A file of tensors, its bytes, and where these begin."""
    path = rng.choice(sorted(folder.glob("*.safetensors")))
    data = bytearray(path.read_bytes())
    return path, data, 8 + struct.unpack("<Q", data[:8])[0]


def header_length(folder: Path, rng: random.Random) -> None:
    """The length of the header is another one."""
    path, data, begin = _weights(folder, rng)
    lengths = [0, 1, begin - 9, begin - 7, 2**31, 2**40, 2**63, 2**64 - 1, 100_000_001, rng.randrange(2**64)]
    data[:8] = struct.pack("<Q", rng.choice(lengths))
    path.write_bytes(data)


def header_bytes(folder: Path, rng: random.Random) -> None:
    """A byte of the header is another one."""
    path, data, begin = _weights(folder, rng)
    data[rng.randrange(8, begin)] = rng.randrange(256)
    path.write_bytes(data)


def header_value(folder: Path, rng: random.Random) -> None:
    """Something in the header is another value."""
    path, data, begin = _weights(folder, rng)
    header = json.loads(data[8:begin])
    box, key = rng.choice(_places(header))
    choices = ["F32", "I32", "F16", "BF16", "I8", "U8", "F8_E4M3", "C64", "F4"] if key == "dtype" else [_odd_value(rng)]
    box[key] = rng.choice(choices)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[begin:])


def header_names(folder: Path, rng: random.Random) -> None:
    """Two tensors have each other's name, or one has another type of the same width."""
    path, data, begin = _weights(folder, rng)
    header = json.loads(data[8:begin])
    names = sorted(set(header) - {"__metadata__"})
    one, other = rng.choice(names), rng.choice(names)
    if rng.random() < 0.5:
        header[one], header[other] = header[other], header[one]
    else:
        header[one]["dtype"] = {"F32": "I32", "BF16": "F16", "F16": "BF16", "I8": "U8"}.get(header[one]["dtype"], "I32")
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[begin:])


def data_bits(folder: Path, rng: random.Random) -> None:
    """A few bits of the tensors are turned."""
    path, data, begin = _weights(folder, rng)
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        data[rng.randrange(begin, len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def data_blocks(folder: Path, rng: random.Random) -> None:
    """A block of the tensors is zero, another block's, or noise."""
    path, data, begin = _weights(folder, rng)
    size = rng.choice([8, 64, 512])
    place, other = (rng.randrange(begin, len(data) - size) for _ in range(2))
    data[place : place + size] = rng.choice([bytes(size), data[other : other + size], rng.randbytes(size)])
    path.write_bytes(data)


def data_no_number(folder: Path, rng: random.Random) -> None:
    """Some numbers are NaN or infinite."""
    path, data, begin = _weights(folder, rng)
    value = rng.choice([math.nan, math.inf, -math.inf])
    place = rng.randrange(begin, len(data) - 4) // 4 * 4
    data[place : place + 4] = struct.pack("<f", value)
    path.write_bytes(data)


def lengths(folder: Path, rng: random.Random) -> None:
    """A file is cut, or has more at its end."""
    path = rng.choice(sorted(folder.iterdir()))
    data = path.read_bytes()
    cut = rng.randrange(len(data)) if data else 0
    path.write_bytes(rng.choice([data[:cut], data + rng.randbytes(rng.choice([1, 8, 4096])), b"", data + data]))


def file_kinds(folder: Path, rng: random.Random) -> None:
    """A file is gone, or a folder, a pipe, a device, or a link to somewhere else is in its place."""
    path = rng.choice(sorted(folder.iterdir()))
    outside = folder.parent / f"{folder.name}-outside"
    path.replace(outside)
    put: list[Callable[[], object]] = [
        lambda: None, path.mkdir, lambda: os.mkfifo(path), lambda: path.symlink_to("/dev/zero"),
        lambda: path.symlink_to(outside), lambda: path.symlink_to(path.name), lambda: path.symlink_to("/etc/passwd"),
        lambda: path.symlink_to("nowhere")]
    rng.choice(put)()


def file_swaps(folder: Path, rng: random.Random) -> None:
    """Two files have each other's name, or one has another's content; or a file of another kind of folder is added."""
    files = sorted(folder.iterdir())
    one, other = rng.sample(files, 2)
    first, second = one.read_bytes(), other.read_bytes()
    how = rng.randrange(3)
    one.write_bytes(second)
    if how == 0:
        other.write_bytes(first)
    elif how == 1:
        one.write_bytes(first)
        more = rng.choice(["added_tokens.json", "merges.txt", "tokenizer.model", INDEX, "pytorch_model.bin"])
        (folder / more).write_bytes(second)


def tensors(folder: Path, rng: random.Random) -> None:
    """A tensor is gone, added, of another shape, or all of them are another program's: other types and numbers."""
    from safetensors.torch import load_file, save_file

    path, _, _ = _weights(folder, rng)
    held = load_file(path)
    name = rng.choice(sorted(held))
    how = rng.randrange(5)
    if how == 0:
        del held[name]
    elif how == 1:
        held[name + rng.choice([".scale", "x", "\n"])] = held[name].clone()
    elif how == 2:
        held[name] = held[name][..., :-1].contiguous()
    elif how == 3:
        held[name] = held[name].half() if held[name].is_floating_point() else held[name].float()
    else:
        held[name] = held[name] * 2
    save_file(held, path, metadata={"format": "pt"})


DAMAGE: tuple[Callable[[Path, random.Random], bool | None], ...] = (
    json_value, json_nudge, json_drop, json_twice, json_whole, text_bytes,
    header_length, header_bytes, header_value, header_names,
    data_bits, data_blocks, data_no_number, lengths, file_kinds, file_swaps, tensors)


# What becomes of a folder

def fingerprint(folder: Path) -> dict[str, str]:
    """All that a folder gives: logits, ids of a text, lineage."""
    import torch

    from mixwell.core.files import digest
    from mixwell.lm.model import load

    model = load(folder).eval()
    tokens = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    with torch.no_grad():
        logits = model(tokens).logits_BTV
    ids = [] if model.tokenizer is None else model.tokenizer.encode("to be or not to be")
    return {"logits": digest(logits.numpy().tobytes()), "ids": digest(ids), "lineage": digest(list(model.lineage))}


def look(folder: Path) -> dict[str, Any]:
    """What loading a folder ends in."""
    from mixwell.core.errors import MixwellError

    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            found = fingerprint(folder)
        except MixwellError as error:
            line = str(error)
            fair = line.isprintable() and len(line) < 1500
            return {"outcome": "refused" if fair else "traceback", "words": repr(line)}
        except BaseException as error:
            import traceback
            last = traceback.extract_tb(error.__traceback__)[-3:]
            where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in reversed(last))
            return {"outcome": "traceback", "words": f"{type(error).__name__}: {error} ({where})"[:600]}
    return {"outcome": "loaded", "found": found, "warned": [str(w.message) for w in heard]}


def serve(sound: Path) -> None:
    """Look at a sound folder, so that all is imported, then at those that standard input names."""
    import resource

    look(sound)
    resource.setrlimit(resource.RLIMIT_AS, (2**34, 2**34))  # so that an absurd request fails at once
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(look(Path(line.rstrip("\n")))), flush=True)


class Looker:
    """A process that looks at folders, with a limit of time for each."""

    def __init__(self, sound: Path) -> None:
        self._command = [sys.executable, "-m", "tests.lm.mutations", "--serve", str(sound)]
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         stderr=subprocess.DEVNULL, text=True, cwd=Path(__file__).parents[2])
        assert self._process.stdout is not None and self._process.stdout.readline() == "ready\n"

    def look(self, folder: Path) -> dict[str, Any]:
        """What becomes of a folder."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        stdin.write(f"{folder}\n")
        stdin.flush()
        hangs = self._hangs(stdout)
        line = "" if hangs else stdout.readline()
        if line:
            return json.loads(line)
        self.close()
        code = self._process.returncode
        self._start()
        return {"outcome": "hang" if hangs else "traceback", "words": f"the process ended with {code}"}

    def _hangs(self, stdout: Any) -> bool:
        """Wait for an answer; a process that is stopped, or gets no processor, is waited for as long as that lasts."""
        state, before_s = self._state()
        waited_s = 0.0
        while not select.select([stdout], [], [], 0.25)[0]:
            state, used_s = self._state()
            waited_s += 0.25 if state == "S" else 0.0
            if used_s - before_s + waited_s > SECONDS:
                return True
        return False

    def _state(self) -> tuple[str, float]:
        """The state that the system gives (S: asleep) and the seconds of processor used."""
        text = Path(f"/proc/{self._process.pid}/stat").read_text()
        fields = text.rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12])
        return fields[0], ticks / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


def judge(seen: dict[str, Any], sound: dict[str, str], kept: bool) -> str:
    """The outcome, from what was seen; `kept`: something in the folder knows the numbers."""
    if seen["outcome"] != "loaded":
        return seen["outcome"]
    found = seen["found"]
    lost_history = found["lineage"] == _NO_HISTORY
    if all(found[key] == sound[key] or (key == "lineage" and lost_history) for key in sound):
        return "same"
    if seen["warned"]:
        return "told"
    return "silent" if kept else "otherwise"


_NO_HISTORY = "4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945"  # digest of []


def _knows(folder: Path) -> bool:
    """Whether the folder holds a record or checksums that speak of its numbers."""
    return (folder / RECORD).is_file()


def run(count: int, seed: int, root: Path) -> tuple[collections.Counter, list[str]]:
    """Counts by (kind, outcome), and a line for each fault."""
    rng = random.Random(seed)
    sound = sound_folders(root / "sound")
    looker = Looker(sound["own"])
    try:
        known = {name: looker.look(folder)["found"] for name, folder in sound.items()}
        counts: collections.Counter = collections.Counter()
        faults = []
        for number in range(count):
            name, damage = rng.choice(sorted(sound)), DAMAGE[number % len(DAMAGE)]
            folder = root / "damaged" / str(number)
            shutil.copytree(sound[name], folder)
            if damage(folder, rng) is False:
                damage = data_bits
                damage(folder, rng)
            seen = looker.look(folder)
            outcome = judge(seen, known[name], _knows(folder))
            counts[damage.__name__, outcome] += 1
            if outcome in FAULTS:
                faults.append(f"{number} {name} {damage.__name__} {outcome}: {seen.get('words', seen)}")
            shutil.rmtree(folder)
        return counts, faults
    finally:
        looker.close()


def table(counts: collections.Counter) -> str:
    """The counts, a line a kind."""
    lines = [f"{'':16s}" + "".join(f"{outcome:>11s}" for outcome in OUTCOMES)]
    for damage in DAMAGE:
        name = damage.__name__
        lines.append(f"{name:16s}" + "".join(f"{counts[name, outcome]:11d}" for outcome in OUTCOMES))
    totals = [sum(count for (_, found), count in counts.items() if found == outcome) for outcome in OUTCOMES]
    lines.append(f"{'all':16s}" + "".join(f"{total:11d}" for total in totals))
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return 0
    with tempfile.TemporaryDirectory() as root:
        counts, faults = run(options.count, options.seed, Path(root))
    print(table(counts))
    for line in faults:
        print(line)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
