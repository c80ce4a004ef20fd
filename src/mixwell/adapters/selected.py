"""The contract of methods that train some of a model's own numbers: which entries, and when.

A method says by `choose` which parameters are trained as they are and of which weights it trains rows or columns, and
by `turns` whether groups of these are trained in turn instead of all at every step. The rest is common: what is chosen
is trained in place, counted, saved and loaded by name, and taken back by `detach`, as any adapter is.

Rows and columns are `Slice`s beside the frozen weight that hold the numbers themselves, so that gradients, moments and
files are of their size, not the weight's.

Legend: O outputs, I inputs, K rows or columns that are trained, E experts; a stack has E in front.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mixwell.adapters._parts import WeightAdapter, full, listed, product
from mixwell.adapters.attached import Attached, Known, Standing, attach, check_free
from mixwell.adapters.targets import Target, find, fits
from mixwell.core.errors import MixwellError, shown, suggest
from mixwell.core.method import card
from mixwell.kernels.norm import LayerNorm, RMSNorm
from mixwell.kernels.packing import CHANGES

Axis = Literal["rows", "columns"]
AXES: dict[Axis, int] = {"rows": -2, "columns": -1}
OWN = "/"  # ends the name of a parameter that is trained as it is, in files
LAYER = re.compile(r"layers\.(\d+)\.")
NORMS = RMSNorm, LayerNorm, _BatchNorm, nn.LayerNorm, nn.GroupNorm
FUSED_ATTENTION, FUSED_BLOCK = "qkv.weight", "gate_up_proj"


@dataclass(frozen=True, eq=False)
class Entries:
    """Rows or columns of a weight."""

    axis: Axis
    indices: Tensor  # int64 [K], of a stack [E, K]


@dataclass(frozen=True)
class Chosen:
    """What is trained, by the names of parameters."""

    whole: tuple[str, ...] = ()
    slices: Mapping[str, Entries] = field(default_factory=dict)
    start: Mapping[str, Tensor] = field(default_factory=dict)  # values that some of `whole` begin with


class Slice(WeightAdapter):
    """Rows or columns of one weight, trained in place: W with W[K, :] or W[:, K] in numbers of its own.

    Rows bring their part of the layer's bias along.
    """

    parts = ("entries", "indices", "shifts")
    shifts: Tensor | None

    def __init__(self, target: Target, chosen: Entries) -> None:
        super().__init__(target, chosen)
        self.axis = chosen.axis
        self.dim = AXES[chosen.axis]
        indices = chosen.indices.to(target.tensor.device)
        self._check_inside(indices)
        self.register_buffer(chosen.axis, indices.clone())
        shape = list(target.shape)
        shape[self.dim] = indices.shape[-1]
        self.entries = nn.Parameter(torch.zeros(shape, device=target.tensor.device))
        self.register_parameter("shifts", None)
        if chosen.axis == "rows" and self._bias() is not None:
            self.shifts = nn.Parameter(torch.zeros(indices.shape, device=indices.device))

    def _check_inside(self, indices: Tensor) -> None:
        """Raise `MixwellError` for rows or columns that the weight has not."""
        name, most = self.target.name, self.target.shape[self.dim]
        outside = indices[(indices < 0) | (indices >= most)]
        for first in outside.flatten()[:1].tolist():
            raise MixwellError(f"{name} has {most} {self.axis}, and number {first} was chosen; the adapter was made "
                               "for another base.")

    @property
    def indices(self) -> Tensor:
        """Which rows or columns, [K] or [E, K]."""
        return self.get_buffer(self.axis)

    def _bias(self) -> Tensor | None:
        """The bias that the layer adds to this weight's product."""
        if self.target.attribute != "weight":
            return None
        found: Tensor | None = getattr(self.target.owner, "bias", None)
        return found

    @torch.no_grad()
    def begin(self) -> None:
        """Take the weight's numbers over."""
        weight = self.target.numbers
        if self.target.stack:
            pairs = zip(weight, self.indices)
            own = torch.stack([one.index_select(self.dim, kept) for one, kept in pairs])
        else:
            own = weight.index_select(self.dim, self.indices)
        self.entries.copy_(own)
        bias = self._bias()
        if self.shifts is not None and bias is not None:
            self.shifts.copy_(bias[self.indices])

    def _moved(self, weight: Any, entries: Tensor, indices: Tensor) -> Tensor:
        """How far the numbers are from the weight's own; 0 exactly where nothing was trained."""
        plain = weight.detach() if isinstance(weight, Tensor) else full(weight)
        own = plain.index_select(self.dim, indices)  # before it is widened: the weight may be large
        return entries - own.to(entries.dtype)

    def after(self, x: Tensor, y: Tensor, weight: Any, entries: Tensor, indices: Tensor,
              shifts: Tensor | None = None) -> Tensor:
        """The product with these rows or columns in the weight's place."""
        moved = self._moved(weight, entries, indices)
        if self.axis == "columns":
            seen = x.index_select(-1, indices)
            return y + product(seen, moved)
        change = product(x, moved)
        return y.index_add(-1, indices, change)

    def bias(self, bias: Tensor, weight: Any, entries: Tensor, indices: Tensor, shifts: Tensor | None = None) -> Tensor:
        """The bias with that of the rows in its place."""
        if shifts is None:
            return bias
        own = shifts.to(bias.dtype)
        return bias.index_copy(0, indices, own)

    def delta(self, weight: Tensor, entries: Tensor, indices: Tensor, shifts: Tensor | None = None) -> Tensor:
        """How far the weight moved: 0 but in these rows or columns."""
        moved = self._moved(weight, entries, indices)
        still = torch.zeros_like(weight)
        return still.index_copy(self.dim, indices, moved.to(weight.dtype))


