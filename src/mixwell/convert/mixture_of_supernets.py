"""A dense model of a chosen width folded out of blocks whose weights a router mixes by the width.

**Equation:** layer l keeps m_l hidden units: W_gate(z)[:m_l], W_up(z)[:m_l], W_down(z)[:, :m_l], z = m_l / F, each row
    a mixture of M trained weights; see experts.layers.supernet. At m = F the function is the one that the model had.
**Shapes:** gate_up_proj [M, 2 F, D] -> [2 m, D]; down_proj [M, D, F] -> [D, m].
**Reference:** Jawahar et al. 2024, Mixture-of-Supernets (2306.04845), sections 3.2 and 4.
**Differs:** the width is chosen by the caller; the paper searches for the best architecture under a latency.
**Fails when:** a width was not among those trained: the router then says something between its neighbours.
**Cost:** 6 M D m a layer; no forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from mixwell.convert._parts import DENSE, Rewrite, channel, is_method
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.experts.layers.supernet import folded, routed

SUPERNET = "experts.layers.supernet"
ROUTER = ("into", "into_bias", "out", "out_bias")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of folding a width."""

    # m: hidden units, one number for all layers or one for each, at least 1; None: all of them
    widths: int | tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        given = self.widths if isinstance(self.widths, tuple) else (self.widths,)
        for width in given:
            if width is not None and width < 1:
                raise ValueError(f"widths has {width}; expected at least 1")


def promises(config: Config) -> dict[str, float]:
    """The same function at full width; at others units go, and are missed."""
    if config.widths is None:
        return {"max_logit_error": 1e-3, "kl_nats": 1e-6}
    return {}


def widths_of(hidden: list[int], config: Config) -> list[int]:
    """The width of each layer; raises `MixwellError` for another number of them, or more units than there are."""
    if config.widths is None:
        return hidden
    count = len(hidden)
    given = list(config.widths) if isinstance(config.widths, tuple) else [config.widths] * count
    if len(given) != count:
        raise MixwellError(f"{len(given)} widths for {count} layers; give one for each, or one for all.")
    for layer, (width, most) in enumerate(zip(given, hidden)):
        if width > most:
            raise MixwellError(f"layer {layer} has {most} hidden units; expected a width of that at most, got {width}.")
    return given


@method(
    title="Dense models out of a mixture of supernets",
    paper="Mixture-of-Supernets: Improving Weight-Sharing Supernet Training with Architecture-Routed "
          "Mixture-of-Experts",
    year=2023,
)
def mixture_of_supernets(checkpoint: Checkpoint, config: Config, generator: torch.Generator) -> Checkpoint:
    """Fold every block at its width. Draws nothing from `generator`.

    Raises `MixwellError` where a layer is no block of mixed weights, or has fewer units.
    """
    work = Rewrite(checkpoint, "folding a supernet")
    for layer, spec in enumerate(work.specs):
        if not is_method(spec, SUPERNET):
            raise MixwellError(f"layer {layer} is {spec.get('method')}; expected {SUPERNET} in every layer.")
    hidden = [spec["hidden_dim"] for spec in work.specs]
    for layer, width in enumerate(widths_of(hidden, config)):
        gate_up_proj, down_proj = work.take_block(layer)
        router = [work.take(layer, f"architecture.{name}").float() for name in ROUTER]
        logits_R = routed(router, width / hidden[layer])
        block = folded(gate_up_proj, down_proj, logits_R, width)
        work.put_block(layer, block)
        work.specs[layer] = {"method": DENSE, "hidden_dim": width}
    return work.result()


def example(generator: torch.Generator) -> dict[str, Any]:
    """A model of two layers of eight units out of three weights, folded at four and at three."""
    mixer = {"method": SUPERNET, "hidden_dim": 8, "weights": 3, "router_dim": 5}
    shapes = {"gate_up_proj": (3, 16, 6), "down_proj": (3, 6, 8), "architecture.into": (5, 1),
              "architecture.into_bias": (5,), "architecture.out": (3 * 22, 5), "architecture.out_bias": (3 * 22,)}
    tensors = {}
    for layer in range(2):
        for name, shape in shapes.items():
            tensors[channel(layer, name)] = torch.randn(shape, generator=generator)
    checkpoint = Checkpoint({"num_layers": 2, "dim": 6, "channel_mixer": mixer}, tensors)
    return {"checkpoint": checkpoint, "config": Config(widths=(4, 3)), "generator": generator}
