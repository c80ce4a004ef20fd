"""Switch Transformers: a top-1 mixture learns faster than a dense model of the same computation.

Paper: Switch Transformers: Scaling to Trillion Parameter Models with Simple and Efficient Sparsity.
Tried: the bench's language model, one of eight experts of width 64 a token, against a dense block of width 64, after
the same tokens and FLOPs. Against it: bits per byte that are no lower.
"""

from __future__ import annotations

from mixwell.claims._judging import BITS
from mixwell.claims.bench import Bench
from mixwell.claims.language import SWITCH, bits, dense
from mixwell.core.evidence import Evidence, weigh


def claim(bench: Bench) -> Evidence:
    """Bits per byte of Switch against a dense block."""
    return weigh("A top-1 mixture beats a dense model of equal compute.", BITS, bits(bench, bench.arch(SWITCH)),
                 bits(bench, dense(bench, 64)),
                 note="On 300,000 tokens an expert sees an eighth of what the dense block sees. With four times the "
                      "tokens and one seed the mixture was ahead: 1.97 against 2.01 bits per byte.")
