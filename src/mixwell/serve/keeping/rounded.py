"""A model's caches with keys in block floating point, by `precision.activations.key_blocks`.

Legend: B rows, G key heads, T new positions, P width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from mixwell.core.errors import MixwellError
from mixwell.kernels.cache import KVCache
from mixwell.lm.cache import Cache
from mixwell.lm.network import Network
from mixwell.precision.activations.key_blocks import Config, rounded_keys, row_sizes
from mixwell.sequence.attention import Attention
from mixwell.serve.keeping.rules import check_plain


class RoundedCache(KVCache):
    """Keys rounded as they come; they are kept as the numbers that they stand for."""

    def __init__(self, sizes_GP: Tensor, config: Config) -> None:
        super().__init__()
        self.sizes_GP, self.config = sizes_GP, config

    def append(self, k_BGTP: Tensor, v_BGTP: Tensor, mask_BT: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """As `KVCache.append`, with rounded keys."""
        kept = rounded_keys(k_BGTP, self.sizes_GP, self.config)
        return super().append(kept, v_BGTP, mask_BT)


def sizes_of(mixer: Attention) -> Tensor:
    """Norms of the rows that make a layer's keys [G, P]."""
    first = mixer.heads * mixer.width
    last = first + mixer.kv_heads * mixer.width
    rows = mixer.qkv.weight.detach()[first:last]
    by_head = rows.unflatten(0, (mixer.kv_heads, mixer.width))
    return row_sizes(by_head, mixer.turned)


@contextmanager
def rounded_cache(model: Network, config: Config) -> Iterator[None]:
    """A block in which the model's caches keep their keys in block floating point.

    Raises `MixwellError` for a model with other layers than plain causal attention with whole weights, and where a
    block does not divide a head.
    """
    sizes = []
    for number, layer in enumerate(model.layers):
        mixer = layer.sequence_mixer
        check_plain(mixer, number)
        if mixer.width % config.block:
            raise MixwellError(f"blocks of {config.block} do not divide heads of {mixer.width} (layer {number}); "
                               "choose a divisor.")
        if not mixer.qkv.weight.is_floating_point():
            raise MixwellError(f"layer {number} keeps its weights as codes; take the sizes of keys from a model with "
                               "full ones.")
        sizes.append(sizes_of(mixer))
    usual = model.new_cache
    model.new_cache = lambda: Cache([RoundedCache(own, config) for own in sizes])  # type: ignore[method-assign]
    try:
        yield
    finally:
        model.new_cache = usual  # type: ignore[method-assign]
