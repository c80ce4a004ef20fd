"""MoE-X: ReLU experts routed by expected sparsity have fewer active units than learned routing at similar loss.

Paper: Mixture of Experts Made Intrinsically Interpretable.
Tried: the bench's language model on 150,000 tokens; top-2 of eight ReLU experts of width 64 routed by sparsity, against
the same experts behind a learned router, both with the Switch loss at 0.01; share of the chosen experts' units that are
not zero on held-out text. Against it: a share that is no lower, or bits per byte more than 1 % higher.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mixwell.claims._judging import at_no_more_bits
from mixwell.claims.bench import Bench
from mixwell.claims.experts._synthetic import TOP2
from mixwell.claims.language import Seen, bits, layers, over_layers
from mixwell.core.evidence import Evidence, weigh

TOKENS = 150_000


@torch.no_grad()
def share(seen: Seen, up_EFD: Tensor) -> float:
    """Share of the chosen experts' hidden units that are above zero."""
    hidden = torch.einsum("td,efd->tef", seen.hidden_TD.float(), up_EFD.float())
    above = hidden > 0
    active = above.float().mean(2)
    indices = seen.mixed.routing.indices_TK
    chosen = active.gather(1, indices)
    return float(chosen.mean())


def shares(bench: Bench, arch: dict[str, Any], weight: str) -> list[float]:
    """The same, mean over layers, from each seed."""
    runs = layers(bench, arch, TOKENS)
    return over_layers(runs, lambda seen: share(seen, getattr(seen.mixer, weight)))


def claim(bench: Bench) -> Evidence:
    """Share of active units by sparsity routing against learned routing."""
    sparse = bench.arch({"method": "experts.layers.interpretable"})
    learned = bench.arch({"method": "experts.layers.sigma_moe", **TOP2})
    method = shares(bench, sparse, "up_proj")
    baseline = shares(bench, learned, "key_proj")
    evidence = weigh("Routing by expected sparsity leaves fewer units active.",
                     "share of the chosen experts' hidden units above zero", method, baseline)
    ours, theirs = bits(bench, sparse, TOKENS), bits(bench, learned, TOKENS)
    return at_no_more_bits(evidence, ours, theirs, margin=0.01)
