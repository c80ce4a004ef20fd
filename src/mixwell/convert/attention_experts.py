"""Attention into experts: each key/value head with its query heads, chosen token by token behind a router.

**Equation:** the maps of attention stay as they are; experts and their masks are those of `sequence.attention_experts`,
    y_t = a sum_{g in I_t} w_tg W_o^g head_g(x_t). Router rows: zero (even), or N(0, 0.02) (drawn).
**Shapes:** qkv.weight [(H + 2 G) P, D] and out.weight [D, H P] are copied; router.weight [G, D] is new.
**Reference:** Qu et al. 2024, LLaMA-MoE v2 (2411.15708), section 3: 8 experts, 7 of them for a token, a = 4.
**Differs:** the paper's router starts at centroids of hidden states; here even or drawn. a is G unless said: with all
    experts on and an even start the function stays.
**Fails when:** nothing is trained behind it: keys of tokens routed elsewhere are gone.
**Cost:** a router a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from mixwell.convert._parts import ACCOUNT, dense_example, fresh_router, is_method, refuse_quantised
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.mixing import check_above

PLAIN, EXPERTS = "sequence.attention", "sequence.attention_experts"
TAKEN = ("num_heads", "num_kv_heads", "head_dim", "rope_theta", "rope_scaling", "bias")  # options of both
USUAL = {"qk_norm": "none", "rotary_dim": None, "clip_qkv": None, "sliding_window": None, "score_scale": None,
         "softcap": None, "sinks": False, "out_bias": None}  # those that only plain attention has, as they must be


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of turning attention into experts."""

    k: int = 2  # experts a token works in, at least 1
    scale: float | None = None  # a, above 0; default G
    start: Literal["even", "drawn"] = "drawn"  # the router's rows: all zero, or random
    balance: Mapping[str, Any] = field(default_factory=lambda: {"switch": 0.01})  # rule -> coefficient
    layers: tuple[int, ...] | None = None  # which, from 0; default all with plain attention

    def __post_init__(self) -> None:
        check_above(self, k=0, scale=0)


def promises(config: Config) -> dict[str, float]:
    """Nothing: whether all experts are on is the model's number of them."""
    return {}


@method(
    title="Attention into experts",
    paper="LLaMA-MoE v2: Exploring Sparsity of LLaMA from Perspective of Mixture-of-Experts with Post-Training",
    year=2024,
)
def attention_experts(checkpoint: Checkpoint, config: Config, generator: torch.Generator) -> Checkpoint:
    """Route each token to some of its layer's groups of heads.

    Raises `MixwellError` where attention has what experts could not copy, a named layer has none, k is more than there
    are groups, or weights are quantised.
    """
    refuse_quantised(checkpoint.tensors, "making experts of attention")
    specs = mixers(checkpoint.arch)
    made: dict[str, Tensor] = {}
    for layer in _chosen(specs, config):
        spec = specs[layer]
        _check_plain(spec, layer)
        groups = _groups(spec, checkpoint.arch)
        if config.k > groups:
            raise MixwellError(f"k is {config.k}; layer {layer} has {groups} key/value heads to make experts of.")
        router = fresh_router({"method": "top_k", "k": config.k}, int(checkpoint.arch["dim"]), groups, generator)
        for name, value in router.state_dict().items():
            even = config.start == "even"
            made[f"layers.{layer}.sequence_mixer.router.{name}"] = torch.zeros_like(value) if even else value
        specs[layer] = _routed(spec, config)
    alike = all(spec == specs[0] for spec in specs)
    arch = {**checkpoint.arch, "sequence_mixer": specs[0] if alike else specs, "architecture": "auto"}
    account: dict[str, Any] = {"used": [], "dropped": {}}
    return checkpoint.derive(arch=arch, tensors={**checkpoint.tensors, **made}, record={ACCOUNT: account})


def mixers(arch: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The sequence mixer's options of each layer."""
    spec = arch.get("sequence_mixer", {"method": PLAIN})
    listed = [spec] * int(arch["num_layers"]) if isinstance(spec, Mapping) else spec
    return [dict(one) for one in listed]


def _chosen(specs: list[dict[str, Any]], config: Config) -> list[int]:
    plain = [layer for layer, spec in enumerate(specs) if is_method(spec, PLAIN)]
    if not plain:
        raise MixwellError("no layer has plain attention to make experts of.")
    wanted = plain if config.layers is None else list(config.layers)
    for layer in wanted:
        if layer not in plain:
            raise MixwellError(f"layers names {layer}; expected layers with plain attention among {plain}.")
    return wanted


def _check_plain(spec: Mapping[str, Any], layer: int) -> None:
    for option, usual in USUAL.items():
        found = spec.get(option, usual)
        if found != usual:
            raise MixwellError(f"layer {layer} has attention with {option} = {found!r}; experts are made of heads "
                               f"with {usual!r}.")


def _groups(spec: Mapping[str, Any], arch: Mapping[str, Any]) -> int:
    """Key/value heads of a layer, which the model states where the layer does not."""
    stated = {**arch, **spec}
    return int(stated.get("num_kv_heads") or stated["num_heads"])


def _routed(spec: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """The options of a layer after the conversion."""
    taken = {option: spec[option] for option in TAKEN if option in spec}
    routed = {"method": EXPERTS, **taken, "router": {"method": "top_k", "k": config.k}, "balance": dict(config.balance)}
    if config.scale is not None:
        routed["scale"] = config.scale
    return routed


def example(generator: torch.Generator) -> dict[str, Any]:
    """A dense model of two layers, width six."""
    checkpoint = dense_example(generator)
    arch = {**checkpoint.arch, "num_heads": 2, "head_dim": 4}
    return {"checkpoint": checkpoint.derive(arch=arch), "config": Config(k=1), "generator": generator}
