"""KIND: components that all domains share learn a new domain faster, with fresh tailors, than an ungated model's LoRA.

Paper: KIND: Knowledge Integration and Diversion in Diffusion Models.
Tried: a small decoder trained on three domains of two-token rules, its matrices as 20 common components and 4 for each
domain, or as they are; then 40 steps on a fourth domain: fresh tailors beside the frozen common components, against a
LoRA of as many numbers beside the ungated model, at rates of their own. Against it: nats on the new domain that are no
lower.
"""

from __future__ import annotations

import functools

from mixwell.adapters.attached import Attached
from mixwell.adapters.kind import inherit
from mixwell.claims.adapters._chains import FIRST, NATS, Chain, copied, fitted, fresh, nats, worldly
from mixwell.claims.adapters._turned import attached
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side

DOMAINS, STEPS = 3, 40
OTHERS = ["embed", "norm", "head", "sequence_norm", "channel_norm"]


@functools.cache
def gated(seed: int) -> Attached:
    """A decoder whose components were gated by domain as it was trained."""
    model = fresh(seed)
    there = attached(model, "kind", seed, "all-linear", {"trained": OTHERS}, common=20, tailors=4, domains=DOMAINS,
                     start="random")
    chains = [Chain(seed, domain) for domain in range(DOMAINS)]
    fitted(model, chains, FIRST, 1e-2, seed, labelled=True)
    return there


def tailored(bench: Bench, seed: int, *, lr: float) -> dict[str, float]:
    """Nats on the fourth domain with fresh tailors."""
    source = gated(seed)
    model = fresh(seed)
    there = attached(model, "kind", seed, "all-linear", common=20, tailors=4, start="fresh", train="tailors")
    inherit(there, source)
    own = dict(model.named_parameters())
    for name, value in source.trained.items():
        own[name].data.copy_(value.detach())
    return _new(model, there.num_parameters, lr, seed)


def low_rank(bench: Bench, seed: int, *, lr: float) -> dict[str, float]:
    """Nats on the fourth domain with a LoRA."""
    model = copied(worldly(seed, DOMAINS))
    there = attached(model, "lora", seed, "all-linear", rank=4, alpha=4.0)
    return _new(model, there.num_parameters, lr, seed)


def _new(model: object, numbers: int, lr: float, seed: int) -> dict[str, float]:
    """What a training on the fourth domain leaves."""
    chain = Chain(seed, DOMAINS)
    found = fitted(model, [chain], STEPS, lr, seed + 1)  # type: ignore[arg-type]
    return {"new": nats(found, chain, seed), "numbers": float(numbers)}


GRID = {"lr": (3e-3, 1e-2, 3e-2)}
CLAIM = Claim(
    "Fresh tailors beside common components learn a new domain faster than a LoRA beside an ungated model.",
    f"{NATS} of the new domain", quantity="new",
    sides={"method": Side(tailored, {}, GRID), "baseline": Side(low_rank, {}, GRID)})
