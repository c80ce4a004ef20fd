"""CartesianMoE: products of experts suffer less from routing errors than single experts, at no higher loss.

Paper: CartesianMoE: Boosting Knowledge Sharing among Experts via Cartesian Product Routing in Mixture-of-Experts.
Tried: the bench's language model; twice one of eight experts of width 32 with a shared one, against two of 16 with two
shared ones (equal parameters and computation); in evaluation every chosen expert is replaced by the next best one.
Against it: bits per byte that rise no less, or that are more than 1 % higher without the errors.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side, no_worse
from mixwell.claims.language import BALANCED, from_trunk
from mixwell.core.routing import Context, Routing

PRODUCT = {"method": "experts.layers.cartesian", "router": {"method": "top_k", "k": 1}, "hidden_dim": 32}
PLAIN = {"hidden_dim": 32, "num_experts": 16, "shared_experts": 2}


class NextBest(nn.Module):
    """A router whose K experts are replaced by those of rank K + 1 to 2 K, with the weights of the first."""

    def __init__(self, router: Any) -> None:
        super().__init__()
        self.router = router

    def forward(self, x_TD: Tensor, context: Context) -> Routing:
        """The routing with its errors."""
        routing = self.router(x_TD, context)
        _, k = routing.indices_TK.shape
        ranked = routing.scores_TE.topk(2 * k).indices
        after = ranked[:, k:]
        return replace(routing, indices_TK=after)


def mixtures(model: Any) -> Iterator[Any]:
    """Every mixture with a router of its own: both of a product, the channel mixer elsewhere."""
    for layer in model.layers:
        mixer = layer.channel_mixer
        if hasattr(mixer, "second"):
            yield mixer.first
            yield mixer.second
        else:
            yield mixer


def mistaken(model: Any) -> Any:
    """A copy that sends every token to the next best experts."""
    wrong = copy.deepcopy(model)
    for mixture in mixtures(wrong):
        mixture.router = NextBest(mixture.router)
    return wrong


def measure(bench: Bench, seed: int, *, mixer: Mapping[str, Any], **options: Any) -> dict[str, float]:
    """Bits per byte, and by how much routing errors raise them."""
    trained = from_trunk(bench, seed, mixer=mixer, **options)
    right = trained.bits_per_byte
    with torch.no_grad():
        wrong = bench.evaluate(mistaken(trained.model)).mean
    return {"rise": wrong - right, "bits": right}


CLAIM = Claim(
    "Products of experts suffer less from routing errors.",
    "rise of bits per byte when every chosen expert is replaced by the next best", quantity="rise", tuned_by="bits",
    provided=(no_worse("bits", 0.01),),
    sides={"method": Side(measure, {"mixer": PRODUCT}, BALANCED),
           "baseline": Side(measure, {"mixer": PLAIN}, BALANCED)})
