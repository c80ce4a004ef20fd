"""Many clients against one server for minutes, some of whom misbehave: it must stay up, answer all others whole, and
hold its memory.

    python tools/abuse_server.py --minutes 5 --clients 64 --save load.json

Clients read streams and whole answers, texts of a given form and vectors, leave in the middle, or send malformed JSON,
invalid UTF-8, wrong keys, bodies that are too large, several requests at once on one connection, and half of one. The
model is a tiny one that is made here, unless a folder is named. Ends with 1 where a rule was broken.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mixwell.core.files import write_json
from mixwell.core.machine import describe, threads
from mixwell.core.rng import generator
from mixwell.lm.config import ModelConfig
from mixwell.lm.generation import for_tokenizer
from mixwell.lm.model import LanguageModel
from mixwell.lm.template import CHATML
from mixwell.lm.tokenizer import Tokenizer
from mixwell.serve.resident import resident_bytes

BODY = {"prompt": "def parse(self, text):", "max_tokens": 12, "ignore_eos": True}
COMPLETE, CHAT, EMBED = "/v1/completions", "/v1/chat/completions", "/v1/embeddings"
KEY = "the key of the abused"
PATIENCE_S = 300  # after which a missing answer is a fault
CACHE_MIB = 8  # soon full, so that what memory does afterwards is seen
SCHEMA = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False}


def tiny(folder: Path) -> Path:
    """A mixture of two layers that can be talked to."""
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    text = Path(__file__).read_text(encoding="utf-8")
    tokenizer = Tokenizer.train([text], 512, special).with_chat_template(CHATML)
    experts = {"method": "experts.layers.moe", "num_experts": 4, "hidden_dim": 32,
               "router": {"method": "top_k", "k": 2}}
    config = ModelConfig(vocab_size=tokenizer.vocab_size, dim=32, num_layers=2, num_heads=2, max_positions=512,
                         sequence_mixer={"method": "sequence.attention"}, channel_mixer=experts)
    model = LanguageModel(config, generator(0))
    model.tokenizer, model.generation = tokenizer, for_tokenizer(tokenizer)
    return Path(model.save(folder / "tiny"))


class Client:
    """One client's raw connections."""

    def __init__(self, port: int, seed: int, told: Counter[str], faults: list[str]) -> None:
        self.port, self.draws, self.told, self.faults = port, random.Random(seed), told, faults

    def connection(self) -> socket.socket:
        """A new connection, with a time after which a missing answer is a fault."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)

    def post(self, body: bytes, length: int | None = None, close: bool = True, path: str = COMPLETE,
             key: str | None = KEY) -> bytes:
        """A request's bytes."""
        size = len(body) if length is None else length
        lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json",
                 f"Content-Length: {size}"]
        if key is not None:
            lines.append(f"Authorization: Bearer {key}")
        if close:
            lines.append("Connection: close")
        return "\r\n".join([*lines, "", ""]).encode() + body

    def read(self, data: bytes) -> bytes:
        """Send, and read until the server closes."""
        with self.connection() as line:
            line.sendall(data)
            parts = []
            while part := line.recv(65536):
                parts.append(part)
        return b"".join(parts)

    def expect(self, what: str, answer: bytes, *statuses: int) -> int:
        """The answer's status, which must be one of those; a full queue may say so always."""
        head = answer.split(b"\r\n", 1)[0].split()
        status = int(head[1]) if len(head) > 1 and head[1].isdigit() else 0
        if status not in (*statuses, 429, 503):
            self.faults.append(f"{what}: {answer[:200]!r}")
        return status

    def prompt(self) -> str:
        """A text unlike others'."""
        return f"{self.draws.random()} {BODY['prompt']}"

    def body(self, **options: object) -> bytes:
        """A valid request's body."""
        return json.dumps(BODY | {"prompt": self.prompt()} | options).encode()

    def stream(self) -> None:
        """A stream that is read to its end is whole."""
        answer = self.read(self.post(self.body(stream=True, stream_options={"include_usage": True})))
        if self.expect("stream", answer, 200) != 200:
            return
        usage = b'"completion_tokens":12' in answer
        if not usage or b"data: [DONE]" not in answer:
            self.faults.append(f"a stream is not whole: {answer[-200:]!r}")

    def whole(self) -> None:
        """An answer at once."""
        answer = self.read(self.post(self.body()))
        if self.expect("whole", answer, 200) == 200 and b'"completion_tokens":12' not in answer:
            self.faults.append(f"an answer is not whole: {answer[-200:]!r}")

    def formed(self) -> None:
        """An answer in a conversation that has a given form, as a stream."""
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
        body = {"messages": [{"role": "user", "content": self.prompt()}], "max_tokens": 40, "stream": True,
                "response_format": form, "label": self.draws.choice("abc"), "return_experts": True}
        answer = self.read(self.post(json.dumps(body).encode(), path=CHAT))
        if self.expect("formed", answer, 200) == 200 and b"data: [DONE]" not in answer:
            self.faults.append(f"a formed answer is not whole: {answer[-200:]!r}")

    def several(self) -> None:
        """Several answers with log-probabilities."""
        answer = self.read(self.post(self.body(n=3, logprobs=2, temperature=1.5)))
        if self.expect("several", answer, 200) == 200 and answer.count(b'"finish_reason":"length"') != 3:
            self.faults.append(f"answers are missing: {answer[-200:]!r}")

    def vectors(self) -> None:
        """Vectors of two texts."""
        body = json.dumps({"input": [self.prompt(), self.prompt()]}).encode()
        answer = self.read(self.post(body, path=EMBED))
        if self.expect("vectors", answer, 200) == 200 and answer.count(b'"embedding":') != 2:
            self.faults.append(f"vectors are missing: {answer[-200:]!r}")

    def stranger(self) -> None:
        """Without the key, or with a part of it, nobody is answered."""
        key = self.draws.choice((None, "", KEY[:-1], f"{KEY}x", KEY.upper()))
        answer = self.read(self.post(self.body(), key=key))
        if b" 401 " not in answer.split(b"\r\n", 1)[0] or b"choices" in answer:
            self.faults.append(f"the key {key!r} was answered: {answer[:200]!r}")

    def leave(self) -> None:
        """Go in the middle of a stream."""
        with self.connection() as line:
            line.sendall(self.post(self.body(stream=True, max_tokens=200)))
            line.recv(self.draws.choice((1, 200, 2000)))

    def malformed(self) -> None:
        """What is no JSON, or no request."""
        wrong = self.draws.choice((b'{"prompt": ', b"[]", b"[" * 50_000, b'{"prompt": 3}', b'{"prompt": ""}', b"",
                                   b'{"prompt": "a", "max_tokens": -1}', b'{"prompt": "a", "temperature": NaN}'))
        self.expect(f"malformed {wrong[:20]!r}", self.read(self.post(wrong)), 400, 422)

    def not_utf8(self) -> None:
        """Bytes that are no text, or half a character."""
        wrong = self.draws.choice((b'{"prompt": "\xff\xfe"}', b'{"prompt": "\\ud800"}', b"\x00\x01\xff"))
        self.expect(f"bytes {wrong!r}", self.read(self.post(wrong)), 400, 422)

    def oversized(self) -> None:
        """A body or a prompt that is too large."""
        self.expect("too large", self.read(self.post(b"", length=1 << 40)), 413)
        self.expect("too long", self.read(self.post(self.body(prompt="word " * 100_000))), 400)

    def pipelined(self) -> None:
        """Several requests at once on one connection are all answered."""
        bodies = [self.post(self.body(), close=False) for _ in range(2)] + [self.post(self.body())]
        answer = self.read(b"".join(bodies))
        if answer.count(b"HTTP/1.1 ") != 3:
            self.faults.append(f"{answer.count(b'HTTP/1.1 ')} of 3 pipelined requests were answered")

    def half(self) -> None:
        """A request that never arrives whole."""
        with self.connection() as line:
            line.sendall(self.post(b'{"prompt"', length=1000)[: self.draws.randint(1, 150)])
            time.sleep(self.draws.random())

    def run(self, until: float) -> None:
        """Do one thing after the other."""
        ways: list[Callable[[], None]] = [self.stream, self.stream, self.whole, self.formed, self.several,
                                          self.vectors, self.stranger, self.leave, self.malformed, self.not_utf8,
                                          self.oversized, self.pipelined, self.half]
        while time.monotonic() < until:
            way = self.draws.choice(ways)
            try:
                way()
                self.told[way.__name__] += 1
            except ConnectionResetError:
                self.told[f"{way.__name__}, reset"] += 1  # what was sent beyond a refusal
            except OSError as error:
                self.faults.append(f"{way.__name__}: {error}")


