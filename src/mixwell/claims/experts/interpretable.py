"""MoE-X: ReLU experts routed by expected sparsity have fewer active units than learned routing at similar loss.

Paper: Mixture of Experts Made Intrinsically Interpretable.
Tried: the bench's language model on 150,000 tokens; top-2 of eight ReLU experts of width 64 routed by sparsity, against
the same experts behind a learned router, both with the Switch loss at 0.01; share of the chosen experts' units that are
not zero on held-out text. Against it: a share that is no lower, or bits per byte more than 1 % higher.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch
from torch import Tensor

from mixwell.claims._judging import no_worse, provided
from mixwell.claims.bench import Bench
from mixwell.claims.language import Seen, bits, probe
from mixwell.core.evidence import Evidence, weigh

TOKENS = 150_000


@torch.no_grad()
def share(seen: Seen, up_EFD: Tensor) -> float:
    """Share of the chosen experts' hidden units that are above zero."""
    hidden = torch.einsum("td,efd->tef", seen.hidden_TD.float(), up_EFD.float())
    active = (hidden > 0).float().mean(2).gather(1, seen.mixed.routing.indices_TK)
    return float(active.mean())


def shares(bench: Bench, arch: dict[str, Any], weight: str) -> list[float]:
    """The same, mean over layers, from each seed."""
    return [statistics.fmean(share(seen, getattr(seen.mixer, weight))
                             for seen in probe(bench, bench.train(arch, seed, tokens=TOKENS).model))
            for seed in bench.seeds]


def claim(bench: Bench) -> Evidence:
    """Share of active units by sparsity routing against learned routing."""
    sparse = bench.arch({"method": "experts.layers.interpretable"})
    learned = bench.arch({"method": "experts.layers.sigma_moe", "router": {"method": "top_k", "k": 2},
                          "balance": {"switch": 0.01}})
    evidence = weigh("Routing by expected sparsity leaves fewer units active.",
                     "share of the chosen experts' hidden units above zero", shares(bench, sparse, "up_proj"),
                     shares(bench, learned, "key_proj"))
    ours, theirs = bits(bench, sparse, TOKENS), bits(bench, learned, TOKENS)
    return provided(evidence, no_worse(ours, theirs, 0.01), "Its bits per byte are more than 1 % higher.",
                    method_bits=ours, baseline_bits=theirs)
