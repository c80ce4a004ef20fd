"""Recycle routing: what overflows goes to random experts with room, which drops nothing and trains better.

Paper: Hunyuan-Large: An Open-Source MoE Model with 52 Billion Activated Parameters by Tencent.
Tried: the bench's language model, one of eight experts, capacity factor 1, Switch loss; recycling against dropping.
Against it: a thousandth or more of the held-out tokens dropped in some layer, or bits per byte that are no lower.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixwell.claims._judging import BITS
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side, no_worse
from mixwell.claims.experts._synthetic import unserved
from mixwell.claims.language import BALANCED, from_trunk, limited, probe


def measure(bench: Bench, seed: int, *, rule: str, lr: float, balance: Mapping[str, Any]) -> dict[str, float]:
    """Bits per byte, and the share of held-out tokens that no expert serves, largest over layers."""
    trained = from_trunk(bench, seed, mixer=limited(rule), lr=lr, balance=balance)
    dropped = max(unserved(seen.mixed) for seen in probe(bench, trained.model))
    return {"bits": trained.bits_per_byte, "dropped": dropped}


CLAIM = Claim(
    "Recycling what overflows beats dropping it.", BITS, quantity="bits",
    provided=(no_worse("dropped", 0.001, relative=False, baseline=0.0),),
    sides={"method": Side(measure, {"rule": "recycle"}, BALANCED),
           "baseline": Side(measure, {"rule": "drop"}, BALANCED)})
