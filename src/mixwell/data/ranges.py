"""Checks of options, one line each in a `Config`: what came, what was expected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def at_least(config: Any, least: float, *names: str) -> None:
    """Raise `ValueError` where one of these options is lower."""
    for name in names:
        value = getattr(config, name)
        if not value >= least:
            raise ValueError(f"{name} is {value}; expected at least {least:g}")


def above(config: Any, bound: float, *names: str) -> None:
    """Raise `ValueError` where one of these options is not above the bound."""
    for name in names:
        value = getattr(config, name)
        if not value > bound:
            raise ValueError(f"{name} is {value}; expected a number above {bound:g}")


def at_most(config: Any, most: float, *names: str) -> None:
    """Raise `ValueError` where one of these options is higher."""
    for name in names:
        value = getattr(config, name)
        if not value <= most:
            raise ValueError(f"{name} is {value}; expected at most {most:g}")


def below(config: Any, bound: float, *names: str) -> None:
    """Raise `ValueError` where one of these options is not below the bound."""
    for name in names:
        value = getattr(config, name)
        if not value < bound:
            raise ValueError(f"{name} is {value}; expected a number below {bound:g}")


def one_of(config: Any, name: str, choices: Sequence[str]) -> None:
    """Raise `ValueError` where an option is none of the choices."""
    value = getattr(config, name)
    if value not in choices:
        known = ", ".join(choices)
        raise ValueError(f"{name} is {value!r}; expected one of {known}")
