"""Parameters at their start, and the checks of configs that layers, routers and sequence mixers share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mixwell.core.rng import normal


def normal_parameter(shape: tuple[int, ...], generator: torch.Generator | None, std: float = 0.02) -> nn.Parameter:
    """A float32 parameter of normal draws."""
    return nn.Parameter(normal(shape, std, generator))


def check_least(config: Any, **least: float) -> None:
    """Raise `ValueError` for a field of `config` below its least value, or NaN; None is left alone."""
    for name, value, bound in _given(config, least):
        if not value >= bound:
            raise ValueError(f"{name} is {value}; expected at least {bound}")


def check_most(config: Any, **most: float) -> None:
    """Raise `ValueError` for a field of `config` above its largest value, or NaN; None is left alone."""
    for name, value, bound in _given(config, most):
        if not value <= bound:
            raise ValueError(f"{name} is {value}; expected at most {bound:g}")


def check_above(config: Any, **bounds: float) -> None:
    """Raise `ValueError` for a field of `config` that is not above its bound (NaN is not); None is left alone."""
    for name, value, bound in _given(config, bounds):
        if not value > bound:
            raise ValueError(f"{name} is {value}; expected a number above {bound}")


def check_below(config: Any, **bounds: float) -> None:
    """Raise `ValueError` for a field of `config` that is not below its bound (NaN is not); None is left alone."""
    for name, value, bound in _given(config, bounds):
        if not value < bound:
            raise ValueError(f"{name} is {value}; expected a number below {bound:g}")


def check_one_of(config: Any, **choices: Sequence[str]) -> None:
    """Raise `ValueError` for a field of `config` that is none of its choices."""
    for name, value, known in _given(config, choices):
        if value not in known:
            raise ValueError(f"{name} is {value!r}; expected one of {', '.join(known)}")


def _given(config: Any, bounds: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Name, value and bound of the fields that are not None."""
    for name, bound in bounds.items():
        value = getattr(config, name)
        if value is not None:
            yield name, value, bound


def check_not_negative(config: Any, *names: str) -> None:
    """Raise `ValueError` for a field of `config` that is not 0 or more (NaN is not)."""
    for name in names:
        value = getattr(config, name)
        if not value >= 0:
            raise ValueError(f"{name} is {value}; expected 0 or more")


def check_rate(config: Any, *names: str) -> None:
    """Raise `ValueError` for a field of `config` that is not 0 up to 1, 1 left out (NaN is not)."""
    for name in names:
        value = getattr(config, name)
        if not 0 <= value < 1:
            raise ValueError(f"{name} is {value}; expected 0 up to 1")
