"""Mutants of recipes: bytes, structure, forms that mean the same, and work without bound."""

from __future__ import annotations

import copy
import random
from pathlib import Path

import yaml

from mixwell.report.records import recipe_text
from mixwell.run import recipe, sizing
from mixwell.run.keys import stage_keys
from tests.mutations import Change, Outcome, outcome
from tests.run import tiny

ODD = [None, [], {}, "", "x" * 5000, -1, 0, 2**31, 2**63, 10**400, 1e308, float("inf"), float("nan"), True, "1e999M",
       "-1k", "3 M", "nan", "\x07", "../../etc/passwd", "/dev/zero", "~", [[[[]]]], {"a": {"b": {"c": 1}}}, [1, 2, 3],
       0.5, 1.5, "*", "&", "!!x", "1e-400", "2001-99-99", "top_k", {"method": "top_k"}, "\ud7ff", "é" * 300, 10**9,
       -(10**9), "1M"]
KEYS = ["", "x", "method", "tokens", "id", "from", "seed", "seeds", "train", "convert", "model", "router",
        "num_experts", "a.b", "k" * 300, "<<", "as_long_as", "minutes", "path", "domains"]


def _places(data, path=()):
    """Every (container, key) of nested data."""
    found = []
    for key, value in data.items() if isinstance(data, dict) else enumerate(data):
        found.append((data, key))
        if isinstance(value, (dict, list)) and value:
            found += _places(value)
    return found


def structure(text, draws):
    """One or two values replaced, taken out, renamed, doubled or moved."""
    data = yaml.safe_load(text)
    for _ in range(draws.choice([1, 1, 2])):
        place, key = draws.choice(_places(data))
        act = draws.choice(["replace"] * 6 + ["remove", "rename", "add", "double", "move"])
        if act == "replace":
            place[key] = copy.deepcopy(draws.choice(ODD))
        elif act == "remove":
            del place[key]
        elif act == "rename" and isinstance(place, dict):
            place[draws.choice(KEYS)] = place.pop(key)
        elif act == "add" and isinstance(place, dict):
            place[draws.choice(KEYS)] = copy.deepcopy(draws.choice(ODD))
        elif act == "double" and isinstance(place, list):
            place.append(copy.deepcopy(place[key]))
        elif act == "move":
            other, there = draws.choice(_places(data))
            other[there] = copy.deepcopy(place[key])
        if not _places(data):
            break
    return yaml.safe_dump(data, allow_unicode=True).encode("utf-8", "surrogatepass")


def spoilt(text, draws):
    """Bits flipped, bytes taken out, put in, cut off, repeated."""
    data = bytearray(text.encode())
    for _ in range(draws.choice([1, 1, 2, 5])):
        at = draws.randrange(len(data))
        act = draws.choice(["flip", "cut", "insert", "repeat", "end"])
        if act == "flip":
            data[at] ^= 1 << draws.randrange(8)
        elif act == "cut":
            del data[at : at + draws.randint(1, 20)]
        elif act == "insert":
            data[at:at] = draws.choice([b"\x00", b"\t", b": ", b"- ", b"{", b"[", b"&a ", b"*a ", b"\xff", b"'", b'"',
                                        b"|\n", b"!!python/object:os.system ", b"<<: *a\n", b"9" * 5000,
                                        b"\xef\xbb\xbf", b"%"])
        elif act == "repeat":
            data[at:at] = data[at : at + draws.randint(1, 200)]
        else:
            del data[max(at, 1):]
        if not data:
            data += b"x"
    return bytes(data)


