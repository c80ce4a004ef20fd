"""Places of a model at which an adapter can stand, chosen by patterns of their canonical names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeVar

import torch
from torch import Tensor, nn

from mixwell.core.errors import MixwellError, shown, suggest
from mixwell.kernels.adapted import bare
from mixwell.kernels.codes import CodedWeight
from mixwell.kernels.norm import wide
from mixwell.kernels.packing import weight_of

EVERY = "all-linear"  # the pattern that fits every weight
REGEX = "re:"  # before a pattern that is a regular expression
_WEIGHT = ".weight"  # may be left out behind a name

V = TypeVar("V")


@dataclass(frozen=True, eq=False)
class Target:
    """A weight that a layer multiplies with, or a layer as a whole."""

    name: str  # canonical: layers.0.sequence_mixer.qkv.weight, or layers.0.channel_mixer
    owner: nn.Module  # the layer
    attribute: str = ""  # the weight's name in its layer; "" for the layer as a whole
    site: nn.Module | None = None  # the mixer of the network that it belongs to, which is called with a `Context`
    model: nn.Module | None = None  # the network

    @property
    def tensor(self) -> Tensor:
        """The weight itself, [O, I] or a stack [E, O, I]."""
        weight: Tensor = getattr(self.owner, self.attribute)
        return weight

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        weight = self.tensor
        return tuple(self._coded().shape) if weight.dtype == torch.uint8 else tuple(weight.shape)

    def _coded(self) -> CodedWeight:
        found = bare(weight_of(self.owner, self.attribute))
        assert isinstance(found, CodedWeight)
        return found

    @property
    def stack(self) -> tuple[int, ...]:
        """(E,) for a stack of experts, () for one matrix."""
        return self.shape[:-2]

    @property
    def outputs(self) -> int:
        """O."""
        return self.shape[-2]

    @property
    def inputs(self) -> int:
        """I."""
        return self.shape[-1]

    @property
    def numbers(self) -> Tensor:
        """The weight in float32 or wider, without gradient; int8 ones scaled."""
        weight = self.tensor.detach()
        if weight.dtype == torch.uint8:
            return self._coded().dequantised(torch.float32)
        if weight.dtype == torch.int8:
            scale: Tensor = getattr(self.owner, f"{self.attribute}_scale")
            return weight * scale
        return wide(weight)


def fits(name: str, pattern: str) -> bool:
    """Whether a pattern fits a name: the whole name, its end behind a dot, `*` and `?` as in file names, or `re:...`.

    A `.weight` at the end of a name need not be written.
    """
    if pattern == EVERY:
        return True
    short = name.removesuffix(_WEIGHT)
    return _fits(name, pattern) or _fits(short, pattern)


def _fits(name: str, pattern: str) -> bool:
    if pattern.startswith(REGEX):
        expression = pattern.removeprefix(REGEX)
        return re.fullmatch(expression, name) is not None
    if any(sign in pattern for sign in "*?["):
        return fnmatchcase(name, pattern)
    return name == pattern or name.endswith(f".{pattern}")


def check_fits(option: str, patterns: Iterable[str], names: Sequence[str]) -> None:
    """Raise `MixwellError` for a pattern of an option that fits none of the targets' names."""
    there = _listed(names)
    for pattern in patterns:
        if not any(fits(name, pattern) for name in names):
            near = suggest(pattern, names)
            raise MixwellError(f"{option}: nothing that is adapted fits {shown(pattern)}.{near} Adapted are: {there}.")


def first_fit(name: str, patterns: Mapping[str, V], default: V) -> V:
    """The value of the first pattern that fits."""
    for pattern, value in patterns.items():
        if fits(name, pattern):
            return value
    return default


def find(model: nn.Module, patterns: Sequence[str], whole: bool = False) -> list[Target]:
    """The targets that one of the patterns fits, in the model's order; with `whole`, layers instead of weights.

    A pattern that fits none raises `MixwellError`.
    """
    if not patterns:
        raise MixwellError(f"targets: no pattern came; name weights or layers of the model, or take {EVERY}.")
    there = list(_layers(model) if whole else _weights(model))
    chosen: set[str] = set()
    for pattern in patterns:
        _check_pattern(pattern)
        own = [target.name for target in there if fits(target.name, pattern)]
        if not own:
            raise _none_fits(model, pattern, there)
        chosen.update(own)
    return [target for target in there if target.name in chosen]


def _check_pattern(pattern: str) -> None:
    if not pattern.startswith(REGEX):
        return
    expression = pattern.removeprefix(REGEX)
    try:
        re.compile(expression)
    except re.error as error:
        raise MixwellError(f"targets: {shown(pattern)} is no regular expression ({error}).") from error


def _none_fits(model: nn.Module, pattern: str, there: Sequence[Target]) -> MixwellError:
    names = [target.name for target in there]
    others = [name for name, _ in model.named_parameters() if fits(name, pattern)]
    if others:
        return MixwellError(f"targets: {shown(pattern)} fits {others[0]}, which is not multiplied as a plain matrix "
                            f"where it stands, so no change can stand beside it. Weights here: {_listed(names)}.")
    last = [name.removesuffix(_WEIGHT).rpartition(".")[2] for name in names]
    near = suggest(pattern, [*names, *last])
    return MixwellError(f"targets: nothing in the model fits {shown(pattern)}.{near} Here are: {_listed(names)}.")


def _listed(names: Sequence[str]) -> str:
    """The names outside layers and those of the first layer, which the others repeat."""
    first = [name for name in names if not re.match(r"layers\.[1-9]", name)]
    return ", ".join(first) or "none"


def _weights(model: nn.Module) -> Iterator[Target]:
    """Every weight that its layer reads by `weight_of`."""
    apart = getattr(model, "read_directly", ())
    for path, owner in model.named_modules():
        site = _site(model, path)
        for attribute in getattr(owner, "packable", ()):
            name = f"{path}.{attribute}".lstrip(".")
            weight = getattr(owner, attribute, None)
            if isinstance(weight, Tensor) and name not in apart:
                yield Target(name, owner, attribute, site, model)


def _layers(model: nn.Module) -> Iterator[Target]:
    for path, owner in model.named_modules():
        if path and not isinstance(owner, nn.ModuleList):
            site = _site(model, path)
            yield Target(path, owner, site=site, model=model)


def _site(model: nn.Module, path: str) -> nn.Module | None:
    """The mixer layers.{i}.{mixer} that a module is or belongs to; None outside the layers."""
    found = re.match(r"layers\.\d+\.\w+", path)
    return None if found is None else model.get_submodule(found[0])
