"""Keys and values of what was read, kept for what comes.

Legend: B rows, T new tokens, S positions so far, G key/value heads, P head width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# (which of the new positions ask, keys [B, G, S, P] and values that these see, mask [B, S] or None) -> what they find
Attend = Callable[[slice, Tensor, Tensor, Tensor | None], Tensor]

_LEAST = 64  # positions that a buffer holds at first


class KVCache:
    """Keys and values of the positions so far; its buffers double when full, so that appending stays cheap."""

    def __init__(self) -> None:
        self.length = 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None
        self._keep: Tensor | None = None

    def append(self, k_BGTP: Tensor, v_BGTP: Tensor, mask_BT: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Add T positions; returns all keys and values [B, G, S, P], and the mask [B, S] where one was ever given."""
        start = self.length
        end = start + k_BGTP.shape[2]
        self._keys = _written(self._keys, k_BGTP, start)
        self._values = _written(self._values, v_BGTP, start)
        self.length = end
        if mask_BT is not None or self._keep is not None:
            old = _kept(self._keep, k_BGTP, start)
            new = _kept(mask_BT, k_BGTP, end - start)
            self._keep = torch.cat((old, new), 1)
        keys, values = (t[:, :, :end] for t in (self._keys, self._values))
        return keys, values, self._keep

    def go_back(self, length: int) -> None:
        """Forget the positions behind the first `length`."""
        self.length = length
        if self._keep is not None:
            self._keep = self._keep[:, :length]

    def attended(self, k_BGTP: Tensor, v_BGTP: Tensor, mask_BT: Tensor | None, attend: Attend) -> Tensor:
        """Add T positions; returns what `attend` finds for all of them. Other caches may ask it row by row."""
        keys, values, keep = self.append(k_BGTP, v_BGTP, mask_BT)
        return attend(slice(None), keys, values, keep)


def _written(buffer: Tensor | None, new_BGTP: Tensor, start: int) -> Tensor:
    """`buffer`, or a larger one with the same content, with the new positions from `start` on."""
    end = start + new_BGTP.shape[2]
    held = _with_room(buffer, new_BGTP, end)
    held[:, :, start:end] = new_BGTP
    return held


def _with_room(buffer: Tensor | None, like_BGTP: Tensor, length: int) -> Tensor:
    """`buffer` if it holds `length` positions, else a larger one with the same content."""
    if buffer is not None and buffer.shape[2] >= length:
        return buffer
    B, G, _, P = like_BGTP.shape
    size = max(_LEAST, 1 << (length - 1).bit_length())
    larger = like_BGTP.new_empty(B, G, size, P)
    if buffer is not None:
        held = buffer.shape[2]
        larger[:, :, :held] = buffer
    return larger


def _kept(mask_BS: Tensor | None, like_BGTP: Tensor, length: int) -> Tensor:
    """The mask [B, length], which leaves nothing out where none was given."""
    if mask_BS is not None:
        return mask_BS
    rows = like_BGTP.shape[0]
    return torch.ones(rows, length, dtype=torch.bool, device=like_BGTP.device)
