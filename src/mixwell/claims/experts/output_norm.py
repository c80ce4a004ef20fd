"""Trained routers pick experts that answer with larger norms.

Paper: A Closer Look into Mixture-of-Experts in Large Language Models.
Tried: the bench's language model, top-2 of eight experts; share of the choices on held-out text that are among the two
experts of largest output norm, mean over layers, against chance. Against it: a share at chance or below.
"""

from __future__ import annotations

import statistics
from typing import Any

from mixwell.claims.bench import Bench
from mixwell.claims.language import TOKENS, Seen, probe
from mixwell.core import registry
from mixwell.core.evidence import Evidence, weigh


def hits(seen: Seen) -> dict[str, Any]:
    """The analysis of one layer."""
    entry = registry.find("experts.analysis.output_norm")
    norms = seen.mixer.responses(seen.hidden_TD)
    return entry.load()(seen.mixed.routing, norms, entry.module().Config(), seen.context)


def claim(bench: Bench) -> Evidence:
    """Choices among the largest norms against chance."""
    found = [[hits(seen) for seen in probe(bench, bench.train(bench.arch(), seed, tokens=TOKENS).model)]
             for seed in bench.seeds]
    return weigh("Routers pick experts with larger output norms.",
                 "share of choices among the two largest output norms",
                 [statistics.fmean(one["hits"] for one in run) for run in found],
                 [statistics.fmean(one["chance"] for one in run) for run in found], lower_is_better=False)
