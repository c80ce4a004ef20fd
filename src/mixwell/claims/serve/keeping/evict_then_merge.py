"""Evict, then merge: more answers from as few positions as heavy hitters keep.

Paper: EMS: Adaptive Evict-then-Merge Strategy for Head-wise KV Cache Compression Based on Global-Local Importance.
Tried: a small model that looks up values by keys; 200 texts of 32 positions, an eighth, a quarter or half of them
kept, and then eight questions to each, behind a copy of what was kept. Share of right answers, mean over questions and
budgets, against the heavy hitters of equal budget. Beside: the same scores without merging. (With the question in
sight every rule keeps what it asks for.) The whole cache answers nine of ten, else nothing is tried. Against it: no
gain.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.serve.keeping._recall import KEYS, model, require_answers, texts
from mixwell.core.rng import generator
from mixwell.serve.keeping.evict_then_merge import Config, EvictThenMerge
from mixwell.serve.keeping.heavy_hitters import Config as HeavyConfig
from mixwell.serve.keeping.heavy_hitters import HeavyHitters
from mixwell.serve.keeping.rules import Rule, keeping
from mixwell.serve.keeping.shared_context import Config as AskConfig
from mixwell.serve.keeping.shared_context import shared_context

ASKS = AskConfig(mode="requests")
BUDGETS = (KEYS // 8, KEYS // 4, KEYS // 2)
RECENT = 2


def merged(budget: int) -> Rule:
    """The method."""
    return EvictThenMerge(Config(budget=budget, recent=RECENT))


def evicted(budget: int) -> Rule:
    """Its scores alone."""
    return EvictThenMerge(Config(budget=budget, recent=RECENT, spare=1.0))


def heavy(budget: int) -> Rule:
    """Sums of all queries' weights."""
    return HeavyHitters(HeavyConfig(budget=budget, recent=RECENT))


SIDES: dict[str, Callable[[int], Rule]] = {"method": merged, "baseline": heavy, "without merging": evicted}


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Shares of right answers, mean over budgets."""
    asked = texts(200, 8, generator(seed, "merge"))
    whole = shared_context(model(), *asked, ASKS)
    require_answers(whole)

    def right(made: Callable[[int], Rule], budget: int) -> float:
        with keeping(model(), lambda: made(budget)):
            found = shared_context(model(), *asked, ASKS)
        return float(found.mean())

    shares = {"whole cache": float(whole.mean())}
    for name, made in SIDES.items():
        found = [right(made, budget) for budget in BUDGETS]
        shares[name] = fmean(found)
    return shares


CLAIM = Claim("Evicting and merging by global and local scores keeps more answers.", "share of right answers",
              lower_is_better=False, at_least=0.0)
