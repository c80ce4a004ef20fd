"""Two measures for two groups, picked by the output, leave predictions closer than one width or one measure.

Paper: MixDQ: Memory-Efficient Few-Step Text-to-Image Diffusion Models with Metric-Decoupled Mixed Precision
Quantization.
Tried: the bench's mixture after 150,000 tokens, weighed on sixteen held-out windows; 2, 3 or 4 bits a matrix and
expert, 3 on average, against 3 everywhere. Beside: one program by KL alone, on its own text. Not tried: diffusion,
and images.
Against it: a mean KL that is no lower.
"""

from __future__ import annotations

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.precision._weighing import mixed, rounded, trained, weighed
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.rng import generator
from mixwell.precision.mixdq import Config, mixdq
from mixwell.run.stages.convert import training_windows

CLAIM = Claim("Two measures and a pick are closer than the same bits everywhere.", "mean KL in nats a token",
              quantity="KL")
CONFIG = Config(widths=(2, 3, 4), bits_per_weight=3.0, group_size=32, ratios=5, averages=3)


def trial(bench: Bench, seed: int) -> dict[str, dict[str, float]]:
    """KL and rise of the loss of all three."""
    before = trained(bench, seed)
    equal = rounded(bench, before, seed, "integers", bits=3, group_size=32)
    alone = mixed(bench, before, seed, "zeroq", tokens=512)
    return {"method": _by_two(bench, before, seed), "baseline": equal, "KL alone": alone}


def _by_two(bench: Bench, before: Checkpoint, seed: int) -> dict[str, float]:
    text = training_windows(bench.data, CONFIG.tokens, 64)
    draws = generator(seed, "mixdq")
    after = mixdq(before, CONFIG, draws, text)
    return weighed(bench, before, after, "mixdq")
