"""Sparse upcycling: a dense model's feed-forward blocks become mixtures of copies of themselves behind a new router.

**Equation:** E_i = MLP for every i = 1..E, a fresh router; with weights that sum to 1 over the chosen experts
    y = sum_i w_i E_i(x) = MLP(x): the function is the dense one at step 0.
    Drop-Upcycling: for each expert, a random share r of the hidden indices is drawn anew;
    those rows of W_gate and W_up and columns of W_down come from N(mean, std^2) of the weights they replace;
    r = 0 is plain upcycling.
    Virtual groups: experts are slices of F / G hidden units with G W_down; the G slices of a copy share a router row.
**Shapes:** gate_up_proj [2 F, D] -> [E, 2 F / G, D]; down_proj [D, F] -> [E, D, F / G]; the router's own beside.
**Reference:** Komatsuzaki et al. 2022 (2212.05055); He et al. 2024 (2410.07524), virtual groups; Vavre et al.
    2024 (2412.09952), section 3; Nakamura et al. 2025 (2502.19261), section 3.1 for partial re-initialisation.
**Differs:** layers are chosen by number (`layers`), not by half. Copies are views until they are written or trained.
    One set of units is drawn anew in all three matrices, as in the paper; its released code draws one for each.
    Virtual groups scale W_down alone by G (weights that sum to 1) or G E / k, in which y is linear; the source scales
    all matrices by a cube root, which holds roughly.
**Fails when:** the router does not renormalise (the output shrinks by the kept mass), or experts stay copies because
    training is too short.
**Cost:** E times the feed-forward bytes; no forward pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mixwell.convert._parts import (
    SPARSE,
    Rewrite,
    dense_example,
    dense_layers,
    expert_units,
    fresh_router,
    stacked,
    sums_to_one,
)
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.mixing import renormalises


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of upcycling."""

    num_experts: int = 8  # E, at least 2 and a multiple of granularity
    router: Mapping[str, Any] = field(default_factory=lambda: {"method": "top_k", "k": 2})  # method and its options
    balance: Mapping[str, Any] | None = None  # rule -> coefficient; default as in experts.layers.moe
    layers: tuple[int, ...] | None = None  # which layers, from 0; default all that are dense
    reinitialise: float = 0.0  # r: share of each expert's hidden units drawn anew, 0 to 1
    # G: experts are slices of F / G hidden units; every G in a row make up one copy of the dense block and start with
    # one router row, so that a k that is a multiple of G takes whole copies
    granularity: int = 1
    noise: float = 0.0  # Gaussian noise on each expert, in units of the weights' own standard deviation, 0 or more

    def __post_init__(self) -> None:
        if self.num_experts < 2:
            raise ValueError(f"num_experts is {self.num_experts}; expected at least 2")
        if not 0 <= self.reinitialise <= 1:
            raise ValueError(f"reinitialise is {self.reinitialise}; expected 0 to 1")
        if self.noise < 0:
            raise ValueError(f"noise is {self.noise}; expected 0 or more")
        if self.granularity < 1 or self.num_experts % self.granularity:
            raise ValueError(f"granularity is {self.granularity} with {self.num_experts} experts; expected a divisor "
                             "of num_experts")
        if self.granularity > 1:
            check_whole_copies(self.router, self.granularity)


def check_whole_copies(router: Mapping[str, Any], granularity: int) -> None:
    """Raise `ValueError` for a router that would not take whole copies of the dense block."""
    method = router.get("method", "top_k")
    k = router.get("k", 2)
    if method != "top_k" or k % granularity:
        raise ValueError(f"router takes k = {k} by {method!r} with granularity {granularity}; expected top_k with a "
                         "multiple of granularity")


def promises(config: Config) -> dict[str, float]:
    """What the receipt must show: the same logits to rounding, wherever the copies are exact and renormalised."""
    exact = config.noise == 0 and config.reinitialise == 0
    if exact and sums_to_one(config.router):
        return {"max_logit_error": 1e-3, "kl_nats": 1e-6}
    return {}


def gained(config: Config) -> float:
    """Factor on W_down that makes up for weights that are spread over the G slices of each copy."""
    router = config.router
    slices = config.granularity
    if slices == 1:
        return 1.0
    k = router.get("k", 2)
    kept = 1.0 if renormalises(k, router.get("renormalise")) else k / config.num_experts
    return slices / kept


