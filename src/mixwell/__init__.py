"""mixwell: mixtures in machine learning. Components, weights over them, and a rule that combines them."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
_PUBLIC = {
    "load": ("mixwell.run.paths", "load"),
    "apply": ("mixwell.run.apply", "apply"),
    "export": ("mixwell.run.export", "export"),
    "register_experts": ("mixwell.transformers.experts", "register_experts"),
    "pack_experts": ("mixwell.transformers.experts", "pack_experts"),
}


def __getattr__(name: str) -> Any:
    # Torch takes a second to import; nothing here needs it until it is used.
    if name not in _PUBLIC:
        raise AttributeError(f"module 'mixwell' has no attribute {name!r}")
    import importlib

    module, attribute = _PUBLIC[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*_PUBLIC, "__version__"])
