"""Fewer active experts: the same weights, a smaller k at run time, with the loss that it costs on the receipt.

**Equation:** k' < k experts of highest score; weights w_i = p_i / sum over the k' chosen, or p_i as they are (then the
    mass of those left out is lost). With `mass` the k' of a layer is the smallest whose experts carry that share of
    the k chosen ones' weight on average over the text.
**Shapes:** none changes.
**Reference:** Huang et al. 2024 (2403.07652) and Lu et al. 2024 (2402.14800, dynamic skipping) take fewer experts where
    the first ones dominate; a fixed smaller k is the plainest form.
**Differs:** k' is chosen for each layer, not for each token.
**Fails when:** the load of a token is spread evenly over its experts.
**Cost:** none; FLOPs of the experts fall to k' / k.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.convert._parts import Rewrite, mixture_layers, smallest_k, sparse_example, top_k
from mixwell.convert.calibration import Calibration, Needs
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.mixing import check_above, check_least, renormalises


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of fewer active experts."""

    k: int | None = None  # k', experts a token, at least 1
    mass: float | None = None  # in place of k: share of the weight that is kept in each layer, above 0, up to 1
    renormalise: bool | None = None  # weights of a token sum to 1; default: as before
    max_kl_nats: float | None = None  # promised: mean KL per token of the logits before and after, above 0
    layers: tuple[int, ...] | None = None  # which layers, from 0; default all mixtures
    tokens: int = 8192  # of text looked at, with mass

    def __post_init__(self) -> None:
        check_least(self, k=1, tokens=1)
        check_above(self, mass=0, max_kl_nats=0)
        if (self.k is None) == (self.mass is None):
            raise ValueError("give k or mass, one of the two")
        if (self.mass or 0) > 1:
            raise ValueError(f"mass is {self.mass}; expected at most 1")


def needs(config: Config) -> Needs:
    """Text, to see what the weights are, where k follows from them."""
    return Needs(tokens=0 if config.mass is None else config.tokens)


def promises(config: Config) -> dict[str, float]:
    """The loss that was agreed to, where one was."""
    return {} if config.max_kl_nats is None else {"kl_nats": config.max_kl_nats}


def mean_weights(checkpoint: Checkpoint, layers: list[int], calibration: Calibration) -> dict[int, Tensor]:
    """Mean weight of the first, second, .. expert of a token in each layer, float64 [K]."""
    found: dict[int, Tensor] = {}
    for seen in calibration.seen(checkpoint):
        for layer in layers:
            routing = seen[layer].routing
            assert routing is not None
            ordered = routing.weights_TK.double().sort(dim=1, descending=True).values
            found[layer] = found.get(layer, 0) + ordered.sum(0)
    return found


def with_fewer(spec: Mapping[str, Any], k: int, renormalise: bool | None) -> dict[str, Any]:
    """The options of a layer whose router takes `k` experts."""
    given = spec.get("router") or {"method": "top_k"}
    router = dict(given)
    kept = renormalise
    if kept is None:
        kept = renormalises(router.get("k", 2), router.get("renormalise"))
    router |= {"k": k, "renormalise": kept}
    if k == 1 and kept:
        router["constant"] = True
    return {**spec, "router": router}


@method(
    title="Fewer active experts",
    paper="Not All Experts are Equal: Efficient Expert Pruning and Skipping for Mixture-of-Experts Large Language "
          "Models",
    year=2024,
)
def fewer_active(checkpoint: Checkpoint, config: Config, generator: torch.Generator,
                 calibration: Calibration | None = None) -> Checkpoint:
    """Take fewer experts a token. Draws nothing from `generator`.

    Raises `MixwellError` where a layer takes no more than k already, or its router no fixed number.
    """
    work = Rewrite(checkpoint, "taking fewer experts")
    layers = mixture_layers(work.specs, config.layers, "taking fewer experts")
    weights: dict[int, Tensor] = {}
    if config.mass is not None:
        assert calibration is not None
        weights = mean_weights(checkpoint, layers, calibration)
    for layer in layers:
        spec = work.specs[layer]
        before = top_k(spec, layer, "taking fewer experts")
        k = config.k or smallest_k(weights[layer], config.mass or 1.0)
        if config.k and k >= before:
            raise MixwellError(f"layer {layer} takes {before} experts a token already; expected a k below.")
        if k < before:
            work.specs[layer] = with_fewer(spec, k, config.renormalise)
    return work.result()


def example(generator: torch.Generator) -> dict[str, Any]:
    """A model of two mixtures of four experts, of which one is taken."""
    return {"checkpoint": sparse_example(generator), "config": Config(k=1), "generator": generator}
