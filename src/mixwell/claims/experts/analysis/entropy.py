"""LibMoE: five routers end up with about the same quality, however evenly they use the experts.

Paper: LIBMoE: A Library for comprehensive benchmarking Mixture of Experts in Large Language Models; on the method
analysis.entropy (the name entropy is a balance rule's too), which gives each router's load entropy beside.
Tried: the bench's language model with top-2 of eight experts under softmax, sigmoid, cosine, perturbed cosine and
hyper-network routers, each at the best of three rates. Against it: a router whose bits per byte are more than one per
cent above or below those of softmax.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixwell.claims._judging import BITS
from mixwell.claims._methods import call
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Comparison, Side, no_worse
from mixwell.claims.language import RATES, Seen, from_trunk, mean_over, probe

ROUTERS: dict[str, dict[str, Any]] = {
    "baseline": {"method": "top_k", "k": 2},
    "method": {"method": "cosine", "k": 2},
    "sigmoid": {"method": "top_k", "k": 2, "scores": "sigmoid"},
    "perturbed cosine": {"method": "cosine", "k": 2, "perturb": 0.1},
    "hyper-network": {"method": "hyper_network", "k": 2},
}
SHARE = 0.01  # of bits per byte, that routers may differ by


def evenness(seen: Seen) -> float:
    """Entropy of the mean gate over that of even use."""
    found = call("experts.analysis.entropy", seen.mixed.routing, context=seen.context)
    return found["mean_gate_relative"]


def measure(bench: Bench, seed: int, *, router: Mapping[str, Any], lr: float) -> dict[str, float]:
    """Bits per byte, and the entropy of the mean gate over that of even use, mean over layers."""
    trained = from_trunk(bench, seed, mixer={"router": router}, lr=lr)
    even = mean_over(probe(bench, trained.model), evenness)
    return {"bits": trained.bits_per_byte, "evenness": even}


def as_good(one: str, other: str) -> Comparison:
    """The condition that a router is worse than another by less than the share."""
    return no_worse("bits", SHARE, method=one, baseline=other)


OTHERS = [name for name in ROUTERS if name not in ("method", "baseline")]
NO_WORSE = [as_good(name, "baseline") for name in OTHERS]
NO_BETTER = [as_good("baseline", name) for name in ("method", *OTHERS)]

CLAIM = Claim(
    "Five routers perform about the same.", f"{BITS}; cosine (method) and three more against softmax",
    quantity="bits", at_least=-SHARE, relative=True, provided=(*NO_WORSE, *NO_BETTER),
    sides={name: Side(measure, {"router": router}, {"lr": RATES}) for name, router in ROUTERS.items()})
