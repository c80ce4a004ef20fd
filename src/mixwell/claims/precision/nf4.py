"""NF4: quantiles of a normal distribution leave predictions closer than equal steps.

Paper: QLoRA: Efficient Finetuning of Quantized LLMs.
Tried: the bench's mixture after 150,000 tokens, weighed on sixteen held-out windows; groups of 64, against
four-bit integers with the same scales.
Against it: a mean KL that is no lower.
"""

from __future__ import annotations

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.precision._weighing import rounded, trained

CLAIM = Claim("NF4 is closer than four-bit integers of the same groups.", "mean KL in nats a token", quantity="KL")


def trial(bench: Bench, seed: int) -> dict[str, dict[str, float]]:
    """KL and rise of the loss of both."""
    before = trained(bench, seed)
    method = rounded(bench, before, seed, "nf4")
    baseline = rounded(bench, before, seed, "integers")
    return {"method": method, "baseline": baseline}
