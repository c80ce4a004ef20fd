"""Sparse upcycling: a dense model's feed-forward blocks become mixtures of copies of themselves behind a new router.

**Equation:** E_i = MLP for every i = 1..E, a fresh router; with weights that sum to 1 over the chosen experts
    y = sum_i w_i E_i(x) = MLP(x): the function is the dense one at step 0.
    Drop-Upcycling: for each expert, a random share r of the hidden indices is drawn anew;
    those rows of W_gate and W_up and columns of W_down come from N(mean, std^2) of the weights they replace;
    r = 0 is plain upcycling.
**Shapes:** gate_up_proj [2 F, D] -> [E, 2 F, D]; down_proj [D, F] -> [E, D, F]; the router's own tensors beside.
**Reference:** Komatsuzaki et al. 2022 (2212.05055); He et al. 2024 (2410.07524) for top-k renormalised; Vavre et al.
    2024 (2412.09952), section 3; Nakamura et al. 2025 (2502.19261), section 3.1 for partial re-initialisation.
**Differs:** layers are chosen by number (`layers`), not by half. Copies are views until they are written or trained.
**Fails when:** the router does not renormalise (the output shrinks by the kept mass), or experts stay copies because
    training is too short.
**Cost:** E times the feed-forward bytes; no forward pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mixwell.convert._parts import DENSE, SPARSE, channel, is_method, refuse_quantised
from mixwell.core.checkpoint import Checkpoint, channel_mixers, with_channel_mixers
from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.mixing import build_router, renormalises


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of upcycling."""

    num_experts: int = 8  # E, at least 2
    router: Mapping[str, Any] = field(default_factory=lambda: {"method": "top_k", "k": 2})  # method and its options
    balance: Mapping[str, Any] | None = None  # rule -> coefficient; default as in experts.layers.moe
    layers: tuple[int, ...] | None = None  # which layers, from 0; default all that are dense
    reinitialise: float = 0.0  # r: share of each expert's hidden units drawn anew, 0 to 1
    noise: float = 0.0  # Gaussian noise on each expert, in units of the weights' own standard deviation, 0 or more

    def __post_init__(self) -> None:
        if self.num_experts < 2:
            raise ValueError(f"num_experts is {self.num_experts}; expected at least 2")
        if not 0 <= self.reinitialise <= 1:
            raise ValueError(f"reinitialise is {self.reinitialise}; expected 0 to 1")
        if self.noise < 0:
            raise ValueError(f"noise is {self.noise}; expected 0 or more")


def sums_to_one(router: Mapping[str, Any]) -> bool:
    """Whether a token's weights are known to sum to 1, so that copies of one function give that function."""
    if router.get("method", "top_k") != "top_k" or router.get("scale", 1.0) != 1.0:
        return False
    return renormalises(router.get("k", 2), router.get("renormalise"))


def promises(config: Config) -> dict[str, float]:
    """What the receipt must show: the same logits to rounding, wherever the copies are exact and renormalised."""
    exact = config.noise == 0 and config.reinitialise == 0
    if exact and sums_to_one(config.router):
        return {"max_logit_error": 1e-3, "kl_nats": 1e-6}
    return {}


def chosen_layers(specs: Sequence[Mapping[str, Any]], config: Config) -> list[int]:
    """The layers to upcycle: those named, else all that are dense.

    Raises `MixwellError` where there is none, or a named one is not there or not dense.
    """
    dense = [layer for layer, spec in enumerate(specs) if is_method(spec, DENSE)]
    for layer in dense:
        _check_plain(specs[layer], layer)
    chosen = dense if config.layers is None else list(config.layers)
    if not chosen:
        raise MixwellError("no dense layer to upcycle: this model is a mixture already. Hand in a dense one.")
    for layer in chosen:
        if layer not in dense:
            raise MixwellError(f"layers names {layer}; expected dense layers among 0 to {len(specs) - 1}.")
    return chosen


def _check_plain(spec: Mapping[str, Any], layer: int) -> None:
    """Refuse a dense block that experts, gated by silu and without biases, could not copy."""
    usual = {"activation": "silu", "gated": True, "bias": False}
    for option, value in usual.items():
        found = spec.get(option, value)
        if found != value:
            raise MixwellError(f"layer {layer} has a dense block with {option} = {found!r}; upcycling takes "
                               f"{value!r} only.")


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


def _experts(tensors: Mapping[str, Tensor], layer: int, config: Config,
             generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(gate_up_proj, down_proj) of a layer's experts, made from its dense weights."""
    gate_up = copies(tensors[channel(layer, "gate_up_proj")], config.num_experts)
    down = copies(tensors[channel(layer, "down_proj")], config.num_experts)
    if config.reinitialise:
        gate_up, down = reinitialise(gate_up, down, config.reinitialise, generator)
    if config.noise:
        gate_up = perturb(gate_up, config.noise, generator)
        down = perturb(down, config.noise, generator)
    return gate_up, down


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
    refuse_quantised(checkpoint.tensors, "upcycling")
    specs = channel_mixers(checkpoint.arch)
    tensors = dict(checkpoint.tensors)
    first: Any = None
    for layer in chosen_layers(specs, config):
        gate_up, down = _experts(tensors, layer, config, generator)
        _, dim, hidden = down.shape
        tensors[channel(layer, "gate_up_proj")] = gate_up
        tensors[channel(layer, "down_proj")] = down
        router: Any = build_router(config.router, dim, config.num_experts, generator)
        first = first or router
        if router is not first:
            router.share(first)  # what routers keep in common over depth stands once, in the first layer
        for name, value in router.state_dict().items():
            tensors[channel(layer, f"router.{name}")] = value
        specs[layer] = sparse_spec(config, hidden)
    arch = with_channel_mixers(checkpoint.arch, specs)
    return checkpoint.derive(arch=arch, tensors=tensors)


def example(generator: torch.Generator) -> dict[str, Any]:
    """A dense model of two layers, width six, hidden width five."""
    dense = {"method": DENSE, "hidden_dim": 5}
    arch = {"num_layers": 2, "dim": 6, "channel_mixer": dense}
    tensors = {}
    for layer in range(2):
        tensors[channel(layer, "gate_up_proj")] = torch.randn(10, 6, generator=generator)
        tensors[channel(layer, "down_proj")] = torch.randn(6, 5, generator=generator)
    checkpoint = Checkpoint(arch, tensors)
    config = Config(num_experts=4)
    return {"checkpoint": checkpoint, "config": config, "generator": generator}
