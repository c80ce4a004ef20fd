"""A search before a comparison: all variants are trained in part, and only those that lead are compared.

A training stops at a share of its budget, is judged by held-out text, and goes on from there where it leads, so that
nothing is trained twice: what leads ends with the bits of a training that never stopped. Losses are kept in
`search.json`; a search that was killed asks for none twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mixwell.core import registry, units
from mixwell.core.errors import MixwellError
from mixwell.core.files import read_json, write_json
from mixwell.mixing import check_least
from mixwell.report.findings import Row
from mixwell.report.words import listed
from mixwell.scaling.trials import Trials

FILE = "search.json"
FAMILY = "scaling.search"
ETA = 3  # of Hyperband: one in so many goes on
Loss = Callable[[int, float], Mapping[str, Any]]  # entrant, share of the budget -> tokens and mean bits per byte
Losses = dict[str, dict[str, Any]]  # what was asked of whom, and what came


@dataclass(frozen=True, kw_only=True)
class Search:
    """How leaders are found; `ValueError` for a value out of range."""

    method: str = "one_rung"  # of scaling.search: one_rung, deepening_hyperband or rising_bandits
    keep: int = 3  # variants that are compared, the baseline beside them
    parts: int = 9  # of the budget, at whose ends a training may stop; Hyperband's follow from the number of variants

    def __post_init__(self) -> None:
        registry.find(self.method, FAMILY)
        if self.method not in CONFIGS:
            raise ValueError(f"method is {self.method!r}; expected one of {', '.join(CONFIGS)}, which need no features")
        check_least(self, keep=1, parts=2)


def _one_rung(module: Any, search: Search, count: int) -> tuple[Any, int]:
    leaders = min(search.keep, count)
    return module.Config(candidates=count, keep=leaders), search.parts


def _rising_bandits(module: Any, search: Search, count: int) -> tuple[Any, int]:
    """Half of what it would take to train all to the end."""
    pulls = math.ceil(count * search.parts / 2)
    history = max(1, search.parts // 4)
    return module.Config(pulls=pulls, history=history), search.parts


def _hyperband(module: Any, search: Search, count: int) -> tuple[Any, int]:
    """The deepest one that the variants fill."""
    depth = 0
    while sum(module.starts(depth + 1, ETA)) <= count:
        depth += 1
    if not depth:
        least = sum(module.starts(1, ETA))
        raise MixwellError(f"Hyperband needs {least} variants and has {count}; take one_rung, or vary more.")
    return module.Config(eta=ETA, first_depth=depth, last_depth=depth), ETA**depth


CONFIGS: Mapping[str, Callable[[Any, Search, int], tuple[Any, int]]] = {
    "one_rung": _one_rung, "rising_bandits": _rising_bandits, "deepening_hyperband": _hyperband}


def search(asked: Search, entrants: Mapping[str, str], loss: Loss, file: Path) -> dict[str, Any]:
    """What a search came to, as plain data.

    entrants: variants by name, with a key of what is trained and how it is judged. loss: trains an entrant on to a
    share of its budget. file: what was asked already.
    """
    names, keys = list(entrants), list(entrants.values())
    module = registry.find(asked.method, FAMILY).module()
    config, parts = CONFIGS[asked.method](module, asked, len(names))
    known = _known(file)

    def evaluate(entrant: int, part: int) -> float:
        key = f"{keys[entrant]} {part}/{parts}"
        if key not in known:
            known[key] = _tried(loss, entrant, part / parts)
            write_json(file, known)
        mean = known[key]["mean"]
        return math.inf if mean is None else mean

    trials = Trials(evaluate, len(names), parts)
    find = registry.find(asked.method, FAMILY).load()
    found = find(trials, config, np.random.default_rng(0))
    rows = []
    for name, key, part in zip(names, keys, trials.reached_N.tolist()):
        last = known.get(f"{key} {part}/{parts}", {"tokens": 0, "mean": None})
        rows.append({"name": name, "share": part / parts, "tokens": last["tokens"], "mean": last["mean"]})
    return {"method": asked.method, "parts": parts, "spent": found.spent, "variants": rows}


def _known(file: Path) -> Losses:
    """What was asked before; what could not be trained then is asked anew, as its hindrance may be gone."""
    if not file.is_file():
        return {}
    before: Losses = read_json(file)
    return {key: one for key, one in before.items() if "error" not in one}


def _tried(loss: Loss, entrant: int, share: float) -> dict[str, Any]:
    """Tokens and loss of a part; an entrant that cannot be trained has none."""
    try:
        return dict(loss(entrant, share))
    except MixwellError as error:
        return {"tokens": 0, "mean": None, "error": str(error)}


def kept(found: Mapping[str, Any], keep: int, baseline: str) -> list[str]:
    """The variants that are compared: those trained furthest, the lower loss first among them, and the baseline."""
    tried = [row for row in found["variants"] if row["mean"] is not None]
    order = sorted(tried, key=_rank)
    leaders = [row["name"] for row in order[:keep]]
    return leaders if baseline in leaders else [*leaders, baseline]


def statement(found: Mapping[str, Any]) -> str:
    """What was spent, in a sentence; empty where nothing was searched."""
    if not found:
        return ""
    rows = found["variants"]
    tokens = units.si(sum(row["tokens"] for row in rows))
    trainings = found["spent"] / found["parts"]
    never = [row["name"] for row in rows if not row["share"]]
    rest = f" Never tried: {listed(never)}." if never else ""
    return (f"The search ({found['method']}, seed {found['seed']}) trained {len(rows)} variants for {tokens} tokens, "
            f"as much as {units.fixed(trainings, 1)} whole trainings; {listed(found['kept'])} went on to the "
            f"comparison.{rest}")


def rows(found: Mapping[str, Any]) -> list[Row]:
    """Variant, share of its budget that it was trained for, bits per byte there, whether it went on."""
    table = []
    for row in sorted(found.get("variants", ()), key=_rank):
        share = units.percent(row["share"], 0)
        mean = units.fixed(row["mean"], 4)
        went = "yes" if row["name"] in found["kept"] else "no"
        table.append((row["name"], [(share, ""), (mean, ""), (went, "")]))
    return table


def _rank(row: Mapping[str, Any]) -> tuple[float, float]:
    mean = row["mean"]
    return -row["share"], math.inf if mean is None else mean
