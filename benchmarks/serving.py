"""A server under 1, 4, 16 and 64 clients, beside llama.cpp's server (xllamacpp), `transformers serve` and `generate`.

    python benchmarks/serving.py MODEL.gguf --threads 1 --xllamacpp /path/to/venv/bin/python --save
    python benchmarks/serving.py MODEL.gguf --threads 1 --servers transformers --transformers FOLDER --clients 1 --save

What is saved joins what was saved of the same file and length before, so that it may be measured in pieces. Every
server is a process of its own that reads the same file (transformers: a folder with the same weights); one runs at a
time, the clients are threads of this process. A client asks for a continuation of a text of its own, as a stream, again
and again. Tokens a second are of all clients together; a file of type f32 makes the comparison one of equal bits, since
mixwell computes in float32 or in bfloat16 as it finds quicker.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from _parts import RESULTS, kind, parser, save, start

from mixwell.run.paths import load

WORDS = "The weights of a mixture are worked out for each item anew, which is why a router stands before the experts"
PROMPT = " ".join([WORDS] * 4)

PEER = """
import sys, time, xllamacpp
path, port, threads, rows, context = sys.argv[1], *map(int, sys.argv[2:])
params = xllamacpp.CommonParams()
params.model.path, params.port, params.n_parallel, params.n_ctx = path, port, rows, context * rows
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
while True:
    time.sleep(60)
"""


@dataclass
class Seen:
    """What the clients of one round saw, in seconds."""

    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    tokens: int = 0
    extra: dict[str, Any] = field(default_factory=dict)  # fields of the request that only this server knows


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def running(command: list[str], port: int, threads: int) -> Iterator[str]:
    """The address of a server that a command starts."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 120
        while not answers(address):
            if process.poll() is not None or time.monotonic() > until:
                sys.exit(f"{' '.join(command[:4])} ... does not answer")
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait(60)


def answers(address: str) -> bool:
    """Whether a server is ready there."""
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=5) as response:
            return response.status == 200
    except OSError:
        return False


def ask(address: str, client: int, count: int, seen: Seen) -> None:
    """One continuation of `count` tokens, and when each came. A prompt begins with what no other shares."""
    body = {"prompt": f"{client} {time.monotonic_ns()}: {PROMPT}", "max_tokens": count, "temperature": 0,
            "stream": True, "stream_options": {"include_usage": True}, **seen.extra}
    request = urllib.request.Request(f"{address}/v1/completions", json.dumps(body).encode(),
                                     {"content-type": "application/json"})
    began = last = time.perf_counter()
    first = True
    with urllib.request.urlopen(request, timeout=300) as response:
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            seen.tokens += (event.get("usage") or {}).get("completion_tokens", 0)
            if event["choices"] and event["choices"][0].get("text"):
                now = time.perf_counter()
                (seen.first if first else seen.between).append(now - (began if first else last))
                last, first = now, False


def under(address: str, clients: int, seconds: float, count: int, extra: dict[str, Any]) -> dict[str, float]:
    """Tokens a second and delays under so many clients, who start no more after `seconds`."""
    found = [Seen(extra=extra) for _ in range(clients)]
    until = time.perf_counter() + seconds

    def client(number: int) -> None:
        while time.perf_counter() < until:
            ask(address, number, count, found[number])

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spent = time.perf_counter() - began
    first = [value for seen in found for value in seen.first]
    between = sorted(value for seen in found for value in seen.between)
    return {"tokens_per_s": sum(seen.tokens for seen in found) / spent, "first_median_s": statistics.median(first),
            "between_median_s": statistics.median(between), "between_p99_s": between[int(0.99 * (len(between) - 1))]}


def alone(path: Path, seconds: float, count: int) -> float:
    """Tokens a second of `generate` with one row, reading the prompt included."""
    model = load(path)
    assert model.tokenizer is not None
    ids = torch.tensor([model.tokenizer.prompt(PROMPT)])
    model.generate(ids, 4, eos_token_id=(), do_sample=False)
    began = time.perf_counter()
    written = 0
    while time.perf_counter() - began < seconds:
        model.generate(ids, count, eos_token_id=(), do_sample=False)
        written += count
    return written / (time.perf_counter() - began)


