"""What a training run says of itself: averages over a log window, one JSON line each."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixwell.core.errors import MixwellError, disk_errors
from mixwell.core.files import digest, write_bytes

LOSSES = "losses."  # what the names of auxiliary losses begin with


class Window:
    """Sums over the steps since the last line; plain data, so that a resumed run averages what the killed one saw."""

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        state = state or {"steps": 0, "tokens": 0, "seconds": 0.0, "sums": {}, "load": []}
        self.steps: int = state["steps"]
        self.tokens: int = state["tokens"]
        self.seconds: float = state["seconds"]
        self._sums: dict[str, float] = dict(state["sums"])
        self._load: list[list[int] | None] = list(state["load"])

    def add(self, values: Mapping[str, float], load: list[list[int] | None], tokens: int, seconds: float) -> None:
        """Add one step: its values by name, and the slots that each expert of each layer got (None: no experts)."""
        self.steps += 1
        self.tokens += tokens
        self.seconds += seconds
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        pairs = zip(self._load, load)
        self._load = [_added(old, new) for old, new in pairs] if self._load else list(load)

    def state_dict(self) -> dict[str, Any]:
        """What the constructor takes."""
        return {"steps": self.steps, "tokens": self.tokens, "seconds": self.seconds, "sums": self._sums,
                "load": self._load}

    def line(self) -> dict[str, Any]:
        """Means by name, `losses.` gathered below one key, and the load as shares with its entropy (1 = even)."""
        means: dict[str, Any] = {}
        losses: dict[str, float] = {}
        for name, total in self._sums.items():
            whole = name.removeprefix(LOSSES)
            into = means if whole == name else losses
            into[whole] = total / self.steps
        rate = self.tokens / self.seconds if self.seconds else 0.0
        shares = [None if slots is None else _shares(slots) for slots in self._load]
        entropies = [None if layer is None else evenness(layer) for layer in shares]
        return means | {"losses": losses, "tokens_per_s": rate, "load": shares, "load_entropy": entropies}


def _added(first: list[int] | None, second: list[int] | None) -> list[int] | None:
    if first is None or second is None:
        return None
    return [a + b for a, b in zip(first, second)]


def _shares(slots: list[int]) -> list[float]:
    total = max(sum(slots), 1)
    return [count / total for count in slots]


def evenness(shares: list[float]) -> float:
    """Entropy of `shares` over that of an even spread: 1 where every expert gets the same, 0 where one gets all."""
    if len(shares) < 2:
        return 1.0
    present = [share for share in shares if share > 0]
    entropy = -sum(share * math.log(share) for share in present)
    return entropy / math.log(len(shares))


class MetricsFile:
    """A file of JSON lines, each with its `step`; opening it cuts off what came after the lines `kept` (`sync`)."""

    def __init__(self, path: Path, kept: Mapping[str, Any] | None = None) -> None:
        self._path = path
        write_bytes(path, b"" if kept is None else kept_lines(path, kept))
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - stays open for the run

    def append(self, values: Mapping[str, Any]) -> None:
        """Add a line, at once visible to readers."""
        with disk_errors(self._path):
            self._file.write(_line(values))
            self._file.flush()

    def sync(self) -> dict[str, Any]:
        """Make sure that the lines so far outlive a power cut; returns by what they are known."""
        os.fsync(self._file.fileno())
        lines = self._path.read_bytes()
        return {"bytes": len(lines), "sha256": digest(lines)}

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def kept_lines(path: Path, kept: Mapping[str, Any]) -> bytes:
    """The lines that `sync` told of; `MixwellError` where they are not there as they were written."""
    written = path.read_bytes() if path.is_file() else b""
    size = kept["bytes"]
    lines = written[:size]
    if digest(lines) != kept["sha256"]:
        raise MixwellError(f"{path} is not as it was written: the digest of its first {size} bytes is another.")
    return lines


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The metrics of a run, oldest first. A last line that a kill cut short is left out; other damage raises."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    *whole, _ = text.split("\n")
    return [_read_line(line, f"{path}, line {number}") for number, line in enumerate(whole, start=1)]


def _read_line(text: str, where: str) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except ValueError as error:
        raise MixwellError(f"{where}, is not JSON ({error}); remove that line.") from error
    if not isinstance(line, dict) or "step" not in line:
        raise MixwellError(f"{where}, is no line of metrics (it has no step); remove that line.")
    return line


def _line(values: Mapping[str, Any]) -> str:
    return json.dumps(values, allow_nan=False) + "\n"
