"""Switch Transformers: a capacity factor of 1, with overflow dropped, costs little quality under a balance loss.

Paper: Switch Transformers: Scaling to Trillion Parameter Models with Simple and Efficient Sparsity.
Tried: the bench's language model, one of eight experts, Switch loss; capacity factor 1 with what overflows dropped by
position, against no limit. Against it: more than one per cent more bits per byte.
"""

from __future__ import annotations

from mixwell.claims._judging import BITS
from mixwell.claims.claim import Claim, Side
from mixwell.claims.language import BALANCED, SWITCH, limited, quality

CLAIM = Claim(
    "Dropping what overflows a capacity factor of 1 costs at most one per cent.", BITS, at_least=-0.01, relative=True,
    sides={"method": Side(quality, {"mixer": limited("drop")}, BALANCED),
           "baseline": Side(quality, {"mixer": SWITCH}, BALANCED)})
