"""Products of a whole model in few bits: a method of this family beside every weight, experts' each by itself.

`attach(model, "float8")` and `detach(model)`; a recipe's training does both (`train: {arithmetic: float8}`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mixwell.core import registry
from mixwell.core.config import from_dict
from mixwell.core.errors import MixwellError
from mixwell.kernels.packing import CHANGES
from mixwell.precision.training._parts import Product

FAMILY = "precision.training"


class Change:
    """A product in the place of a weight's own (`kernels.adapted.Change`), which is computed beside and left."""

    maps_input = False
    requires_grad = True

    def __init__(self, products: Sequence[nn.Module]) -> None:
        self._products = products

    def before(self, x: Tensor) -> Tensor:
        """Inputs as they are."""
        return x

    def after(self, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        """The method's own product."""
        (one,) = self._products
        result: Tensor = one(x, weight)
        return result

    def bias(self, bias: Tensor, weight: Tensor) -> Tensor:
        """The bias as it is."""
        return bias

    def __getitem__(self, expert: int | None) -> Change:
        if expert is None:
            return self
        own = self._products[expert]
        return Change([own])

    def unbind(self) -> list[Change]:
        """Of each expert."""
        return [Change([one]) for one in self._products]


class Beside(nn.Module):
    """What stands beside a weight: one product for a matrix, or one for each of a stack."""

    def __init__(self, products: Sequence[Product]) -> None:
        super().__init__()
        self.products = nn.ModuleList(products)

    def bound(self) -> Change:
        """What the layer's product asks for."""
        return Change(list(self.products))


def attach(model: nn.Module, method: str, options: Mapping[str, Any] | None = None,
           generator: torch.Generator | None = None) -> int:
    """Take every product of the model's blocks as `method` of this family does; returns how many matrices.

    Heads, embeddings, routers and norms stay as they are. A weight that is not float32, one that has something beside
    it already, and a model without any raise `MixwellError`, and nothing is attached.
    """
    entry = registry.find(method, FAMILY)
    config = from_dict(entry.module().Config, dict(options or {}), entry.name)
    draws = generator or torch.Generator().manual_seed(0)
    places = list(_places(model))
    if not places:
        raise MixwellError("the model has no product that could be taken in few bits.")
    for path, layer, name in places:
        weight = getattr(layer, name)
        _check(path, layer, weight)
    count, build = 0, entry.load()
    for _, layer, name in places:
        matrices = getattr(layer, name)
        stack = matrices if matrices.ndim == 3 else matrices.unsqueeze(0)
        shape = tuple(stack.shape[1:])
        products = [build(shape, config, draws) for _ in stack]
        held: Any = layer._modules.setdefault(CHANGES, nn.ModuleDict())
        held[name] = Beside(products)
        count += len(products)
    return count


def detach(model: nn.Module) -> None:
    """Take away what `attach` put there."""
    for layer in model.modules():
        held: Any = layer._modules.get(CHANGES) or {}
        beside = list(held.values())
        if beside and isinstance(beside[0], Beside):
            del layer._modules[CHANGES]


def _places(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Path, layer and attribute of every weight of the blocks that a layer's product reads."""
    for path, layer in model.named_modules():
        if not path.startswith("layers."):
            continue
        names: Sequence[str] = getattr(layer, "packable", ())
        for name in names:
            if name in layer._parameters:
                yield f"{path}.{name}", layer, name


def _check(path: str, layer: nn.Module, weight: Tensor) -> None:
    if weight.dtype != torch.float32:
        dtype = str(weight.dtype).removeprefix("torch.")
        raise MixwellError(f"{path} is {dtype}; products in few bits are emulated on float32 (dtype: fp32).")
    if CHANGES in layer._modules:
        raise MixwellError(f"{path} has an adapter beside it; merge or detach that one first.")