def main() -> None:
    """Start a server, let the clients at it, and judge."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("model", nargs="?", help="a folder; default: a tiny one that is made here")
    options.add_argument("--minutes", type=float, default=2.0)
    options.add_argument("--clients", type=int, default=64)
    options.add_argument("--growth", type=float, default=0.02,
                         help="share by which memory may grow from the middle third to the last")
    options.add_argument("--save", type=Path, help="file for the figures")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = given.model or str(tiny(Path(folder)))
        found = abused(model, given.clients, given.minutes)
    faults = found.pop("faults")
    figures = found | judged(found.pop("held"))
    print(json.dumps(figures, indent=1))
    if figures["growth"] > given.growth:
        faults.append(f"memory grew by {figures['growth']:.1%} from the middle third to the last")
    for fault in faults[:20]:
        print(f"fault: {fault}")
    if given.save and not faults:
        words = [Path(word).name if word == str(given.save) else word for word in sys.argv[1:]]
        command = " ".join(["python", "tools/abuse_server.py", *words])
        write_json(given.save, {"command": command, "machine": describe(threads()), **figures})
    sys.exit(1 if faults else 0)


def abused(model: str, count: int, minutes: float) -> dict[str, Any]:
    """What `count` clients did to a server, its memory in bytes every two seconds, and what was wrong."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mixwell.cli.main", "serve", model, "--port", str(port), "--cache-mib",
               str(CACHE_MIB)]
    environment = {**os.environ, "MIXWELL_API_KEY": KEY}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert server.stdout is not None
    greeting = server.stdout.readline().strip()
    if not greeting:
        sys.exit(f"the server did not start; it ended with {server.wait(60)}")
    print(greeting, flush=True)
    told: Counter[str] = Counter()
    faults: list[str] = []
    until = time.monotonic() + 60 * minutes
    clients = [Client(port, seed, told, faults) for seed in range(count)]
    running = [threading.Thread(target=client.run, args=(until,), daemon=True) for client in clients]
    for thread in running:
        thread.start()
    held = watched(server, until, min(2.0, minutes * 2))
    for thread in running:
        thread.join(PATIENCE_S)
    if server.poll() is not None:
        faults.append(f"the server ended with {server.returncode}")
    else:
        faults += last_words(port)
        server.terminate()
        if server.wait(60) not in (0, 128 + signal.SIGTERM, -signal.SIGTERM):
            faults.append(f"the server ended with {server.returncode} after SIGTERM")
    return {"clients": count, "minutes": minutes, "requests": sum(told.values()), "by_kind": dict(sorted(told.items())),
            "held": held, "faults": faults}


