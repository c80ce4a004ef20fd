"""One law for dense models and mixtures foretells dearer runs better than a law without experts.

Paper: Joint MoE Scaling Laws: Mixture of Experts Can Be Memory Efficient.
Tried: 60 runs of 1 to 32 experts that follow the published law with 0.5 % noise; the
law against Chinchilla's, which knows size and data alone, both fitted to the four fifths that cost least and scored on
the rest. The runs follow the paper's law, so that what is tried is whether so many runs with so much noise tell its
parameters. Against it: an error that is not a fifth lower than Chinchilla's.
"""

from __future__ import annotations

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.scaling.laws._planted import against_chinchilla

CLAIM = Claim("Experts in the law foretell dearer runs better.",
              "error of log loss on the dearest runs in percent", at_least=0.2, relative=True)


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Both laws' errors."""
    return against_chinchilla("joint_moe", seed)
