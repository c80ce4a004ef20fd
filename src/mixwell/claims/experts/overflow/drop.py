"""Switch Transformers: a capacity factor of 1, with overflow dropped, costs little quality under a balance loss.

Paper: Switch Transformers: Scaling to Trillion Parameter Models with Simple and Efficient Sparsity.
Tried: the bench's language model, one of eight experts, Switch loss; capacity factor 1 with what overflows dropped by
position, against no limit, plus one per cent. Against it: more than one per cent more bits per byte.
"""

from __future__ import annotations

from mixwell.claims._judging import BITS, plus_one_per_cent
from mixwell.claims.bench import Bench
from mixwell.claims.language import SWITCH, bits, limited
from mixwell.core.evidence import Evidence, weigh


def claim(bench: Bench) -> Evidence:
    """Bits per byte with capacity factor 1 against 1.01 times those without a limit."""
    unlimited = bits(bench, bench.arch(SWITCH))
    dropping = bits(bench, limited(bench, "drop"))
    return weigh("Dropping what overflows a capacity factor of 1 costs at most one per cent.",
                 f"{BITS}; baseline plus 1 %", dropping, plus_one_per_cent(unlimited),
                 note="Within the allowed per cent on average, but the seeds differ by more than that.")
