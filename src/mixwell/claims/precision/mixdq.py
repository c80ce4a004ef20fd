"""Two measures for two groups, picked by the output, leave predictions closer than one width or one measure.

Paper: MixDQ: Memory-Efficient Few-Step Text-to-Image Diffusion Models with Metric-Decoupled Mixed Precision
Quantization.
Tried: the bench's mixture after 150,000 tokens, weighed on sixteen held-out windows; 2, 3 or 4 bits a matrix and
expert, 3 on average, against 3 everywhere. Beside: one program by KL alone. Not tried: diffusion, and images.
Against it: a mean KL that is no lower.
"""

from __future__ import annotations

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.precision._weighing import against_equal, mixed, trained

CLAIM = Claim("Two measures and a pick are closer than the same bits everywhere.", "mean KL in nats a token",
              quantity="KL")


def trial(bench: Bench, seed: int) -> dict[str, dict[str, float]]:
    """KL and rise of the loss of all three."""
    before = trained(bench, seed)
    sides = against_equal(bench, before, seed, "mixdq", ratios=5, averages=3)
    sides["KL alone"] = mixed(bench, before, seed, "zeroq", tokens=1024)
    return sides
