"""One piece of a claim's work, done in a process of its own with one thread."""

from __future__ import annotations

import functools
import importlib
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixwell.claims.claim import Claim, Untestable, flat
from mixwell.claims.record import Task
from mixwell.core.errors import MixwellError

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True)
class Done:
    """What came of a task: numbers by series, or a score, or why there are none."""

    seconds: float
    values: dict[str, float] = field(default_factory=dict)
    score: float = 0.0
    untestable: str = ""
    broken: str = ""


def load(name: str) -> Claim:
    """The claim that a file declares."""
    module = importlib.import_module(f"mixwell.claims.{name}")
    claim = getattr(module, "CLAIM", None)
    if claim is None:
        raise MixwellError(f"claims/{name.replace('.', '/')}.py has no CLAIM.")
    if not claim.sides and not hasattr(module, "trial"):
        raise MixwellError(f"claims/{name.replace('.', '/')}.py has neither sides nor a trial(bench, seed).")
    return claim


def do(task: Task, folder: str) -> Done:
    """Do a task on the bench of this folder; an error comes back as words, for not every error can be sent."""
    started = time.perf_counter()
    try:
        found = _do(task, folder)
    except Untestable as reason:
        found = {"untestable": str(reason)}
    except Exception as error:  # a broken claim must not hide the others' outcomes
        words = " ".join(str(error).split())
        found = {"broken": f"{type(error).__name__}: {words}"}
    took = time.perf_counter() - started
    return Done(round(took, 2), **found)


def _do(task: Task, folder: str) -> dict[str, Any]:
    module = importlib.import_module(f"mixwell.claims.{task.claim}")
    bench = _bench(folder)
    claim = load(task.claim)
    if task.side:
        measured = claim.sides[task.side](bench, task.seed, task.setting)
        return {"score": _finite({task.side: claim.score(measured)})[task.side]}
    if not claim.sides:
        return {"values": _finite(flat(module.trial(bench, task.seed)))}
    numbers = {}
    for name, side in claim.sides.items():
        numbers[name] = side(bench, task.seed, task.chosen.get(name, {}))
    return {"values": _finite(flat(numbers))}


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    for name, value in values.items():
        if not math.isfinite(value):
            raise ValueError(f"{name} is {value}; expected a finite number")
    return dict(values)


@functools.cache
def _bench(folder: str) -> Any:
    from mixwell.claims.bench import Bench

    return Bench(Path(folder))
