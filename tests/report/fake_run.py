"""Builds a run folder such as the engine leaves behind, with figures that a test can choose."""

import json
import math
import random
from pathlib import Path

DOMAINS = ("library", "tests", "prose", "docstrings")
SHARES = (0.4, 0.3, 0.1, 0.2)
PROMISES = {"max_logit_error": 1e-4, "kl_nats": 1e-6}


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
    return {"bits_per_byte": scores, "mean": mean, "loss_nats": mean * 2.1, "load": load or {},
            "tokens": {d: 3000 + i for i, d in enumerate(DOMAINS)}, "seconds": 1.25}


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


def stages(*, dense_floor=2.42, moe_floor=2.35, dense_mean=1.62, moe_mean=1.57,
           sample=("def add(a, b):", " return a <b>+</b> b")):
    """(entry of stage.json, metric lines) for every stage of the default recipe."""
    first = curve(7.6, 3.2, 1_200_000, 1.2e7, 2.2e-5, seed=1)
    moe = curve(3.2, moe_floor, 2_000_000, 1.9e7, 4.6e-5, seed=2, own=1)
    dense = curve(3.2, dense_floor, 2_000_000, 1.2e7, 2.2e-5, seed=2)
    predicted = {"tokens": 2_000_000, "flops": 3.6e13, "peak_bytes": 900_000_000, "seconds": 88.0}
    made = [
        ("data", "data", "data", [], {"domains": {
            d: {"documents": 40 + i, "train_bytes": round(9e6 * s), "held_bytes": round(4.7e5 * s), "split": "by file"}
            for i, (d, s) in enumerate(zip(DOMAINS, SHARES))}}, {}, []),
        ("tokenizer", "tokenizer", "tokenizer", ["data"],
         {"vocab_size": 2048, "bytes_per_token": dict(zip(DOMAINS, (3.41, 3.22, 3.05, 3.38)))}, {}, []),
        ("model", "build", "build", ["tokenizer"], {"parameters": 3_154_176}, {}, []),
        ("tokens", "tokens", "tokens", ["data", "tokenizer"],
         {"domains": {d: {"train_tokens": round(2.7e6 * s), "held_tokens": round(1.4e5 * s)}
                      for d, s in zip(DOMAINS, SHARES)}}, {}, []),
        ("dense", "train", "train", ["model", "tokens", "tokenizer"], train_result(first, 3_154_176),
         evaluation(2.01), first),
        ("moe", "convert", "convert.upcycle", ["dense", "tokens", "tokenizer"],
         {"receipt": receipt("convert.upcycle"), "parameters": 14_172_416}, evaluation(2.01, loads(tilt=0.3)), []),
        ("moe-trained", "train", "train", ["moe", "tokens", "tokenizer"],
         train_result(moe, 14_172_416, 6_299_904) | {"predicted": predicted},
         evaluation(moe_mean, loads(tilt=0.6)), moe),
        ("dense-trained", "train", "train", ["dense", "tokens", "tokenizer"], train_result(dense, 3_154_176),
         evaluation(dense_mean), dense),
        ("moe-int8", "compress", "precision.int8", ["moe-trained", "tokens", "tokenizer"],
         {"receipt": receipt("precision.int8", max_logit_error=0.0817, kl_nats=1.4e-4, parameters_before=14_172_416,
                             size_before_bytes=56_689_664, size_after_bytes=14_600_192, loss_after_nats=3.21466,
                             promises={"kl_nats": 0.01}), "parameters": 14_172_416},
         evaluation(moe_mean + 0.0004, loads(tilt=0.6)), []),
        ("samples", "sample", "sample", ["moe-int8", "tokens", "tokenizer"],
         {"samples": [{"prompt": sample[0], "text": sample[1]}, {"prompt": "The quick", "text": " brown\n  fox & co"}]},
         {}, []),
    ]
    return [({"id": id, "stage": kind, "method": method, "key": f"{n:08x}" * 8, "config": {}, "inputs": inputs,
              "seconds": 0.7 + n + (lines[-1]["seconds"] if lines else 0), "versions": {"mixwell": "0.1.0"},
              "result": result, "evaluation": evaluated}, lines)
            for n, (id, kind, method, inputs, result, evaluated, lines) in enumerate(made)]


def write(folder: Path, entries, **record):
    """Write `run.json` and the stage folders; returns the run folder."""
    for entry, lines in entries:
        place = folder / "stages" / f"{entry['id']}-{entry.get('key', '')[:8]}"
        place.mkdir(parents=True)
        (place / "stage.json").write_text(json.dumps(entry))
        if lines:
            (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    whole = {"name": "default",
             "recipe": {"name": "default", "seed": 0, "stages": [{"id": "dense", "train": {"tokens": 1_200_000}}]},
             "machine": {"cpu": "AMD EPYC 9R14", "cores": 2, "threads": 2, "memory_bytes": 8_210_000_000,
                         "torch": "2.13.0"},
             "versions": {"mixwell": "0.1.0"}, "seeds": [0], "started": "2026-03-01T10:20:30", "seconds": 243.4,
             "stages": [e["id"] for e, _ in entries]}
    (folder / "run.json").write_text(json.dumps(whole | record))
    return folder
