"""CartesianMoE: products of experts suffer less from routing errors than single experts, at no higher loss.

Paper: CartesianMoE: Boosting Knowledge Sharing among Experts via Cartesian Product Routing in Mixture-of-Experts.
Tried: the bench's language model on 150,000 tokens; twice one of eight experts of width 32 with a shared one, against
two of 16 with two shared ones (equal parameters and computation); in evaluation every chosen expert is replaced by the
next best one. Against it: bits per byte that rise no less, or that are higher without the errors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mixwell.claims._judging import at_no_more_bits
from mixwell.claims._series import columns
from mixwell.claims.bench import Bench
from mixwell.core.evidence import Evidence, weigh
from mixwell.core.routing import Context, Routing

TOKENS = 150_000
ONE = {"router": {"method": "top_k", "k": 1}, "hidden_dim": 32, "num_experts": 8}


class NextBest(nn.Module):
    """A router whose K experts are replaced by those of rank K + 1 to 2 K, with the weights of the first."""

    def __init__(self, router: Any) -> None:
        super().__init__()
        self.router = router

    def forward(self, x_TD: Tensor, context: Context) -> Routing:
        """The routing with its errors."""
        routing = self.router(x_TD, context)
        k = routing.indices_TK.shape[1]
        ranked = routing.scores_TE.topk(2 * k).indices
        return replace(routing, indices_TK=ranked[:, k:])


def mixtures(model: Any) -> Iterator[Any]:
    """Every mixture with a router of its own: both of a product, the channel mixer elsewhere."""
    for layer in model.layers:
        mixer = layer.channel_mixer
        yield getattr(mixer, "first", mixer)
        yield getattr(mixer, "second", mixer)


def measure(bench: Bench, arch: dict[str, Any], seed: int) -> tuple[float, float]:
    """(bits per byte with routing errors less those without, those without)."""
    trained = bench.train(arch, seed, tokens=TOKENS)
    right = trained.bits_per_byte
    for mixture in mixtures(trained.model):
        if not isinstance(mixture.router, NextBest):
            mixture.router = NextBest(mixture.router)
    with torch.no_grad():
        wrong = bench.evaluate(trained.model).mean
    return wrong - right, right


def claim(bench: Bench) -> Evidence:
    """How much bits per byte rise by routing errors."""
    product = bench.arch({"method": "experts.layers.cartesian", **ONE})
    plain = bench.arch({"hidden_dim": 32, "num_experts": 16, "shared_experts": 2})
    method, ours = columns(measure(bench, product, seed) for seed in bench.seeds)
    baseline, theirs = columns(measure(bench, plain, seed) for seed in bench.seeds)
    evidence = weigh("Products of experts suffer less from routing errors.",
                     "rise of bits per byte when every chosen expert is replaced by the next best", method, baseline)
    return at_no_more_bits(evidence, ours, theirs)
