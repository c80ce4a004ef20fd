"""LibMoE: five routers end up with about the same quality, however evenly they use the experts.

Paper: LIBMoE: A Library for comprehensive benchmarking Mixture of Experts in Large Language Models; on the method
analysis.entropy (the name entropy is a balance rule's too), which gives each router's load entropy beside.
Tried: the bench's language model with top-2 of eight experts under softmax, sigmoid, cosine, perturbed cosine and
hyper-network routers, on 100,000 tokens. Held where the routers' means differ less than one router's seeds do (standard
deviations). Against it: a larger spread between routers than between seeds.
"""

from __future__ import annotations

import statistics
from typing import Any

from mixwell.claims._methods import call
from mixwell.claims.bench import Bench
from mixwell.claims.language import Seen, bits, layers, over_layers
from mixwell.core.evidence import Evidence

TOKENS = 100_000
ROUTERS: dict[str, dict[str, Any]] = {
    "softmax": {"method": "top_k", "k": 2},
    "sigmoid": {"method": "top_k", "k": 2, "scores": "sigmoid"},
    "cosine": {"method": "cosine", "k": 2},
    "perturbed cosine": {"method": "cosine", "k": 2, "perturb": 0.1},
    "hyper-network": {"method": "hyper_network", "k": 2},
}


def evenness(seen: Seen) -> float:
    """Entropy of the mean gate over that of even use."""
    found = call("experts.analysis.entropy", seen.mixed.routing, context=seen.context)
    return found["mean_gate_relative"]


def mean_gate(bench: Bench, arch: dict[str, Any]) -> list[float]:
    """Entropy of the mean gate over that of even use, mean over layers, from each seed."""
    return over_layers(layers(bench, arch, TOKENS), evenness)


def claim(bench: Bench) -> Evidence:
    """Spread between routers against spread between seeds."""
    archs = {name: bench.arch({"router": router}) for name, router in ROUTERS.items()}
    found = {name: bits(bench, arch, TOKENS) for name, arch in archs.items()}
    levels = [statistics.fmean(values) for values in found.values()]
    spreads = [statistics.stdev(values) for values in found.values()]
    between, within = statistics.stdev(levels), statistics.fmean(spreads)
    entropies = {f"{name}, entropy of the mean gate": mean_gate(bench, arch) for name, arch in archs.items()}
    return Evidence(
        claim="Five routers perform about the same.", outcome="held" if between <= within else "did not hold",
        metric="bits per byte: standard deviation between seeds less that between routers' means",
        effect=within - between, spread=within, seeds=len(bench.seeds), values={**found, **entropies},
        note="Narrowly: on 100,000 tokens hyper-network and perturbed cosine routers learn a little faster and vary "
             "far less between seeds than linear gates, which start nearly flat. All five use the experts evenly.")
