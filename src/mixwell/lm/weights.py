"""Tensors into a network and out of it, under their canonical names.

An int8 weight is two tensors: integers under the weight's name, and their scale under that name with `SCALE` behind.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mixwell.core.config import from_dict
from mixwell.core.errors import MixwellError
from mixwell.kernels.rates import compute_dtype
from mixwell.lm.config import ModelConfig
from mixwell.lm.network import Network

DTYPES = {"fp32": torch.float32, "float32": torch.float32, "bf16": torch.bfloat16, "bfloat16": torch.bfloat16,
          "fp64": torch.float64, "float64": torch.float64}
SCALE = ".scale"  # companion of an int8 tensor: weight = int8 * scale, float32 [..., rows, 1]

N = TypeVar("N", bound=Network)


def skeleton(kind: type[N], arch: Mapping[str, Any]) -> N:
    """A network of `arch` that has names and shapes and no numbers yet."""
    config = from_dict(ModelConfig, arch)
    with torch.device("meta"):
        return kind(config)


def shapes(network: Network) -> dict[str, tuple[int, ...]]:
    """Canonical names and shapes of a network's tensors, int8 ones left aside."""
    state = network.state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def fill(network: Network, tensors: Mapping[str, Tensor], dtype: torch.dtype | str = "auto") -> None:
    """Put copies of `tensors` into a `skeleton`; int8 ones stay int8 and are scaled on use.

    `dtype`: the type to compute in; "auto" keeps the one that the tensors are stored in where it is quick here. A
    tensor that is missing, left over or misshapen raises `MixwellError`.
    """
    wanted, stored = shapes(network), set(tensors)
    _check_names(set(wanted), stored)
    compute = _compute_dtype(dtype, tensors)
    for name, shape in wanted.items():
        tensor = tensors[name]
        found = tuple(tensor.shape)
        if found != shape:
            raise MixwellError(f"checkpoint: {name} has shape {list(found)}; its arch asks for {list(shape)}.")
        companion = name + SCALE
        scale = tensors[companion] if companion in stored else None
        _place(network, name, tensor, scale, compute)
    network.cast(compute)


def _check_names(wanted: set[str], stored: set[str]) -> None:
    scales = {name + SCALE for name in wanted}
    for name in sorted(wanted - stored):
        raise MixwellError(f"checkpoint: {name} is missing.")
    for name in sorted(stored - wanted - scales):
        raise MixwellError(f"checkpoint: {name} has no place in this architecture; it would be dropped.")


def _compute_dtype(dtype: torch.dtype | str, tensors: Mapping[str, Tensor]) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        stored = tensors["embed.weight"].dtype
        if stored == torch.bfloat16:
            return compute_dtype()
        return stored if stored == torch.float64 else torch.float32
    if dtype not in DTYPES:
        raise MixwellError(f"dtype {dtype!r} is not known; expected auto, {', '.join(DTYPES)} or a torch type.")
    return DTYPES[dtype]


def _place(network: Network, name: str, tensor: Tensor, scale: Tensor | None, dtype: torch.dtype) -> None:
    """Put a copy of `tensor` where the network has `name`."""
    _check_scale(name, tensor, scale)
    owner_name, _, attribute = name.rpartition(".")
    owner = network.get_submodule(owner_name)
    copy = tensor.detach().clone()
    if attribute not in owner._parameters:
        owner._buffers[attribute] = copy
        return
    owner._parameters[attribute] = nn.Parameter(copy, requires_grad=scale is None)
    if scale is not None:
        _add_scale(owner, attribute, scale.clone(), dtype)


def _check_scale(name: str, tensor: Tensor, scale: Tensor | None) -> None:
    whole = tensor.dtype == torch.int8
    if whole != (scale is not None):
        found = "without" if scale is None else "with"
        raise MixwellError(f"checkpoint: {name} is {tensor.dtype} {found} {name + SCALE}; expected int8 with it, or a "
                           "floating type without.")


def _add_scale(owner: nn.Module, attribute: str, scale: Tensor, dtype: torch.dtype) -> None:
    """Beside the weight where the layer computes from int8 itself; else the weight reads as a floating one."""
    if attribute in getattr(owner, "packable", ()):
        owner.register_buffer(f"{attribute}_scale", scale)
        return
    if getattr(owner, "keep_float32", False):
        dtype = torch.promote_types(dtype, torch.float32)
    parametrize.register_parametrization(owner, attribute, _Scaled(scale, dtype), unsafe=True)


class _Scaled(nn.Module):
    """int8 weights as their type of use; the sum of products is taken in that type."""

    scale: Tensor

    def __init__(self, scale: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.dtype = dtype

    def forward(self, weight: Tensor) -> Tensor:
        wide = weight * self.scale
        return wide.to(self.dtype)


def tensors_of(network: Network) -> dict[str, Tensor]:
    """The network's tensors by their canonical names; they share its memory."""
    state = network.state_dict()
    return {_canonical(name, state): tensor.detach() for name, tensor in state.items()}


def _canonical(name: str, state: Mapping[str, Tensor]) -> str:
    """A tensor's canonical name, from its name in torch's `state`.

    torch keeps a parametrized weight X as parametrizations.X.original, and its scale as parametrizations.X.0.scale.
    """
    head, found, rest = name.partition("parametrizations.")
    if found:
        attribute, part = rest.split(".", 1)
        return head + attribute + ("" if part == "original" else SCALE)
    scaled = name.removesuffix("_scale")
    whole = scaled in state and state[scaled].dtype == torch.int8
    if scaled != name and whole:
        return scaled + SCALE
    return name
