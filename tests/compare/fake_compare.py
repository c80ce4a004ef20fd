"""Builds the folder of a comparison such as `mixwell.compare` leaves behind, with scores that a test can choose."""

import math
import random

from mixwell.formats import sealed
from tests.report.fake_run import DOMAINS, curve, stage, training
from tests.report.fake_run import write as write_run


def loads(tilt, seed, layers=4, experts=8):
    """Load by layer and domain; each seed prefers experts of its own."""
    draws = random.Random(seed)
    found = {}
    for layer in range(layers):
        order = draws.sample(range(experts), experts)
        raw = [math.exp(-tilt * place) for place in order]
        found[str(layer)] = {domain: [v / sum(raw) for v in raw] for domain in DOMAINS}
    return found


def trial(folder, name, seed, score, *, tilt=0.1, points=120, dear=(), tokenizer="same", held_out=False):
    """Write one variant and seed: a model, and a training whose evaluation is `score`."""
    place = folder / "variants" / f"{name}-seed{seed}"
    lines = curve(6.5, 1.4 * score, 1_000_000, 1.9e7 * (1 + (name in dear)), 4e-5, seed=seed, own=hash_of(name, seed),
                  points=points)
    if held_out:
        lines = [line | {"evaluation": {"mean": 2.0 - line["tokens"] / 1e7}} for line in lines]
    key = name if tokenizer == "own" else "same"
    entries = [
        stage("tokenizer", "tokenizer", [], {"vocab_size": 2048}, key=key * 8),
        stage("model", "build", ["tokenizer"], {"parameters": 14_172_416, "active_parameters": 6_299_904}),
        training("trained", "model", lines, score, 14_172_416, 6_299_904, loads(tilt, seed), seed=seed)]
    write_run(place, entries, name="fake")
    weights = next(place.glob("stages/trained-*")) / "model" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"0" * 1000)
    return f"variants/{name}-seed{seed}"


def hash_of(name, seed):
    """A number that is the same in every process."""
    return sum(map(ord, name)) + 1000 * seed


def write(folder, scores, *, baseline=None, failures=None, waiting=(), **options):
    """Write a comparison. scores: variant -> one score a seed; failures: variant -> reason, for all its seeds."""
    folder.mkdir(parents=True, exist_ok=True)
    failures = failures or {}
    seeds = list(range(max(map(len, scores.values()))))
    listed = []
    for name in [*scores, *failures]:
        runs = [{"seed": s, "state": "finished", "error": "", "folder": trial(folder, name, s, v, **options)}
                for s, v in enumerate(scores.get(name, ()))]
        runs += [{"seed": s, "state": "failed", "error": failures[name], "folder": ""} for s in seeds
                 if name in failures]
        if name in waiting:
            runs += [{"seed": s, "state": "waiting", "error": "", "folder": ""} for s in seeds[len(runs):]]
        listed.append({"name": name, "changes": {"model.router": {"method": name}}, "runs": runs})
    record = {"name": "standard-library", "recipe": {"name": "standard-library", "model": {"num_experts": 8}},
              "stage": "trained", "baseline": baseline or next(iter(scores)), "vary": ["model.router"],
              "budget": {"tokens": 1e6}, "seeds": seeds, "variants": listed,
              "machine": {"cpu": "AMD EPYC 9R14", "cores": 2, "threads": 2}, "versions": {"mixwell": "0.1.0"},
              "started": "2026-03-01T10:20:30", "wall_seconds": 960.0}
    sealed.write(folder / "compare.json", record)
    return folder