def slices(weights: tuple[Tensor, Tensor], count: int) -> list[tuple[Tensor, Tensor]]:
    """A block (gate above up [2 F, D], down [D, F]) as `count` blocks of F / `count` hidden units that sum to it.

    Raises `MixwellError` where the units do not fall into so many.
    """
    gate_up, down = weights
    hidden = down.shape[1]
    if hidden % count:
        raise MixwellError(f"{hidden} hidden units do not fall into {count} slices; expected a divisor.")
    parts = torch.arange(hidden).chunk(count)
    return [expert_units(gate_up, down, units) for units in parts]


def sparse_spec(config: Config, hidden_dim: int) -> dict[str, Any]:
    """The options of a layer after the conversion."""
    spec = {
        "method": SPARSE,
        "num_experts": config.num_experts,
        "hidden_dim": hidden_dim,
        "router": dict(config.router),
    }
    if config.balance is not None:
        spec["balance"] = dict(config.balance)
    return spec


def copies(weight: Tensor, num_experts: int) -> Tensor:
    """E views of one weight, stacked in front; no memory is taken."""
    return weight.unsqueeze(0).expand(num_experts, *weight.shape)


def perturb(weight_E: Tensor, std: float, generator: torch.Generator) -> Tensor:
    """Add Gaussian noise of `std` times the weights' standard deviation, another draw for each expert."""
    scale = std * weight_E.float().std()
    noise = scale * torch.randn(weight_E.shape, generator=generator)
    return (weight_E + noise).to(weight_E.dtype)


def reinitialise(gate_up_EFD: Tensor, down_EDF: Tensor, share: float,
                 generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw a share of each expert's hidden units anew from the mean and spread of the weights they replace."""
    gate_up = gate_up_EFD.clone()
    down = down_EDF.clone()
    experts, _, hidden = down.shape
    count = round(share * hidden)
    if count == 0:
        return gate_up, down
    for e in range(experts):
        units = torch.randperm(hidden, generator=generator)[:count]
        for rows in (units, units + hidden):  # of the gate, and of the up map below it
            gate_up[e, rows] = _like(gate_up[e, rows], generator)
        columns = down[e][:, units]
        down[e][:, units] = _like(columns, generator)
    return gate_up, down


def experts(gate_up: Tensor, down: Tensor, config: Config, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(gate_up_proj [E, 2 F / G, D], down_proj [E, D, F / G]) of a layer's experts, made from its dense weights."""
    if config.granularity == 1:
        gate_up_E, down_E = copies(gate_up, config.num_experts), copies(down, config.num_experts)
    else:
        times = config.num_experts // config.granularity
        parts = slices((gate_up, gained(config) * down), config.granularity)
        gate_up_E, down_E = stacked(parts * times)
    if config.reinitialise:
        gate_up_E, down_E = reinitialise(gate_up_E, down_E, config.reinitialise, generator)
    if config.noise:
        gate_up_E = perturb(gate_up_E, config.noise, generator)
        down_E = perturb(down_E, config.noise, generator)
    return gate_up_E, down_E


def _tie_slices(router: Any, granularity: int) -> None:
    """Give the slices of one copy the same row, so that they are chosen together."""
    rows = router.weight.detach()
    tied = rows[::granularity].repeat_interleave(granularity, 0)
    router.weight = torch.nn.Parameter(tied)


def _like(weight: Tensor, generator: torch.Generator) -> Tensor:
    values = weight.float()
    draw = torch.randn(weight.shape, generator=generator)
    drawn = draw * values.std() + values.mean()
    return drawn.to(weight.dtype)


@method(
    title="Sparse upcycling",
    paper=(
        "Llama 3 Meets MoE: Efficient Upcycling",
        "Drop-Upcycling: Training Sparse Mixture of Experts with Partial Re-initialization",
    ),
    year=2022,
)
def upcycle(checkpoint: Checkpoint, config: Config, generator: torch.Generator) -> Checkpoint:
    """Turn dense layers into mixtures of their copies.

    Raises `MixwellError` where a named layer is not there or not dense, or weights are quantised.
    """
    work = Rewrite(checkpoint, "upcycling")
    first: Any = None
    for layer in dense_layers(work.specs, config.layers, "upcycling"):
        gate_up, down = work.take_block(layer)
        made = experts(gate_up, down, config, generator)
        work.put_block(layer, made)
        _, dim, hidden = made[1].shape
        router = fresh_router(config.router, dim, config.num_experts, generator, first)
        first = first or router
        if config.granularity > 1:
            _tie_slices(router, config.granularity)
        work.put_router(layer, router)
        work.specs[layer] = sparse_spec(config, hidden)
    return work.result()


def example(generator: torch.Generator) -> dict[str, Any]:
    """A dense model of two layers, width six, hidden width five."""
    checkpoint = dense_example(generator, 5)
    return {"checkpoint": checkpoint, "config": Config(num_experts=4), "generator": generator}
