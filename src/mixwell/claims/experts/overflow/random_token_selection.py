"""Random token selection: dropping at random, not by position, keeps late tokens from starving and lowers the loss.

Paper: Scalable and Efficient MoE Training for Multitask Multilingual Models.
Tried: the bench's language model, one of eight experts, capacity factor 1 in training and evaluation, Switch loss;
random order in training against positions. Against it: bits per byte that are no lower. That the drop rate is flat over
positions follows from the draw and is left to the method's test.
"""

from __future__ import annotations

from mixwell.claims._judging import BITS
from mixwell.claims.claim import Claim, Side
from mixwell.claims.language import BALANCED, limited, quality

RULES = {"method": "random_token_selection", "baseline": "drop"}

CLAIM = Claim("Dropping tokens at random beats dropping by position.", BITS,
              sides={name: Side(quality, {"mixer": limited(rule)}, BALANCED) for name, rule in RULES.items()})