OURS, LLAMA, TRANSFORMERS = "mixwell", "llama.cpp", "transformers serve"
SERVERS = {"mixwell": OURS, "llama.cpp": LLAMA, "transformers": TRANSFORMERS}


def commands(given: argparse.Namespace, port: int) -> dict[str, tuple[list[str], dict[str, Any]]]:
    """How each server that is asked for is started, and the fields that only it knows."""
    rows = str(max(given.clients))
    own = [sys.executable, "-m", "mixwell.cli.main", "serve", given.model, "--port", str(port), "--rows", rows,
           "--context", "512"]
    found: dict[str, tuple[list[str], dict[str, Any]]] = {OURS: (own, {"ignore_eos": True})}
    if given.xllamacpp:
        peer = [given.xllamacpp, "-c", PEER, given.model, str(port), str(given.threads), rows, "512"]
        found[LLAMA] = peer, {"ignore_eos": True}
    if given.transformers:
        other = [str(Path(sys.executable).with_name("transformers")), "serve", given.transformers, "--port", str(port),
                 "--host", "127.0.0.1", "--device", "cpu"]
        found[TRANSFORMERS] = other, {"model": given.transformers}  # it refuses what it does not know
    wanted = [SERVERS[name] for name in given.servers]
    return {name: command for name, command in found.items() if name in wanted}


def before(given: argparse.Namespace) -> dict[str, Any]:
    """What was saved of the same file and length of continuations."""
    path = RESULTS / f"serving-{kind()}.json"
    if not given.save or not path.exists():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    same = (found.get("model"), found["tokens"]) == (Path(given.model).name, given.tokens)
    return found if same else {}


def main() -> None:
    """Measure, print and save."""
    options = parser(__doc__ or "")
    options.add_argument("model", help="a GGUF file that both programs read")
    options.add_argument("--xllamacpp", help="Python of an environment that has xllamacpp")
    options.add_argument("--transformers", help="folder of the same model for `transformers serve`")
    options.add_argument("--servers", nargs="+", choices=SERVERS, default=list(SERVERS), help="those that are measured")
    options.add_argument("--clients", nargs="+", type=int, default=[1, 4, 16, 64])
    options.add_argument("--tokens", type=int, default=32, help="of each continuation")
    given = options.parse_args()
    start(given)
    found = before(given)
    figures: dict[str, Any] = {"model": Path(given.model).name, "tokens": given.tokens}
    figures["generate_tokens_per_s"] = found.get("generate_tokens_per_s")
    if "mixwell" in given.servers:
        figures["generate_tokens_per_s"] = alone(Path(given.model), given.seconds, given.tokens)
        print(f"generate, one row: {figures['generate_tokens_per_s']:.1f} tokens/s", flush=True)
    port = free_port()
    for name in SERVERS.values():
        figures[name] = found.get(name, {})
    for name, (command, extra) in commands(given, port).items():
        with running(command, port, given.threads) as address:
            ask(address, 0, 4, Seen(extra=extra))  # the first of all is slower
            for clients in given.clients:
                row = figures[name][str(clients)] = under(address, clients, given.seconds, given.tokens, extra)
                print(f"{name:<10} {clients:>3} clients: {row['tokens_per_s']:7.1f} tokens/s, first after "
                      f"{row['first_median_s']:.2f} s, then {1e3 * row['between_median_s']:.0f} ms "
                      f"(99 of 100 within {1e3 * row['between_p99_s']:.0f} ms)", flush=True)
    places = {given.xllamacpp: "VENV/bin/python", given.model: Path(given.model).name, given.transformers: "FOLDER"}
    sys.argv = [places.get(word, word) for word in sys.argv]  # what another machine would be told
    figures["pieces"] = [*found.get("pieces", []), " ".join(["python", "benchmarks/serving.py", *sys.argv[1:]])]
    save("serving", given, figures)


if __name__ == "__main__":
    main()
