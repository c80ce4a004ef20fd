"""Many clients against one server for minutes, some of whom misbehave: it must stay up, answer all others whole, and
hold its memory.

    python tools/abuse_server.py path/to/model --minutes 2 --clients 64

Clients read streams and whole answers, leave in the middle, or send malformed JSON, invalid UTF-8, bodies that are too
large, several requests at once on one connection, and half of one. Ends with 1 where a rule was broken.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable

from mixwell.core.machine import resident_bytes

BODY = {"prompt": "def parse(self, text):", "max_tokens": 12, "ignore_eos": True}


class Client:
    """One client's raw connections."""

    def __init__(self, port: int, seed: int, told: Counter[str], faults: list[str]) -> None:
        self.port, self.draws, self.told, self.faults = port, random.Random(seed), told, faults

    def connection(self) -> socket.socket:
        """A new connection, with a time after which a missing answer is a fault."""
        found = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        found.settimeout(60)
        return found

    def post(self, body: bytes, length: int | None = None, close: bool = True) -> bytes:
        """A request's bytes."""
        size = len(body) if length is None else length
        lines = ["POST /v1/completions HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json",
                 f"Content-Length: {size}", *(["Connection: close"] if close else []), "", ""]
        return "\r\n".join(lines).encode() + body

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

    def body(self, **options: object) -> bytes:
        """A valid request's body, its prompt unlike others'."""
        return json.dumps(BODY | {"prompt": f"{self.draws.random()} {BODY['prompt']}"} | options).encode()

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
        ways: list[Callable[[], None]] = [self.stream, self.stream, self.whole, self.leave, self.malformed,
                                          self.not_utf8, self.oversized, self.pipelined, self.half]
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
    options.add_argument("model")
    options.add_argument("--minutes", type=float, default=2.0)
    options.add_argument("--clients", type=int, default=64)
    options.add_argument("--growth", type=float, default=0.1, help="of memory after the first third, as a share")
    given = options.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "mixwell.cli.main", "serve", given.model, "--port", str(port)],
                              stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    greeting = server.stdout.readline().strip()
    if not greeting:
        sys.exit(f"the server did not start; it ended with {server.wait(60)}")
    print(greeting, flush=True)
    told: Counter[str] = Counter()
    faults: list[str] = []
    began = time.monotonic()
    until = began + 60 * given.minutes
    clients = [Client(port, seed, told, faults) for seed in range(given.clients)]
    threads = [threading.Thread(target=client.run, args=(until,), daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    held: list[int] = []
    while time.monotonic() < until and server.poll() is None:
        time.sleep(min(2.0, given.minutes * 2))
        held.append(resident_bytes(server.pid) or 0)
    for thread in threads:
        thread.join(90)
    if server.poll() is not None:
        faults.append(f"the server ended with {server.returncode}")
    else:
        faults += last_words(port)
        server.terminate()
        if server.wait(60) not in (0, 128 + signal.SIGTERM, -signal.SIGTERM):
            faults.append(f"the server ended with {server.returncode} after SIGTERM")
    third = max(1, len(held) // 3)
    early, late = max(held[:third]), max(held[-third:])
    print(f"{sum(told.values())} requests: {dict(told)}")
    print(f"memory: {held[0] >> 20} MiB at first, {early >> 20} in the first third at most, {late >> 20} in the last")
    if late > early * (1 + given.growth):
        faults.append(f"memory grew from {early} to {late} bytes")
    for fault in faults[:20]:
        print(f"fault: {fault}")
    sys.exit(1 if faults else 0)


def last_words(port: int) -> list[str]:
    """What is wrong once all is quiet: rows or blocks that are held still."""
    until = time.monotonic() + 45
    engine = {"running": 1}
    while time.monotonic() < until:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/experts", timeout=30) as response:
            engine = json.load(response)["engine"]
        if not any(engine[name] for name in ("running", "waiting", "blocks_used")):
            return []
        time.sleep(0.5)
    return [f"after all have left: {engine}"]


if __name__ == "__main__":
    main()
