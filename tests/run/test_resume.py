"""A run killed at random moments and started again ends with the weights of one that was left alone."""

import hashlib
import importlib
import json
import multiprocessing
import random
import signal
import time
from pathlib import Path

import pytest

from tests.run import tiny

KILLS = 5


class Beats:
    """An observer that tells another process of every step."""

    def __init__(self, pipe):
        self.pipe = pipe

    def beat(self, *_):
        self.pipe.send_bytes(b"x")

    preparing = planned = started = advanced = finished = beat


def go(recipe_file, out, pipe):
    """The body of a process that runs the recipe."""
    import torch

    from mixwell.run import engine, recipe

    torch.set_num_threads(1)
    engine.run(recipe.read(recipe_file), out, observer=Beats(pipe))


@pytest.fixture(scope="module")
def start():
    """Starts processes that have the engine imported already, so that a kill lands in the run and not in an import."""
    for module in ("mixwell.run.engine", "mixwell.report.page"):
        importlib.import_module(module)
    context = multiprocessing.get_context("fork")

    def process(recipe_file, out):
        mine, theirs = context.Pipe(duplex=False)
        made = context.Process(target=go, args=(recipe_file, out, theirs))
        made.start()
        theirs.close()
        return made, mine

    return process


def beats(pipe, most: float = float("inf")) -> int:
    """Wait for `most` beats or for the end of the process; returns how many came."""
    count = 0
    while count < most:
        try:
            pipe.recv_bytes()
        except EOFError:
            break
        count += 1
    return count


def weights(out: Path) -> dict[str, str]:
    """Digests of every tensor file of the finished stages."""
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(out.glob("stages/*/model/*.safetensors"))}


def losses(out: Path) -> dict[str, list]:
    """The lines of every training without what the clock says."""
    timed = {"seconds", "tokens_per_s"}
    return {p.parent.name: [{k: v for k, v in json.loads(line).items() if k not in timed}
                            for line in p.read_text().splitlines()] for p in sorted(out.glob("stages/*/metrics.jsonl"))}


def scores(out: Path) -> dict[str, float]:
    """Bits per byte of every evaluated stage."""
    found = {p.parent.name: json.loads(p.read_text()) for p in sorted(out.glob("stages/*/stage.json"))}
    return {name: record["evaluation"]["bits_per_byte"] for name, record in found.items() if record["evaluation"]}


def state(out: Path) -> frozenset[str]:
    """What a kill left: finished stages, and trainings with a saved state."""
    begun = out.glob("stages/.work-*/state/state.json")
    return frozenset([*(p.parent.name for p in out.glob("stages/*/stage.json")), *(p.parts[-3] for p in begun)])


@pytest.mark.slow
def test_five_kills_change_no_bit(tmp_path, start):
    file = tiny.recipe_file(tmp_path / "recipe", tokens=6000)
    alone, pipe = start(file, tmp_path / "alone")
    whole = beats(pipe)
    alone.join()
    assert alone.exitcode == 0 and whole > 100

    draws, killed, places, number = random.Random(0), 0, set(), 0
    out = tmp_path / "killed-0"
    while True:
        process, pipe = start(file, out)
        beats(pipe, draws.randint(1, whole // 2) if killed < KILLS else float("inf"))
        if killed < KILLS:
            time.sleep(draws.uniform(0, 0.03))
            if process.exitcode is None:
                process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL:
            killed += 1
            places.add(state(out))
            continue
        assert process.exitcode == 0
        assert weights(out) == weights(tmp_path / "alone") and len(weights(out)) == 6
        assert losses(out) == losses(tmp_path / "alone")
        assert scores(out) == scores(tmp_path / "alone") and len(scores(out)) == 5
        assert not list(out.glob("stages/.*")), "something half-done was left"
        if killed >= KILLS:
            break
        number += 1
        out = tmp_path / f"killed-{number}"
    assert len(places) >= 3, "the kills all landed in the same few moments"


def test_another_seed_gives_other_weights(tmp_path, start):
    outs = []
    for seed in (0, 1):
        process, pipe = start(tiny.recipe_file(tmp_path / "recipe", seed=seed, tokens=300), tmp_path / f"seed-{seed}")
        beats(pipe)
        process.join()
        assert process.exitcode == 0
        outs.append({name.split("-")[0]: d for name, d in weights(tmp_path / f"seed-{seed}").items()})
    assert all(outs[0][name] != outs[1][name] for name in outs[0])
