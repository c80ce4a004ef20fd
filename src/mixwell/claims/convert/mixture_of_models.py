"""Domain experts side by side: without a trained gate they are better over all domains than the best of them.

Paper: Flexible and Effective Mixing of Large Language Models into a Mixture of Domain Experts.
Tried: the bench's dense model, width 64, tuned on 60,000 tokens of code and on as many of the reference; their
feed-forward blocks with even gates, attention averaged, against the better of the two. Beside: the mean of weights.
Against it: bits per byte over four domains that are no lower.
"""

from __future__ import annotations

from mixwell.claims._conversions import bits, dense_start, made, tuned
from mixwell.claims._judging import BITS
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim

CLAIM = Claim("A gateless mixture of domain models beats the best of them.", BITS)
DOMAINS = ("code", "reference")
MIXED = {"experts": [{"source_model": name} for name in DOMAINS], "gate_mode": "even", "rest": "mean"}


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Bits per byte of the mixture, of the better domain model and of the mean of their weights."""
    before = dense_start(bench, seed, 64)
    models = {name: tuned(bench, before, seed, weights={name: 1.0}) for name in DOMAINS}
    mixture = made(bench, "mixture_of_models", before, seed, MIXED, models.__getitem__)
    one, other = (model.tensors for model in models.values())
    mean = {name: (value + other[name]) / 2 for name, value in one.items()}
    averaged = before.derive(tensors=mean)
    single = [bits(bench, model) for model in models.values()]
    found = {"method": bits(bench, mixture), "baseline": min(single)}
    return found | {"weights averaged": bits(bench, averaged)}
