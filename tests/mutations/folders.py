"""Mutants of run folders: of any file in them, and of what they hold."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from pathlib import Path

from mixwell.report import page, records
from mixwell.run import engine, paths, recipe, status, verify
from tests.mutations import Change, Outcome, outcome
from tests.mutations.recipes import ODD, _places
from tests.run import tiny


def flip(path, draws, run):
    data = bytearray(path.read_bytes())
    for _ in range(draws.choice([1, 1, 1, 4])):
        data[draws.randrange(len(data))] ^= 1 << draws.randrange(8)
    path.write_bytes(data)


def cut(path, draws, run):
    data = path.read_bytes()
    path.write_bytes(data[: draws.randrange(len(data))])


def longer(path, draws, run):
    with open(path, "ab") as file:
        file.write(draws.choice([b"\n", b" ", b"\x00" * 100, b"{}", b"x"]))


def gone(path, draws, run):
    path.unlink()


def exchanged(path, draws, run):
    other = draws.choice([p for p in files(run) if p.suffix == path.suffix])
    kept = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(kept)


def no_file(path, draws, run):
    path.unlink()
    act = draws.choice(["folder", "pipe", "loop", "dangling", "device", "other"])
    if act == "folder":
        path.mkdir()
    elif act == "pipe":
        os.mkfifo(path)
    elif act == "loop":
        path.symlink_to(path.name)
    elif act == "dangling":
        path.symlink_to("nowhere")
    elif act == "device":
        path.symlink_to("/dev/zero")
    else:
        path.symlink_to(draws.choice(files(run)).resolve())


def figure(path, draws, run):
    """Another value in a JSON file, now and then with a digest that fits: as another version might write it."""
    filled = [p for p in files(run) if p.suffix == ".json" and not p.name.startswith(".") and p.stat().st_size > 9]
    path = draws.choice(filled)
    data = json.loads(path.read_text())
    place, key = draws.choice(_places(data))
    place[key] = draws.choice(ODD)
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False), encoding="utf-8", errors="surrogatepass")


def other_json(path, draws, run):
    path = draws.choice([p for p in files(run) if p.suffix in (".json", ".jsonl")])
    path.write_text(draws.choice(["{}", "[]", "null", "1", '"x"', "[" * 100_000, '{"a":' * 50_000, "NaN", "",
                                  "9" * 6000, '{"digest": 1}', '{"digest": null, "id": []}', "{\"id\": \"\\ud800\"}"]))


def foreign(path, draws, run):
    name = draws.choice(["notes.txt", "model.safetensors.index.json", "stage.json", ".hidden", "a\nb"])
    (path.parent / name).write_text("{}")


def folders(path, draws, run):
    """Stages renamed, doubled or taken away."""
    stages = sorted(p for p in (run / "stages").iterdir() if not p.name.startswith("."))
    one, other = draws.sample(stages, 2)
    act = draws.choice(["gone", "renamed", "doubled", "exchanged", "file"])
    if act in ("gone", "exchanged", "file"):
        shutil.rmtree(one)
    if act == "renamed":
        one.rename(one.with_name(f"{one.name.rpartition('-')[0]}-{draws.randrange(16**8):08x}"))
    elif act == "doubled":
        shutil.copytree(one, one.with_name(f"{one.name.rpartition('-')[0]}-{draws.randrange(16**8):08x}"))
    elif act == "exchanged":
        other.rename(one)
    elif act == "file":
        one.write_text("x")


KINDS = {f.__name__: f for f in (flip, cut, longer, gone, exchanged, no_file, figure, other_json, foreign, folders)}
WEIGHTS = (4, 2, 1, 1, 1, 1, 3, 2, 1, 1)


def files(run):
    return sorted(p for p in run.rglob("*") if p.is_file() and not p.is_symlink())


class Folders:
    """Mutants of the folder of one finished run."""

    def __init__(self, folder: Path) -> None:
        self.recipe = recipe.read(tiny.recipe_file(folder, tokens=300))
        self.original, self.mutant = folder / "original", folder / "run"
        engine.run(self.recipe, self.original)
        self.page = self._page(self.original)
        self.content = self._content(self.original)

    @staticmethod
    def _page(run):
        text = page.render("report.html", **page.contents(records.read_run(run)))
        return text.replace(str(run), "RUN")

    @staticmethod
    def _content(run):
        """Bytes of all that is visible in the stages."""
        return {str(p.relative_to(run)): p.read_bytes() for p in files(run / "stages")
                if not any(part.startswith(".") for part in p.relative_to(run).parts)}

    def try_one(self, seed: int) -> Outcome:
        """Make the mutant of that seed and use it as `run`, `report`, `verify` and the reader of a model do."""
        draws = random.Random(seed)
        kind = draws.choices(list(KINDS), WEIGHTS)[0]
        shutil.rmtree(self.mutant, ignore_errors=True)
        shutil.copytree(self.original, self.mutant)
        for file in self.mutant.glob("stages/*/stage.json"):  # as a run leaves it that found all in order
            verify.remember(records.read_stage(file.parent))
        path = draws.choice([p for p in files(self.mutant) if p.stat().st_size])
        KINDS[kind](path, draws, self.mutant)
        return outcome(f"run folders: {kind}", self._use)

    def _use(self):
        refusals = []
        for look in (self._planned, self._reported, self._verified, self._loaded):
            try:
                refusals.append(look())
            except engine.MixwellError as error:
                refusals.append(str(error))
        return "; ".join(filter(None, refusals))

    def _planned(self):
        """The stages that count as there hold what they held."""
        planned = engine.plan(self.recipe, self.mutant, predict=False)
        for one in planned:
            if one.cached:
                self._same(one.folder)
        return "; ".join(one.damage for one in planned if one.damage)

    def _same(self, folder):
        for name, held in self.content.items():
            if name.startswith(f"stages/{folder.name}/"):
                path = self.mutant / name
                if not path.is_file() or path.read_bytes() != held:
                    raise Change(f"{name} is another and counts as there")

    def _reported(self):
        if words := status.unfinished(self.mutant):
            return words
        if self._page(self.mutant) != self.page:
            raise Change("the report says something else")
        return ""

    def _verified(self):
        problems = verify.verify(self.mutant).problems
        recorded = {*self.content, "run.json", "recipe.yaml"}
        for name in recorded:
            path, before = self.mutant / name, self.original / name
            same = path.is_file() and path.read_bytes() == before.read_bytes()
            if path.parent.is_dir() and not problems and not same:
                raise Change(f"verify finds nothing, and {name} is another")
        return "; ".join(problems)

    def _loaded(self):
        model = paths.find_model(f"{self.mutant}:dense")
        if not re.search(r"dense-\w{8}/model$", str(model)):
            raise Change(f"dense is taken to lie in {model}")
        return ""
