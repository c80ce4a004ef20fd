"""What a training run says of itself: averages over a log window, one JSON line each."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixwell.core.errors import MixwellError, disk_errors
from mixwell.core.files import write_text


class Window:
    """Sums over the steps since the last line; plain data, so that a resumed run averages what the killed one saw."""

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        state = state or {}
        self.steps: int = state.get("steps", 0)
        self.tokens: int = state.get("tokens", 0)
        self.seconds: float = state.get("seconds", 0.0)
        self._sums: dict[str, float] = dict(state.get("sums", {}))
        self._load: list[list[int] | None] = list(state.get("load", []))

    def add(self, values: Mapping[str, float], load: list[list[int] | None], tokens: int, seconds: float) -> None:
        """Add one step: its values by name, and the slots that each expert of each layer got (None: no experts)."""
        self.steps, self.tokens, self.seconds = self.steps + 1, self.tokens + tokens, self.seconds + seconds
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        old = self._load or [None if layer is None else [0] * len(layer) for layer in load]
        self._load = [None if a is None or b is None else [x + y for x, y in zip(a, b)] for a, b in zip(old, load)]

    def state_dict(self) -> dict[str, Any]:
        """What the constructor takes."""
        return {"steps": self.steps, "tokens": self.tokens, "seconds": self.seconds, "sums": self._sums,
                "load": self._load}

    def line(self) -> dict[str, Any]:
        """Means by name, `losses.` gathered below one key, and the load as shares with its entropy (1 = even)."""
        means = {name: total / self.steps for name, total in self._sums.items()}
        shares = [None if layer is None else [n / max(sum(layer), 1) for n in layer] for layer in self._load]
        return {
            **{name: value for name, value in means.items() if not name.startswith("losses.")},
            "losses": {name.removeprefix("losses."): v for name, v in means.items() if name.startswith("losses.")},
            "tokens_per_s": self.tokens / self.seconds if self.seconds else 0.0,
            "load": shares,
            "load_entropy": [None if layer is None else evenness(layer) for layer in shares],
        }


def evenness(shares: list[float]) -> float:
    """Entropy of `shares` over that of an even spread: 1 where every expert gets the same, 0 where one gets all."""
    entropy = -sum(p * math.log(p) for p in shares if p > 0)
    return entropy / math.log(len(shares)) if len(shares) > 1 else 1.0


class MetricsFile:
    """A file of JSON lines, each with its `step`; lines of steps after `step` are cut off on opening."""

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        kept = [line for line in read_lines(path) if line["step"] <= step]
        write_text(path, "".join(_line(line) for line in kept))
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - stays open for the run

    def append(self, values: Mapping[str, Any]) -> None:
        """Add a line, at once visible to readers."""
        with disk_errors(self._path):
            self._file.write(_line(values))
            self._file.flush()

    def sync(self) -> None:
        """Make sure that the lines so far outlive a power cut."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The metrics of a run, oldest first. A last line that a kill cut short is left out; other damage raises."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    whole = text[: text.rfind("\n") + 1].splitlines()
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
