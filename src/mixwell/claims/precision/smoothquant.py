"""SmoothQuant: moving outliers from inputs into weights leaves predictions closer.

Paper: SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models.
Tried: the bench's mixture after 150,000 tokens, weighed on sixteen held-out windows; six bits for weights
and inputs, which are hard enough to see, against the same without smoothing.
Against it: a mean KL that is no lower.
"""

from __future__ import annotations

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.precision._weighing import rounded, trained

CLAIM = Claim(
    "SmoothQuant is closer than rounding weights and inputs as they are.",
    "mean KL in nats a token", quantity="KL")


def trial(bench: Bench, seed: int) -> dict[str, dict[str, float]]:
    """KL and rise of the loss of both."""
    before = trained(bench, seed)
    method = rounded(bench, before, seed, "smoothquant", bits=6, input_bits=6)
    baseline = rounded(bench, before, seed, "integers", bits=6, group_size=0, input_bits=6)
    return {"method": method, "baseline": baseline}