class Selection:
    """A method that trains some of a model's own numbers; see the module's head."""

    targets: ClassVar[tuple[str, ...]] = ("*",)  # patterns of the parameters among which is chosen

    @classmethod
    def attach(cls, model: nn.Module, targets: Sequence[str] | str | None, config: Any,
               generator: torch.Generator | None = None, **given: Any) -> Attached:
        """Choose what is trained, freeze all else; see `mixwell.adapters.attached.attach`."""
        return attach(cls, model, targets, config, generator, **given)

    @classmethod
    def choose(cls, model: nn.Module, names: Sequence[str], config: Any, generator: torch.Generator) -> Chosen:
        """What of the parameters of these names is trained."""
        raise NotImplementedError

    @classmethod
    def turns(cls, names: Sequence[str], config: Any, generator: torch.Generator) -> tuple[tuple[str, ...], ...]:
        """Groups of what is trained as it is, of which each has its step; none where all is trained at every step."""
        return ()

    @classmethod
    def stands(cls, model: nn.Module, targets: Sequence[str] | str | None, config: Any, generator: torch.Generator,
               known: Known) -> Standing:
        """What was chosen, or what the tensors that follow say was."""
        if known.held is None:
            names = _among(model, listed(cls.targets if targets is None else targets))
            chosen = cls.choose(model, names, config, generator)
        else:
            chosen = _held(known.held)
        method = card(cls).name
        if not chosen.whole and not chosen.slices:
            raise MixwellError(f"{method}: nothing of the model was chosen to be trained; widen targets or shares.")
        groups = cls.turns(chosen.whole, config, generator)
        slices = _slices(model, chosen.slices)
        return Standing(method, config, slices, chosen.whole, groups, chosen.start)


def _slices(model: nn.Module, chosen: Mapping[str, Entries]) -> dict[str, Slice]:
    if not chosen:
        return {}
    found = {}
    for target in find(model, list(chosen)):
        if target.name in chosen:
            check_free(target)
            found[target.name] = Slice(target, chosen[target.name])
    return found


def _held(tensors: Mapping[str, Tensor]) -> Chosen:
    """What was chosen when these tensors were saved."""
    whole = [name.removesuffix(OWN) for name in tensors if name.endswith(OWN)]
    slices: dict[str, Entries] = {}
    for key in tensors:
        name, _, part = key.rpartition(OWN)
        for axis in AXES:
            if part == axis:
                slices[name] = Entries(axis, tensors[key])
    return Chosen(tuple(whole), slices)


def _among(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Names of the parameters that one of the patterns fits; one that fits none raises `MixwellError`."""
    own = [name for name, _ in model.named_parameters() if CHANGES not in name.split(".")]
    chosen: set[str] = set()
    for pattern in patterns:
        fitting = [name for name in own if fits(name, pattern)]
        if not fitting:
            near = suggest(pattern, own)
            raise MixwellError(f"targets: no parameter of the model fits {shown(pattern)}.{near}")
        chosen.update(fitting)
    named = [name for name in own if name in chosen]
    for name in named:
        if not model.get_parameter(name).is_floating_point():
            raise MixwellError(f"{name} is quantised, so it cannot be trained in place; take the full model, or an "
                               "adapter beside it.")
    return named


def fused(target: Target) -> dict[str, range]:
    """The matrices that stand below each other in a weight, by name, and their rows; one where it is no fused one.

    Query, key and value of attention, gate and up of a feed-forward block.
    """
    name, outputs = target.name, target.outputs
    if name.endswith(FUSED_ATTENTION) and hasattr(target.site, "kv_heads"):
        mixer: Any = target.site
        queries = mixer.heads * mixer.width
        keys = queries + mixer.kv_heads * mixer.width
        return {"q": range(queries), "k": range(queries, keys), "v": range(keys, outputs)}
    if name.endswith(FUSED_BLOCK):
        half = outputs // 2
        return {"gate": range(half), "up": range(half, outputs)}
    return {"": range(outputs)}


def layer_of(name: str) -> int | None:
    """Number of the layer that a parameter belongs to; None outside the layers."""
    found = LAYER.match(name)
    return None if found is None else int(found[1])


def stacked(target: Target, indices: Tensor) -> Tensor:
    """The same rows or columns [K] of every expert of a stack, [E, K]; as they are for one matrix."""
    if not target.stack:
        return indices
    alike = indices.expand(*target.stack, -1)
    return alike.clone()


def norms_of(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Those of the named parameters that belong to norms: gains, and shifts where there are some."""
    found: set[int] = set()
    for module in model.modules():
        if isinstance(module, NORMS):
            own = module.parameters(recurse=False)
            found.update(id(parameter) for parameter in own)
    own_names = dict(model.named_parameters())
    return [name for name in names if id(own_names[name]) in found]
