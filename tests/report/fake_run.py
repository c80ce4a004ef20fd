"""Writes a run folder through the records that the engine writes, with figures that a test can choose."""

import json
import math
import random
from dataclasses import replace
from pathlib import Path

from mixwell.report import digests
from mixwell.report.records import RunRecord, StageRecord, write_run, write_stage

DOMAINS = ("library", "tests", "prose", "docstrings")
SHARES = (0.4, 0.3, 0.1, 0.2)
PROMISES = {"max_logit_error": 1e-4, "kl_nats": 1e-6}
CONFIG = {"tokens": None, "flops": None, "seconds": None, "lr": 2e-3, "dtype": "bf16", "weights": None}
RECIPE = {"name": "default", "seed": 0, "stages": [
    {"id": "dense", "train": {"tokens": 1_200_000}},
    {"id": "moe", "from": "dense", "convert": "upcycle", "num_experts": 8},
    {"id": "moe-trained", "from": "moe", "train": {"tokens": 2_000_000}},
    {"id": "dense-trained", "from": "dense", "train": {"tokens": 2_000_000}}]}


def curve(start, floor, tokens, flops_per_token, seconds_per_token, *, seed=0, own=0, noise=0.02, points=200):
    """Metric lines of a training stage whose loss falls from `start` to `floor`; a tenth of the noise is its `own`."""
    draws, mine, lines = random.Random(seed), random.Random(own + 100), []
    for i in range(1, points + 1):
        share = i / points
        spent = round(tokens * share)
        loss = floor + (start - floor) * math.exp(-5 * share) + draws.gauss(0, noise) + mine.gauss(0, noise / 10)
        lines.append({"step": i * 5, "tokens": spent, "flops": spent * flops_per_token,
                      "seconds": spent * seconds_per_token, "loss_nats": loss, "aux": 0.011,
                      "lr": 1e-3 * (1 if share < 0.8 else max(0.02, 5 * (1 - share))), "grad_norm": 0.8,
                      "tokens_per_s": 1 / seconds_per_token})
    return lines


def loads(layers=4, experts=8, tilt=0.0, dead=()):
    """Expert load by layer and domain; `tilt` makes domains prefer different experts, `dead` ones get nothing."""
    found = {}
    for layer in range(layers):
        found[str(layer)] = {}
        for d, domain in enumerate(DOMAINS):
            raw = [0.0 if e in dead else 1 + tilt * math.cos(e * (d + 1) + layer) for e in range(experts)]
            found[str(layer)][domain] = [v / sum(raw) for v in raw]
    return found


def evaluation(mean, load=None):
    """An evaluation whose domains spread around `mean`."""
    scores = {d: mean + shift for d, shift in zip(DOMAINS, (-0.3, -0.1, 0.5, -0.1))}
    return {"bits_per_byte": scores, "mean": mean, "loss_nats": {d: 2.1 * v for d, v in scores.items()},
            "load": load or {}, "tokens": {d: 3000 + i for i, d in enumerate(DOMAINS)}, "seconds": 1.25}


def receipt(method, **changes):
    """A receipt that keeps its promises, unless told otherwise."""
    values = {"method": method, "max_logit_error": 3.2e-6, "kl_nats": 4.1e-11, "loss_before_nats": 3.21447,
              "loss_after_nats": 3.21447, "parameters_before": 3_154_176, "parameters_after": 14_172_416,
              "size_before_bytes": 12_616_704, "size_after_bytes": 56_689_664, "load_before": {}, "load_after": {},
              "promises": PROMISES, "kept": True}
    return values | changes


def train_result(lines, parameters, active=None):
    last = lines[-1]
    ledger = {d: round(last["tokens"] * (s + e)) for d, s, e in zip(DOMAINS, SHARES, (0.001, -0.001, 0.0005, -0.0005))}
    return {"tokens": last["tokens"], "flops": last["flops"], "seconds": last["seconds"], "ledger": ledger,
            "final_loss": last["loss_nats"], "metrics": "metrics.jsonl", "parameters": parameters,
            "active_parameters": active or parameters, "peak_bytes": 812_000_000}


def stage(id, kind, inputs, result, *, method="", evaluated=None, lines=(), key="", **more):
    """(record, metric lines) of one stage."""
    took = lines[-1]["seconds"] if lines else 0.0
    actual = {"tokens": result.get("tokens"), "flops": result.get("flops"), "seconds": 1.0 + took,
              "peak_bytes": result.get("peak_bytes")}
    made = StageRecord(id=id, kind=kind, method=method or kind, key=key or f"{sum(map(ord, id)):08x}" * 8,
                       inputs=tuple(inputs), seconds=1.0 + took, versions={"mixwell": "0.1.0"}, threads=2,
                       actual=actual, result=result, evaluation=evaluated or {}, side=more.pop("side", id),
                       **({"config": CONFIG} if kind == "train" else {}) | more)
    return made, list(lines)


def training(id, source, lines, mean, parameters=3_154_176, active=None, load=None, **more):
    """A stage that trains `source`."""
    return stage(id, "train", [source, "tokens", "tokenizer"], train_result(lines, parameters, active),
                 evaluated=evaluation(mean, load), lines=lines, **more)


