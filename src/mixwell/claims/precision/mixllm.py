"""MixLLM: rows ranked over all layers leave predictions closer than rows drawn within each.

Paper: MixLLM: LLM Quantization with Global Mixed-precision between Output-features and Highly-efficient System Design.
Tried: the bench's mixture after 150,000 tokens, weighed on sixteen held-out windows; 3 bits and 8 for a
tenth of the rows (3.5 on average), against 4 bits everywhere in groups twice as large.
Against it: a mean KL that is no lower.
"""

from __future__ import annotations

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.precision._weighing import rounded, trained

CLAIM = Claim("Salient rows at eight bits are closer than more bits for all.", "mean KL in nats a token", quantity="KL")


def trial(bench: Bench, seed: int) -> dict[str, dict[str, float]]:
    """KL and rise of the loss of both."""
    before = trained(bench, seed)
    method = rounded(bench, before, seed, "mixllm", low=3, high=8, share=0.1, group_size=32, tokens=2048)
    baseline = rounded(bench, before, seed, "integers", bits=4, group_size=64, symmetric=False)
    return {"method": method, "baseline": baseline}
