"""MoE-Mamba: Mamba with a mixture of experts learns faster than Mamba with dense blocks of equal active width.

Paper: MoE-Mamba: Efficient Selective State Space Models with Mixture of Experts.
Tried: the bench's language model on 100,000 tokens with Mamba of four states a channel in the place of attention; one
of eight experts of width 64 with the Switch loss, against a dense block of width 64. Against it: bits per byte after
equal tokens that are no lower.
"""

from __future__ import annotations

from mixwell.claims._judging import BITS
from mixwell.claims.bench import Bench
from mixwell.claims.language import SWITCH, bits, dense
from mixwell.core.evidence import Evidence, weigh

TOKENS = 100_000
MAMBA = {"sequence_mixer": {"method": "sequence.mamba", "state_dim": 4}}


def claim(bench: Bench) -> Evidence:
    """Bits per byte of Mamba with experts against Mamba with dense blocks."""
    experts = bench.arch(SWITCH) | MAMBA
    block = dense(bench, 64) | MAMBA
    method, baseline = bits(bench, experts, TOKENS), bits(bench, block, TOKENS)
    return weigh("Mamba with experts learns faster than dense Mamba.", BITS, method, baseline,
                 note="Equal to 0.01: after 48 steps eight experts behind one choice have not yet gained on a block "
                      "of one expert's width.")
