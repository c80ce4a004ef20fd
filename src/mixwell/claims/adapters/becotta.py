"""BECoTTA: thin experts chosen by a router for each domain do better on several domains than behind one router.

Paper: BECoTTA: Input-dependent Online Blending of Experts for Continual Test-time Adaptation.
Tried: a decoder that knows the text of one Markov chain, frozen, and adapted to four others that share half of their
rules, each row under its domain's label: four experts of rank 4 beside each block with a router for each domain,
against the same experts with one router for all, rates of their own; routers do not draw. Cross-entropy on new rows,
mean over the domains. The stream of unlabelled images and its pseudo-labels are not tried. Against it: a loss that is
no lower.
"""

from __future__ import annotations

import torch

from mixwell.adapters import becotta as method
from mixwell.adapters.attached import attach
from mixwell.claims.adapters._chains import NATS, RATES, Chain, base, fitted
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.core.rng import generator
from mixwell.lm.model import LanguageModel

DOMAINS, STEPS = 4, 150


def chains(seed: int) -> list[Chain]:
    """The domains that are adapted to."""
    return [Chain(seed, 1 + domain) for domain in range(DOMAINS)]


@torch.no_grad()
def mean_nats(model: LanguageModel, seed: int, routers: int) -> float:
    """On rows that no training saw, mean over domains."""
    total = 0.0
    for domain, chain in enumerate(chains(seed)):
        tokens = chain(64, generator(seed, "held out", domain))
        labels = torch.full((len(tokens),), domain % routers)
        found = model.eval().loss(tokens[:, :-1], tokens[:, 1:], labels_B=labels)
        total += float(found.nats)
    return total / DOMAINS


class Unlabelled:
    """Rows of all domains in turn, so that one router serves them."""

    def __init__(self, seed: int) -> None:
        self.chains = chains(seed)

    def __call__(self, rows: int, draws: torch.Generator) -> torch.Tensor:
        """Windows, as many of each domain."""
        each = rows // DOMAINS
        parts = [chain(each, draws) for chain in self.chains]
        return torch.cat(parts)


def measure(bench: Bench, seed: int, *, lr: float, routers: int) -> float:
    """The loss with so many routers."""
    model = base(seed)
    config = method.Config(num_domains=routers, router={"method": "top_k", "k": 3})
    attach(method.BECoTTA, model, None, config, generator(seed, "adapter"))
    given = chains(seed) if routers > 1 else [Unlabelled(seed)]
    fitted(model, given, STEPS, lr, seed, labelled=True)
    return mean_nats(model, seed, routers)


GRID = {"lr": (*RATES, 3e-2)}
CLAIM = Claim("Experts behind a router for each domain do better than behind one router.", NATS,
              sides={"method": Side(measure, {"routers": DOMAINS}, GRID),
                     "baseline": Side(measure, {"routers": 1}, GRID)})