def bomb(text, draws):
    """Little to read, much to do."""
    size = draws.choice([50, 2000, 20_000])
    depth, width = draws.randint(5, 25), draws.randint(2, 20)
    act = draws.choice(["alias", "merge", "keys", "stages", "deep", "flow", "seeds", "digits", "self", "long"])
    if act in ("alias", "merge"):
        step = "[{}]" if act == "alias" else "{{<<: [{}]}}"
        lines = ["a0: &a0 {k: 1}"] + [f"a{i}: &a{i} " + step.format(", ".join([f"*a{i - 1}"] * width))
                                     for i in range(1, depth)]
        place = draws.choice(["stages: [*a{}]", "data: *a{}", "model: {{router: *a{}}}", "train: *a{}"])
        made = "\n".join([*lines, place.format(depth - 1)])
    elif act == "keys":
        made = "\n".join(f"k{i}: {i}" for i in range(size))
    elif act == "stages":
        made = text + "".join(f"  - {{id: s{i}, from: dense, train: {{tokens: 1k}}}}\n" for i in range(size // 7))
    elif act == "deep":
        made = "".join("  " * i + f"k{i}:\n" for i in range(size // 10))
    elif act == "flow":
        made = draws.choice(["[", "{a: ", "- "]) * size
    elif act == "seeds":
        made = text + f"  - {{id: many, from: dense, seeds: {draws.choice([10**9, 2000, 10**30, -5])}, train: " \
                      "{tokens: 1k}}\n"
    elif act == "digits":
        made = text.replace("seed: 0", "seed: " + "7" * size)
    elif act == "self":
        made = draws.choice(["a: &a [*a]", "model: &a {router: *a}", "stages: &a [*a]", "train: &a {<<: *a}"])
    else:
        made = f"name: {'n' * size}\n"
    return made.encode()


def same(text, draws):
    """Another way to write the same recipe."""
    data = yaml.safe_load(text)
    act = draws.choice(["order", "flow", "merge", "alias", "comments", "returns", "mark", "numbers", "json"])
    if act == "order":
        items = list(data.items())
        draws.shuffle(items)
        made = yaml.safe_dump(dict(items), sort_keys=False)
    elif act == "flow":
        made = yaml.safe_dump(data, default_flow_style=True, sort_keys=False)
    elif act == "merge":
        made = text.replace("train: {tokens: 300}}", "train: {<<: *budget}}").replace(
            "seed: 0", "seed: &none 0").replace("train: {batch_size", "train: &budget {tokens: 300, batch_size")
    elif act == "alias":
        made = text.replace("seed: 0", "seed: &zero 0").replace("save_every_s: 0", "save_every_s: *zero")
    elif act == "comments":
        made = "# first\n" + text.replace("\n", "   # about\n") + "\n...\n"
    elif act == "returns":
        made = text.replace("\n", "\r\n")
    elif act == "mark":
        made = "\ufeff" + text
    elif act == "numbers":
        made = text.replace("1e-2", "0.01").replace("300", draws.choice(["0.3k", "300.0", "'300'", "0x12c"]), 1)
        made = made.replace("tokens: 300", "tokens: 3e2")
    else:
        import json

        made = json.dumps(data)
    return made.encode()


CHANGES = ["train.lr=1e-3", "stages.dense.train.tokens=1M", "moe.router=sinkhorn", "moe.num_experts=2", "minutes=1",
           "seed=[", "model.router.k=1", "stages=[]", "=", "a=*b", "moe.x.y.z=1", "data.domains.left=&a {x: *a}",
           "name=" + "n" * 300]

KINDS = {"structure": structure, "bytes": spoilt, "bombs": bomb, "same": same}
WEIGHTS = (5, 3, 2, 2)


class Recipes:
    """Mutants of one recipe whose text lies below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.file = tiny.recipe_file(folder, tokens=300)
        self.text = self.file.read_text()
        self.mutant = folder / "tiny-mutant.yaml"
        self.keys = self._keys(self.file)
        self._keys_of(recipe.from_plain({}))  # the text of a recipe that names none is read once

    def _keys(self, path):
        chosen = recipe.read(path)
        return self._keys_of(chosen)

    @staticmethod
    def _keys_of(chosen):
        stages = recipe.stages(chosen)
        return stage_keys(stages, chosen.threads or 1)

    def try_one(self, seed: int) -> Outcome:
        """Make the mutant of that seed and use it as a run does before its first stage."""
        draws = random.Random(seed)
        kind = draws.choices(list(KINDS), WEIGHTS)[0]
        self.mutant.write_bytes(KINDS[kind](self.text, draws))
        changes = [] if kind == "same" or draws.random() < 0.7 else [draws.choice(CHANGES)]
        return outcome(f"recipes: {kind}", lambda: self._use(kind, changes))

    def _use(self, kind, changes):
        chosen = recipe.read(self.mutant, changes)
        sizing.nominal(chosen)
        keys = self._keys_of(chosen)
        if kind == "same" and keys != self.keys and keys != self._keys(self.file):  # the source may be another now
            raise Change(f"{self.mutant.read_text()} does not mean what the original does")
        written = self.mutant.with_name("written.yaml")
        written.write_text(recipe_text(recipe.to_dict(chosen)), encoding="utf-8")
        if self._keys(written) != keys:
            raise Change(f"{self.mutant.read_text()[:2000]} is not what recipe.yaml says of it")
