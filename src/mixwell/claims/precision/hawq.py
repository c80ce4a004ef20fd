"""HAWQ: bits by the curvature of the loss leave predictions closer than the same bits everywhere.

Paper: HAWQ-V2: Hessian Aware trace-Weighted Quantization of Neural Networks.
Tried: the bench's mixture after 150,000 tokens, weighed on sixteen held-out windows; 2, 3 or 4 bits a
matrix and expert, 3 on average, against 3 everywhere. Beside the trace stands HAWQ: Hessian AWare Quantization of
Neural Networks with Mixed-Precision, whose eigenvalue is not tried.
Against it: a mean KL that is no lower.
"""

from __future__ import annotations

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.precision._weighing import rounded, trained

CLAIM = Claim("Bits by curvature are closer than the same bits everywhere.", "mean KL in nats a token", quantity="KL")


def trial(bench: Bench, seed: int) -> dict[str, dict[str, float]]:
    """KL and rise of the loss of both."""
    before = trained(bench, seed)
    method = rounded(bench, before, seed, "hawq", widths=(2, 3, 4), bits_per_weight=3.0, group_size=32, draws=4,
                     tokens=2048)
    baseline = rounded(bench, before, seed, "integers", bits=3, group_size=32)
    return {"method": method, "baseline": baseline}
