"""Every writer there is: none writes but through `core.files`, and every prefix of what each does is replayed.

Folders of models are replayed in `tests/lm/test_trust.py`, stages and runs in `tests/run/test_durability.py`.
"""

import ast
import re
from pathlib import Path

import pytest
import torch

from mixwell.core import disk, files
from mixwell.core.registry import ROOT
from mixwell.formats import sealed
from mixwell.formats.tensors import save_tensors
from mixwell.lm.data import write_shards
from mixwell.lm.documents import Document
from mixwell.lm.splitting import Split
from mixwell.lm.tokenizer import Tokenizer
from mixwell.lm.training import state
from tests import faults
from tests.mutations.tables import frame

TOKENIZER = Tokenizer.train(["to be or not to be"] * 3, 260)

# What gives or changes a file, by the name of the function or method, and the places where it may stand: in a scratch
# file or folder that `core.files` makes last and puts in place, or where nothing is to last.
DIRECT = {"write_text": {}, "write_bytes": {"lm/data.py": "in a scratch folder"}, "replace": {}, "rename": {},
          "save_file": {"formats/tensors.py": "in a scratch file"},
          "copyfile": {"run/stages/train.py": "in a stage's scratch folder",
                       "run/stages/adapt.py": "in a stage's scratch folder"}, "copy": {}, "copy2": {},
          "copytree": {"run/stages/adapt.py": "in a stage's scratch folder"},
          "move": {}, "savez": {}, "tofile": {"lm/spilled.py": "in a scratch folder"}, "touch": {}, "symlink_to": {},
          "hardlink_to": {},
          "truncate": {"run/lock.py": "a lock"}, "fdopen": {}, "mkstemp": {}, "link": {}}
OPENED = {"formats/tensors.py": "in a scratch file", "formats/streams.py": "in a scratch file",
          "lm/data.py": "in a scratch folder", "lm/gguf/writing.py": "in a scratch file",
          "lm/training/metrics.py": "lines of a training; `state.json` says which of them count",
          "run/lock.py": "a lock holds no content that must last", "claims/bench.py": "a lock"}
TEXTUAL = {"replace", "rename", "copy", "link", "move"}  # also methods of text, frames: those of os count
OURS = {"files", "disk", "core.files"}


def source():
    """Name and syntax of the files that may write."""
    words = re.compile(r"\b(open|" + "|".join(DIRECT) + r")\(")
    for path in sorted(ROOT.rglob("*.py")):
        name, text = str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
        if name not in ("core/files.py", "core/disk.py") and words.search(text):
            yield name, ast.parse(text)


def imported(tree):
    """Names that come from the writers themselves."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name for node in nodes if node.module == "mixwell.core.files" for alias in node.names}


def direct_writes(name, tree):
    for node in ast.walk(tree):
        called = getattr(node, "func", None)
        label = getattr(called, "id", getattr(called, "attr", None))
        if label == "open" and name not in OPENED and opens_for_writing(node):
            yield f"{name}: {ast.unparse(node)}"
        if label not in DIRECT or name in DIRECT[label]:
            continue
        owner = ast.unparse(called.value) if isinstance(called, ast.Attribute) else ""
        ours = owner in OURS or (not owner and label in imported(tree))
        apart = label in TEXTUAL and owner not in ("os", "shutil")
        if not (ours or apart):
            yield f"{name}: {ast.unparse(node)}"


def opens_for_writing(node):
    parts = [*node.args, *(word.value for word in node.keywords)]
    modes = [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]
    flags = " ".join(map(ast.unparse, parts))
    return any(set(mode) & set("wax+") and len(mode) <= 3 for mode in modes) or "O_CREAT" in flags or "O_WR" in flags


@pytest.mark.parametrize("line", ["open('x', 'w')", "open('x', mode='ab')", "path.open('r+')", "path.write_text('a')",
                                  "os.replace(a, b)", "shutil.move(a, b)", "os.open('x', os.O_CREAT)",
                                  "save_file(a, b)"])
def test_a_writer_beside_them_is_found(line):
    assert list(direct_writes("a.py", ast.parse(f"def f():\n    return {line}")))


def test_readers_and_the_two_writers_are_none():
    text = "from mixwell.core.files import write_text\nwrite_text(a, b)\nopen(a)\nopen(a, 'rb')\n'a'.replace('b', 'w')"
    assert not list(direct_writes("a.py", ast.parse(text)))


@pytest.mark.slow
def test_nothing_writes_but_through_the_two_writers():
    found = [line for name, tree in source() for line in direct_writes(name, tree)]
    assert found == ["core/machine.py: Path('/proc/self/clear_refs').write_text('5')"]


def table_of_exceptions():
    return {*OPENED, *(name for places in DIRECT.values() for name in places)}


def test_the_exceptions_are_still_there():
    assert all((ROOT / name).is_file() for name in table_of_exceptions())


def tokens(place, number):
    text = ["to be " * number, "or not"]
    split = Split(train=tuple(Document("a.txt", one) for one in text), held=(Document("b.txt", "be"),), note="")
    write_shards(place / "shards", {"a": split}, TOKENIZER)


def mixture(place, number):
    from mixwell import tables

    tables.fit(frame(), components=[number], family="diag", starts=1, out=place / "mixture")


def parquet(place, number):
    from mixwell.tables.reading import write_parquet

    write_parquet(place / "rows.parquet", frame(number))


WRITERS = {
    "bytes": lambda place, number: files.write_bytes(place / "x", bytes([number])),
    "text": lambda place, number: files.write_text(place / "x", str(number)),
    "json": lambda place, number: files.write_json(place / "deep" / "x.json", {"n": number}),
    "sealed": lambda place, number: sealed.write(place / "x.json", {"n": number}),
    "tensors": lambda place, number: save_tensors(place / "x.safetensors", {"a": torch.full((3,), float(number))}),
    "tokens": tokens, "mixture": mixture, "parquet": parquet,
}


SLOW = pytest.mark.slow


def without_scratch(image):
    return {path: data for path, data in image.items() if not any(map(disk._SCRATCH.fullmatch, Path(path).parts))}


@pytest.mark.parametrize("before", [False, True], ids=["new", "over an old one"])
@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW if name == "mixture" else ()) for name in WRITERS])
def test_each_prefix_of_a_writer_is_the_old_state_or_the_new(name, before, tmp_path):
    if before:
        WRITERS[name](tmp_path, 1)
    old = faults.image_of(tmp_path)
    with faults.recorded(tmp_path) as tape:
        WRITERS[name](tmp_path, 2)
    new = faults.image_of(tmp_path)
    assert old != new
    seen = [without_scratch(image) for image in tape.images()]
    assert all(image in (old, new) for image in seen) and old in seen and new in seen
    assert all(without_scratch(image) == new for image in tape.last())


def test_each_prefix_of_a_saved_training_holds_a_whole_state(tmp_path):
    """Two files that change together: whatever is left, the state that is read is the one before or the one after."""
    folder = tmp_path / "state"

    def save(step):
        state.save(folder, step, {"a": torch.full((4,), float(step))}, {"seconds": step / 2})

    save(3)
    with faults.recorded(tmp_path) as tape:
        save(6)
    seen = set()
    for number, image in enumerate(tape.images()):
        after = tmp_path.parent / "after" / str(number)
        for name, data in image.items():
            (after / name).parent.mkdir(parents=True, exist_ok=True)
            (after / name).write_bytes(data)
        values, tensors = state.load(after / "state")
        assert values["step"] == 2 * values["seconds"] and (tensors["a"] == values["step"]).all()
        seen.add(values["step"])
    assert seen == {3, 6}
