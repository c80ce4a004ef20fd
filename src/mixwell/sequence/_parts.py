"""The contract of sequence mixers, and what those on keys and values share.

Legend: B rows, T positions, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mixwell.core.routing import Context
from mixwell.kernels.cache import KVCache
from mixwell.mixing import SequenceMixed


class SequenceMixer(nn.Module):
    """A sequence mixer lets the positions of a row act on each other, none on an earlier one.

    Built as `Mixer(dim, config, generator)`. `new_cache()` keeps what later positions need of earlier ones, so that a
    row may come piece by piece; `flops_per_token(context_length)` counts two for each multiply-add.
    """

    dim: int
    config: Any

    def forward(self, x_BTD: Tensor, positions_BT: Tensor | None = None, cache: Any = None,
                mask_BT: Tensor | None = None, context: Context | None = None) -> SequenceMixed:
        """[B, T, D] -> [B, T, D], with the routing and the losses of a mixer that routes.

        positions_BT int64 [B or 1, T], default those that follow the cache; mask_BT bool, False marks padding, which
        no other token sees; `cache` is read and extended; `context` is what is known of the B * T tokens.
        """
        raise NotImplementedError

    def new_cache(self) -> Any:
        """An empty cache for `forward`."""
        raise NotImplementedError

    def flops_per_token(self, context_length: int) -> float:
        """Forward FLOPs per token, averaged over the positions of a row of `context_length` tokens."""
        raise NotImplementedError


def head_width(dim: int, num_heads: int, head_dim: int | None) -> int:
    """P: `head_dim`, or D / H where that is a whole even number; else `ValueError`."""
    if head_dim is not None:
        return head_dim
    width, rest = divmod(dim, num_heads)
    if rest or width % 2:
        raise ValueError(f"num_heads = {num_heads} does not divide dim = {dim} into heads of even width; choose other "
                         "numbers or give head_dim")
    return width


def context_of(x_BTD: Tensor, mask_BT: Tensor | None) -> Context:
    """What shape and mask alone say of the tokens."""
    B, T, _ = x_BTD.shape
    return Context(batch_shape=(B, T), mask_T=None if mask_BT is None else mask_BT.flatten())


def positions_after(cache: KVCache | None, x_BTD: Tensor) -> Tensor:
    """Positions [1, T] of tokens that follow those in the cache, from 0 without one."""
    length = x_BTD.shape[1]
    start = 0 if cache is None else cache.length
    end = start + length
    positions = torch.arange(start, end, device=x_BTD.device)
    return positions.unsqueeze(0)
