"""Mutants of model folders: JSON, headers, numbers, files.

They are looked at in a process beside this one (`looking`), which is ended where it hangs.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.mutations import CHANGED, HANG, REFUSED, SAME, TOLD, TRACE, UNKNOWN, Outcome
from tests.mutations.looking import Looker

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

class Models:
    """Mutants of one folder of each kind; `close` ends the process that looks at them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sound = sound_folders(folder / "sound")
        self._looker = Looker(self.sound["own"])
        self._known = {name: self._looker.look(sound)["found"] for name, sound in self.sound.items()}

    def try_one(self, seed: int) -> Outcome:
        """Make the mutant of that seed and load it."""
        draws = random.Random(seed)
        name, damage = draws.choice(sorted(self.sound)), draws.choice(DAMAGE)
        place = self.folder / "damaged"
        shutil.copytree(self.sound[name], place / str(seed))
        if damage(place / str(seed), draws) is False:
            damage = data_bits
            damage(place / str(seed), draws)
        seen = self._looker.look(place / str(seed))
        shutil.rmtree(place)
        found = judge(seen, self._known[name], kept=not name.startswith("foreign"))
        words = seen.get("words", str(seen))
        return Outcome(f"models: {damage.__name__}", found, f"{name}: {words}", seen["seconds"])

    def close(self) -> None:
        """End the process beside this one."""
        self._looker.close()


_ENDS = {"refused": REFUSED, "traceback": TRACE, "hang": HANG}


def judge(seen: dict[str, Any], sound: dict[str, str], kept: bool) -> str:
    """The outcome, from what was seen; `kept`: the sound folder holds a record and checksums of its numbers."""
    if seen["outcome"] != "loaded":
        return _ENDS[seen["outcome"]]
    found = seen["found"]
    lost_history = found["lineage"] == _NO_HISTORY
    if all(found[key] == sound[key] or (key == "lineage" and lost_history) for key in sound):
        return SAME
    if seen["warned"]:
        return TOLD
    return CHANGED if kept else UNKNOWN


_NO_HISTORY = "4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945"  # digest of []
