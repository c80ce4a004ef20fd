"""MoE-Mamba: Mamba with a mixture of experts learns faster than Mamba with dense blocks of equal active width.

Paper: MoE-Mamba: Efficient Selective State Space Models with Mixture of Experts.
Tried: the bench's language model with Mamba of four states a channel in the place of attention, in the trunk too; one
of eight experts of width 64 with the Switch loss, against a dense block of width 64, three rates each. Against it: bits
per byte after equal tokens that are no lower.
"""

from __future__ import annotations

from mixwell.claims._judging import BITS
from mixwell.claims.claim import Claim, Side
from mixwell.claims.language import RATES, SWITCH, block, quality

MAMBA = {"sequence_mixer": {"method": "sequence.mamba", "state_dim": 4}}
MIXERS = {"method": SWITCH, "baseline": block(64)}

CLAIM = Claim("Mamba with experts learns faster than dense Mamba.", BITS,
              sides={name: Side(quality, {"mixer": mixer, **MAMBA}, {"lr": RATES}) for name, mixer in MIXERS.items()})