def watched(server: subprocess.Popen[str], until: float, pause_s: float) -> list[int]:
    """The server's memory every so many seconds, in bytes."""
    held = [resident_bytes(server.pid) or 0]
    while time.monotonic() < until and server.poll() is None:
        time.sleep(pause_s)
        held.append(resident_bytes(server.pid) or 0)
    return held


def judged(held: list[int]) -> dict[str, Any]:
    """How memory went: medians of thirds in MiB, and growth from the middle third to the last as a share."""
    third = max(1, len(held) // 3)
    parts = held[:third], held[third:-third] or held, held[-third:]
    early, middle, late = (statistics.median(part) for part in parts)
    mib = [round(each / 2**20, 1) for each in (held[0], early, middle, late)]
    names = ("start_mib", "first_third_mib", "middle_third_mib", "last_third_mib")
    return {**dict(zip(names, mib)), "growth": late / middle - 1}


def last_words(port: int) -> list[str]:
    """What is wrong once all is quiet: rows or blocks that are held still."""
    until = time.monotonic() + 45
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/experts", headers={"authorization": f"Bearer {KEY}"})
    engine = {"running": 1}
    while time.monotonic() < until:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
            engine = json.load(response)["engine"]
        if not any(engine[name] for name in ("running", "waiting", "blocks_used")):
            return []
        time.sleep(0.5)
    return [f"after all have left: {engine}"]


if __name__ == "__main__":
    main()
