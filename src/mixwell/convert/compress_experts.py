"""Compressed experts: a mixture's lesser activated experts become three vectors each, ready to be trained.

**Equation:** experts.layers.compressed_experts with the mixture's own router and experts and vectors of ones: each
    token's M experts of largest weight run, weighted as before, and the other K - M run no more.
**Shapes:** none changes; into_gate, into_up [E, D] and hidden_scale [E, F] come beside.
**Reference:** He et al. 2025, Efficiently Editing Mixture-of-Experts Models with Compressed Experts (2503.00634).
**Differs:** the vectors learn in a training stage behind this one, with all the rest as in the paper; one learning rate
    serves both, and small models would have vectors move faster.
**Fails when:** nothing is trained afterwards: this is then the mixture cut to M experts a token, their weights kept.
**Cost:** none; no forward pass. FLOPs of the experts fall to about M / K.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from mixwell.convert._parts import Rewrite, mixture_layers, sparse_example, top_k
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.mixing import check_least

COMPRESSED = "experts.layers.compressed_experts"
DOING = "compressing experts"
KEPT = ("num_experts", "hidden_dim", "router", "balance")  # options that both layers have
UNTOUCHED = ("method", "clamp", "alpha", "overflow")  # that say nothing where no other option does


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of compressing experts."""

    main: int = 1  # M: experts a token that still run, at least 1 and below the router's k
    layers: tuple[int, ...] | None = None  # which layers, from 0; default all mixtures

    def __post_init__(self) -> None:
        check_least(self, main=1)


def promises(config: Config) -> dict[str, float]:
    """Nothing: experts that run no more are missed."""
    return {}


def compressed_spec(spec: Mapping[str, Any], layer: int, main: int) -> dict[str, Any]:
    """The options of a layer whose lesser experts are vectors.

    Raises `MixwellError` where as few experts run already, or the mixture has what compressed experts lack.
    """
    k = top_k(spec, layer, DOING)
    if main >= k:
        raise MixwellError(f"layer {layer} activates {k} experts a token; expected main below that, got {main}.")
    for option, value in spec.items():
        if value and option not in KEPT + UNTOUCHED:
            raise MixwellError(f"layer {layer} has {option} = {value!r}, which compressed experts lack; {DOING} takes "
                               "mixtures without.")
    router = spec.get("router") or {"method": "top_k"}
    kept = {option: spec[option] for option in KEPT if option in spec}
    return {**kept, "method": COMPRESSED, "router": {"k": k, **router}, "main": main}


@method(
    title="Compressing experts into vectors",
    paper="Efficiently Editing Mixture-of-Experts Models with Compressed Experts",
    year=2025,
)
def compress_experts(checkpoint: Checkpoint, config: Config, generator: torch.Generator) -> Checkpoint:
    """Replace lesser activated experts by vectors of ones. Draws nothing from `generator`.

    Raises `MixwellError` where a layer cannot be compressed, see `compressed_spec`, or weights are quantised.
    """
    work = Rewrite(checkpoint, DOING)
    for layer in mixture_layers(work.specs, config.layers, DOING):
        gate_up, down = work.take_block(layer)
        work.put_block(layer, (gate_up, down))
        experts, dim, hidden = down.shape
        for name in ("into_gate", "into_up"):
            work.put(layer, name, gate_up.new_ones(experts, dim))
        work.put(layer, "hidden_scale", down.new_ones(experts, hidden))
        work.specs[layer] = compressed_spec(work.specs[layer], layer, config.main)
    return work.result()


def example(generator: torch.Generator) -> dict[str, Any]:
    """A model of two mixtures of four experts, of whose two activated ones one still runs."""
    return {"checkpoint": sparse_example(generator), "config": Config(main=1), "generator": generator}
