"""HiFT: layers trained in turn end where training them together does, when each is visited as often.

Paper: HiFT: A Hierarchical Full Parameter Fine-Tuning Strategy.
Tried: a small decoder that knows one domain of two-token rules, trained on another: 120 steps in turns of four groups
against 30 steps of all layers, so that each layer has 30, at rates of their own. Beside: 30 steps in turn, the same
text. Against it: nats on the new domain that are higher by more than 2 %.
"""

from __future__ import annotations

from mixwell.claims.adapters._chains import NATS, RATES, Chain, base, fitted, nats
from mixwell.claims.adapters._turned import attached
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side

VISITS, GROUPS = 30, 4


def measure(bench: Bench, seed: int, *, lr: float, steps: int, in_turn: bool) -> float:
    """Nats on the new domain."""
    model = base(seed)
    if in_turn:
        attached(model, "in_turn", seed, "*")
    new = Chain(seed, 1)
    fitted(model, [new], steps, lr, seed + 1)
    return nats(model, new, seed)


GRID = {"lr": RATES}
CLAIM = Claim(
    "Layers in turn learn as much as layers together at equal visits.", f"{NATS} of the new domain", at_least=-0.02,
    relative=True,
    sides={"method": Side(measure, {"steps": VISITS * GROUPS, "in_turn": True}, GRID),
           "baseline": Side(measure, {"steps": VISITS, "in_turn": False}, GRID),
           "as many steps": Side(measure, {"steps": VISITS, "in_turn": True}, GRID)})
