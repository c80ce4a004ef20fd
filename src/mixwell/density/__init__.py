"""Densities mixed in probability space: mixture models, their fits, and what can be computed from them."""

from typing import Any

from mixwell.core.registry import room_names

_load, __dir__ = room_names(__name__)


def __getattr__(name: str) -> Any:
    return __dir__() if name == "__all__" else _load(name)  # `import *` asks for `__all__`
