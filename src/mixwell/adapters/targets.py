"""Places of a model at which an adapter can stand, chosen by patterns of their canonical names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeVar

import torch
from torch import Tensor, nn

from mixwell.core.errors import MixwellError, shown, suggest

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

    @property
    def tensor(self) -> Tensor:
        """The weight itself, [O, I] or a stack [E, O, I]."""
        weight: Tensor = getattr(self.owner, self.attribute)
        return weight

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return tuple(self.tensor.shape)

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
        if weight.dtype == torch.int8:
            return weight * getattr(self.owner, f"{self.attribute}_scale")
        wide = torch.promote_types(weight.dtype, torch.float32)
        return weight.to(wide)


def fits(name: str, pattern: str) -> bool:
    """Whether a pattern fits a name: the whole name, its end behind a dot, `*` and `?` as in file names, or `re:...`.

    A `.weight` at the end of a name need not be written.
    """
    if pattern == EVERY:
        return True
    return any(_fits(written, pattern) for written in (name, name.removesuffix(_WEIGHT)))


def _fits(name: str, pattern: str) -> bool:
    if pattern.startswith(REGEX):
        return re.fullmatch(pattern.removeprefix(REGEX), name) is not None
    if any(sign in pattern for sign in "*?["):
        return fnmatchcase(name, pattern)
    return name == pattern or name.endswith(f".{pattern}")


def first_fit(name: str, patterns: Mapping[str, V], default: V) -> V:
    """The value of the first pattern that fits."""
    return next((value for pattern, value in patterns.items() if fits(name, pattern)), default)


def find(model: nn.Module, patterns: Sequence[str], whole: bool = False) -> list[Target]:
    """The targets that one of the patterns fits, in the model's order; with `whole`, layers instead of weights.

    A pattern that fits none raises `MixwellError`.
    """
    there = list(_layers(model) if whole else _weights(model))
    for pattern in patterns:
        _check_pattern(pattern)
        if not any(fits(target.name, pattern) for target in there):
            raise _none_fits(model, pattern, there)
    return [target for target in there if any(fits(target.name, pattern) for pattern in patterns)]


def _check_pattern(pattern: str) -> None:
    try:
        re.compile(pattern.removeprefix(REGEX) if pattern.startswith(REGEX) else "")
    except re.error as error:
        raise MixwellError(f"targets: {shown(pattern)} is no regular expression ({error}).") from error


def _none_fits(model: nn.Module, pattern: str, there: Sequence[Target]) -> MixwellError:
    names = [target.name for target in there]
    others = [name for name, _ in model.named_parameters() if fits(name, pattern)]
    if others:
        return MixwellError(f"targets: {shown(pattern)} fits {others[0]}, which is not multiplied as a plain matrix "
                            f"where it stands, so no change can stand beside it. Weights here: {_listed(names)}.")
    near = suggest(pattern, [*names, *(name.rpartition(".")[2] for name in names)])
    return MixwellError(f"targets: nothing in the model fits {shown(pattern)}.{near} Here are: {_listed(names)}.")


def _listed(names: Sequence[str]) -> str:
    """The names outside layers and those of the first layer, which the others repeat."""
    first = [name for name in names if not re.match(r"layers\.[1-9]", name)]
    return ", ".join(first) or "none"


def _weights(model: nn.Module) -> Iterator[Target]:
    """Every weight that its layer reads by `weight_of`."""
    apart = getattr(model, "read_directly", ())
    for path, owner in model.named_modules():
        for attribute in getattr(owner, "packable", ()):
            name = f"{path}.{attribute}" if path else attribute
            if isinstance(getattr(owner, attribute, None), Tensor) and name not in apart:
                yield Target(name, owner, attribute, _site(model, path))


def _layers(model: nn.Module) -> Iterator[Target]:
    for path, owner in model.named_modules():
        if path and not isinstance(owner, nn.ModuleList):
            yield Target(path, owner, site=_site(model, path))


def _site(model: nn.Module, path: str) -> nn.Module | None:
    """The mixer layers.{i}.{mixer} that a module is or belongs to; None outside the layers."""
    found = re.match(r"layers\.\d+\.\w+", path)
    return None if found is None else model.get_submodule(found[0])