def base():
    """The stages that the top-level keys of a recipe make."""
    return [
        stage("data", "data", [], {"domains": {
            d: {"documents": 40 + i, "train_bytes": round(9e6 * s), "held_bytes": round(4.7e5 * s), "split": "by file"}
            for i, (d, s) in enumerate(zip(DOMAINS, SHARES))}}),
        stage("tokenizer", "tokenizer", ["data"],
              {"vocab_size": 2048, "bytes_per_token": dict(zip(DOMAINS, (3.41, 3.22, 3.05, 3.38)))}),
        stage("tokens", "tokens", ["data", "tokenizer"],
              {"domains": {d: {"train_tokens": round(2.7e6 * s), "held_tokens": round(1.4e5 * s)}
                           for d, s in zip(DOMAINS, SHARES)}}),
        stage("model", "build", ["tokenizer"], {"parameters": 3_154_176, "active_parameters": 3_154_176})]


def stages(*, dense_floor=2.42, moe_floor=2.35, dense_mean=1.62, moe_mean=1.57,
           sample=("def add(a, b):", " return a <b>+</b> b")):
    """(record, metric lines) for every stage of a recipe with two branches, one seed each."""
    first = curve(7.6, 3.2, 1_200_000, 1.2e7, 2.2e-5, seed=1)
    moe = curve(3.2, moe_floor, 2_000_000, 1.9e7, 4.6e-5, seed=2, own=1)
    dense = curve(3.2, dense_floor, 2_000_000, 1.2e7, 2.2e-5, seed=2)
    predicted = {"tokens": 2e6, "flops": 3.6e13, "peak_bytes": 9e8, "seconds": 88.0}
    after_int8 = receipt("precision.int8", max_logit_error=0.0817, kl_nats=1.4e-4, parameters_before=14_172_416,
                         size_before_bytes=56_689_664, size_after_bytes=14_600_192, loss_after_nats=3.21466,
                         promises={"kl_nats": 0.01})
    texts = [{"prompt": sample[0], "text": sample[1]}, {"prompt": "The quick", "text": " brown\n  fox & co"}]
    from_moe = ["moe-trained", "tokens", "tokenizer"]
    return [
        *base(), training("dense", "model", first, 2.01),
        stage("moe", "convert", ["dense", "tokens", "tokenizer"], {
            "receipt": receipt("convert.upcycle"), "parameters": 14_172_416, "active_parameters": 6_299_904},
            method="convert.upcycle", evaluated=evaluation(2.01, loads(tilt=0.3))),
        training("moe-trained", "moe", moe, moe_mean, 14_172_416, 6_299_904, loads(tilt=0.6), predicted=predicted),
        training("dense-trained", "dense", dense, dense_mean),
        stage("moe-int8", "compress", from_moe, {"receipt": after_int8, "parameters": 14_172_416,
                                                 "active_parameters": 6_299_904},
              method="precision.int8", evaluated=evaluation(moe_mean + 0.0004, loads(tilt=0.6))),
        stage("samples", "sample", from_moe, {"samples": texts})]


def seeded(scores, *, tokens=None, flops=None, seconds=None):
    """(record, metric lines) of sides trained from the model itself. scores: side -> bits per byte, one a seed.

    tokens, flops, seconds: side -> of its training; left out 1 M, 12 FLOP and 20 µs a token.
    """
    made = base()
    for side, means in scores.items():
        read = (tokens or {}).get(side, 1_000_000)
        compute, time = (flops or {}).get(side, 12.0 * read), (seconds or {}).get(side, 2e-5 * read)
        for seed, mean in enumerate(means):
            lines = curve(7.0, 2.0 * mean, read, compute / read, time / read, seed=seed, points=50)
            made.append(training(f"{side}-s{seed}", "model", lines, mean, side=side, seed=seed,
                                 config=CONFIG | {"mark": side}))
    return made


def only(entries, *ids):
    """The stages with these ids."""
    return [(record, lines) for record, lines in entries if record.id in ids]


def changed(entries, id, **changes):
    """The stages, one with other fields; a mapping is laid over the old one."""
    return [(_with(record, changes) if record.id == id else record, lines) for record, lines in entries]


def _with(record, changes):
    merged = {k: {**getattr(record, k), **v} if isinstance(v, dict) else v for k, v in changes.items()}
    return replace(record, **merged)


def write_stages(folder: Path, entries):
    """Write the folders of the stages; returns their records."""
    placed = []
    for record, lines in entries:
        place = folder / "stages" / f"{record.id}-{record.key[:8]}"
        place.mkdir(parents=True)
        if lines:
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (place / "metrics.jsonl").write_text(text)
        placed.append(replace(record, folder=place, files=digests.of_folder(place)))
        write_stage(placed[-1])
    return placed


def write(folder: Path, entries, **record):
    """Write a whole run; returns its folder."""
    whole = {"name": "default", "recipe": RECIPE,
             "machine": {"cpu": "AMD EPYC 9R14", "instructions": "AVX512", "cores": 2, "threads": 2,
                         "memory_bytes": 8_210_000_000, "torch": "2.13.0"},
             "versions": {"mixwell": "0.1.0"}, "started": "2026-03-01T10:20:30", "seconds": 243.4}
    write_run(RunRecord(stages=tuple(write_stages(folder, entries)), folder=folder, **(whole | record)))
    return folder
