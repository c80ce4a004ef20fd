"""MoE-X: ReLU experts routed by expected sparsity have fewer active units than learned routing at similar loss.

Paper: Mixture of Experts Made Intrinsically Interpretable.
Tried: the bench's language model; top-2 of eight ReLU experts of width 64 routed by sparsity, against the same experts
behind a learned router, both with the Switch loss; share of the chosen experts' units that are not zero on held-out
text. Against it: a share that is no lower, or bits per byte more than 1 % higher. Whether units mean one thing each is
not tried.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side, no_worse
from mixwell.claims.language import BALANCED, Seen, from_trunk, mean_over, probe

SPARSE = {"mixer": {"method": "experts.layers.interpretable"}, "weight": "up_proj"}
LEARNED = {"mixer": {"method": "experts.layers.sigma_moe", "router": {"method": "top_k", "k": 2}}, "weight": "key_proj"}


@torch.no_grad()
def share(seen: Seen, up_EFD: Tensor) -> float:
    """Share of the chosen experts' hidden units that are above zero."""
    hidden = torch.einsum("td,efd->tef", seen.hidden_TD.float(), up_EFD.float())
    above = hidden > 0
    active = above.float().mean(2)
    indices = seen.mixed.routing.indices_TK
    chosen = active.gather(1, indices)
    return float(chosen.mean())


def measure(bench: Bench, seed: int, *, mixer: Mapping[str, Any], weight: str, **options: Any) -> dict[str, float]:
    """The share, mean over layers, and bits per byte; `weight` names the experts' first map."""
    trained = from_trunk(bench, seed, mixer=mixer, **options)
    active = mean_over(probe(bench, trained.model), lambda seen: share(seen, getattr(seen.mixer, weight)))
    return {"active": active, "bits": trained.bits_per_byte}


CLAIM = Claim(
    "Routing by expected sparsity leaves fewer units active.",
    "share of the chosen experts' hidden units above zero", quantity="active", tuned_by="bits",
    provided=(no_worse("bits", 0.01),),
    sides={"method": Side(measure, SPARSE, BALANCED), "baseline": Side(measure, LEARNED, BALANCED)})
