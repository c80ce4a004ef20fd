"""Half fine-tuning: training a random half of each layer forgets less than training all of it, for as much learnt.

Paper: HFT: Half Fine-Tuning for Large Language Models.
Tried: a small decoder that knows one domain of two-token rules, trained for 60 steps on another in which half of the
rules differ: a random half of each layer's matrices against all of them, each at its best rate for the new domain.
Nats on the old domain. Against it: an old domain that is forgotten as much, or a new one learnt worse by more than 5 %.
"""

from __future__ import annotations

from mixwell.claims.adapters._chains import NATS, RATES, Chain, base, both, fitted
from mixwell.claims.adapters._turned import attached
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side, no_worse

STEPS = 60


def measure(bench: Bench, seed: int, *, lr: float, half: bool) -> dict[str, float]:
    """Nats on both domains after training on the new one."""
    model = base(seed)
    if half:
        attached(model, "half", seed, "*")
    fitted(model, [Chain(seed, 1)], STEPS, lr, seed + 1)
    return both(model, seed)


GRID = {"lr": RATES}
CLAIM = Claim(
    "Half fine-tuning forgets less than full fine-tuning.", f"{NATS} of the old domain", quantity="old", tuned_by="new",
    provided=(no_worse("new", 0.05),),
    sides={"method": Side(measure, {"half": True}, GRID), "baseline": Side(measure, {"half": False}, GRID)})
