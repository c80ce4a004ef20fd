"""Which models read pieces of several rows side by side, and how much memory their rows get."""

from __future__ import annotations

from typing import Any

from torch import nn

from mixwell.core import registry
from mixwell.kernels.memory import free_bytes
from mixwell.kernels.packing import CHANGES
from mixwell.lm.config import ROUTER_FAMILY, ModelConfig

ON_KEYS_AND_VALUES = frozenset({"sequence.attention", "sequence.latent_attention"})
# Routers that look at a token's neighbours in its row, or at what its row is, beside the token.
BY_ROW = frozenset({"experts.routers.word_table", "experts.routers.conditioned", "experts.routers.domain_enforced"})
SHARE = 0.25  # of free memory that rows get unless told otherwise


def side_by_side(config: ModelConfig) -> bool:
    """Whether a token's output hangs on nothing of a pass but the keys and values of its own row."""
    layers = range(config.num_layers)
    return all(config.sequence(layer)[0].name in ON_KEYS_AND_VALUES and _tokenwise(*config.channel(layer))
               for layer in layers)


def mixes_tokens(model: nn.Module) -> bool:
    """Whether an adapter beside the model may look across the tokens of a pass: one whose change is no matrix."""
    for layer in model.modules():
        held: Any = layer._modules.get(CHANGES) or {}
        for adapter in held.values():
            found = getattr(adapter, "__mixwell__", None)
            if found is not None and "matrix" not in found.tags:
                return True
    return False


def _tokenwise(entry: registry.Entry, options: Any) -> bool:
    if "tokenwise" not in entry.tags:
        return False
    if getattr(options, "capacity_factor", None) is not None:  # who comes too late is dropped
        return False
    spec = getattr(options, "router", None)
    if spec is None:
        return True
    router = registry.find(str(dict(spec).get("method", "top_k")), ROUTER_FAMILY)
    return "batch-invariant" in router.tags and router.name not in BY_ROW


def blocks_within(size_bytes: int | None, block_bytes: int, most: int) -> int:
    """Blocks that memory of `size_bytes` holds (default: a quarter of what is free), `most` at most."""
    given = int(free_bytes() * SHARE) if size_bytes is None else size_bytes
    return min(most, given // max(1, block_bytes))
