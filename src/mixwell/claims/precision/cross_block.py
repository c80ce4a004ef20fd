"""CBQ: rounding learned in windows of layers leaves predictions closer than layer by layer.

Paper: CBQ: Cross-Block Quantization for Large Language Models.
Tried: the bench's mixture of two layers after 150,000 tokens, weighed on sixteen held-out windows; two bits in groups
of 32, both layers in one window against one layer at a time, as many steps over all. Beside: rounding to nearest.
Windows that overlap are not tried.
Against it: a mean KL that is no lower.
"""

from __future__ import annotations

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.precision._weighing import rounded, trained

CLAIM = Claim("Layers learned together are closer than one by one.", "mean KL in nats a token", quantity="KL")
STEPS = 80  # over all windows


def trial(bench: Bench, seed: int) -> dict[str, dict[str, float]]:
    """KL and rise of the loss of all three."""
    before = trained(bench, seed)
    given = {"bits": 2, "group_size": 32}
    method = rounded(bench, before, seed, "cross_block", steps=STEPS, **given)
    baseline = rounded(bench, before, seed, "cross_block", window=1, overlap=0, steps=STEPS // 2, **given)
    nearest = rounded(bench, before, seed, "integers", **given)
    return {"method": method, "baseline": baseline, "nearest": nearest}
