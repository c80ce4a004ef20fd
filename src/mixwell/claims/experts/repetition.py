"""Mixtral: consecutive tokens are sent to the same expert more often than chance.

Paper: Mixtral of Experts.
Tried: the bench's language model, top-2 of eight experts; share of neighbours in held-out text with the same first
choice, mean over layers, against chance at the observed load (which is above the paper's 1 / 8, and so harder to beat).
Against it: a share at chance or below.
"""

from __future__ import annotations

import statistics

from mixwell.claims.bench import Bench
from mixwell.claims.language import TOKENS, probe
from mixwell.core import registry
from mixwell.core.evidence import Evidence, weigh


def claim(bench: Bench) -> Evidence:
    """Repeated first choices against chance."""
    entry = registry.find("experts.analysis.repetition")
    found = [[entry.load()(seen.mixed.routing, entry.module().Config(), seen.context)
              for seen in probe(bench, bench.train(bench.arch(), seed, tokens=TOKENS).model)] for seed in bench.seeds]
    return weigh("Consecutive tokens go to the same expert more often than chance.",
                 "share of neighbours with the same first choice; baseline is chance at the observed load",
                 [statistics.fmean(one["first"] for one in run) for run in found],
                 [statistics.fmean(one["first_chance_at_load"] for one in run) for run in found],
                 lower_is_better=False)
