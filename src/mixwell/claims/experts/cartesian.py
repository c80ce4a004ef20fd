"""CartesianMoE: products of experts suffer less from routing errors than single experts, at no higher loss.

Paper: CartesianMoE: Boosting Knowledge Sharing among Experts via Cartesian Product Routing in Mixture-of-Experts.
Tried: the bench's language model on 150,000 tokens; twice one of eight experts of width 32 with a shared one, against
two of 16 with two shared ones (equal parameters and computation); in evaluation every chosen expert is replaced by the
next best one. Against it: bits per byte that rise no less, or that are higher without the errors.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mixwell.claims._judging import no_worse, provided
from mixwell.claims.bench import Bench
from mixwell.core.evidence import Evidence, weigh
from mixwell.core.routing import Context, Routing
from mixwell.lm.evaluate import evaluate

TOKENS = 150_000


class NextBest(nn.Module):
    """A router whose K experts are replaced by those of rank K + 1 to 2 K, with the weights of the first."""

    def __init__(self, router: Any) -> None:
        super().__init__()
        self.router = router

    def forward(self, x_TD: Tensor, context: Context) -> Routing:
        """The routing with its errors."""
        routing = self.router(x_TD, context)
        k = routing.indices_TK.shape[1]
        return replace(routing, indices_TK=routing.scores_TE.topk(2 * k).indices[:, k:])


def measure(bench: Bench, arch: dict[str, Any], seed: int) -> tuple[float, float]:
    """(bits per byte with routing errors less those without, those without)."""
    trained = bench.train(arch, seed, tokens=TOKENS)
    for layer in trained.model.layers:
        for mixture in (getattr(layer.channel_mixer, name, layer.channel_mixer) for name in ("first", "second")):
            if not isinstance(mixture.router, NextBest):
                mixture.router = NextBest(mixture.router)
    with torch.no_grad():
        wrong = evaluate(trained.model, bench.data, max_tokens=8192, batch_size=32, seq_len=64).mean
    return wrong - trained.bits_per_byte, trained.bits_per_byte


def claim(bench: Bench) -> Evidence:
    """How much bits per byte rise by routing errors."""
    one = {"router": {"method": "top_k", "k": 1}, "hidden_dim": 32, "num_experts": 8}
    product = bench.arch({"method": "experts.layers.cartesian", **one})
    plain = bench.arch({"hidden_dim": 32, "num_experts": 16, "shared_experts": 2})
    ours, theirs = ([measure(bench, arch, seed) for seed in bench.seeds] for arch in (product, plain))
    evidence = weigh("Products of experts suffer less from routing errors.",
                     "rise of bits per byte when every chosen expert is replaced by the next best",
                     [m[0] for m in ours], [m[0] for m in theirs])
    return provided(evidence, no_worse([m[1] for m in ours], [m[1] for m in theirs], 0.0),
                    "Its bits per byte are higher.", method_bits=[m[1] for m in ours],
                    baseline_bits=[m[1] for m in theirs])
