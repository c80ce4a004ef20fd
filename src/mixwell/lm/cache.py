"""What a network keeps of the rows it has read, so that they may come piece by piece.

Legend: B rows, T positions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

HISTORY = 64  # ids that a cache keeps for routers that go by words of several tokens; no word is longer
PADDING = -1  # stands in them where nothing was read


class Cache:
    """What the layers keep of the positions read so far, the last ids read, and the next position of each row."""

    def __init__(self, layers: list[Any]) -> None:
        self.layers = layers
        self.ids_BS: Tensor | None = None  # None before anything was read
        self.kept: dict[Any, Any] | None = {}  # of methods that read a row as a whole, see `Context.kept`
        self.next_B: Tensor | int = 0  # int where all rows stand at the same position

    def advance(self, tokens_BT: Tensor, mask_BT: Tensor | None) -> Tensor:
        """Positions [B or 1, T] of new tokens; padding takes no position."""
        self._keep_ids(tokens_BT, mask_BT)
        B, T = tokens_BT.shape
        if mask_BT is None:
            return self._advance_all(T, tokens_BT.device)
        counts_BT = mask_BT.long().cumsum(1)
        start_B = torch.as_tensor(self.next_B, device=tokens_BT.device).expand(B)
        self.next_B = start_B + counts_BT[:, -1]
        places_BT = (counts_BT - 1).clamp_min(0)
        return places_BT + start_B.unsqueeze(1)

    def go_back(self, ids_BS: Tensor) -> None:
        """Forget all that was read behind `ids_BS`, the first ids of the rows. Layers keep keys and values alone."""
        for layer in self.layers:
            layer.go_back(ids_BS.shape[1])
        self.next_B = ids_BS.shape[1]
        self.ids_BS = ids_BS[:, -HISTORY:]

    def _advance_all(self, length: int, device: torch.device) -> Tensor:
        """Positions of `length` tokens in every row."""
        start = self.next_B
        if isinstance(start, Tensor):
            start = start.unsqueeze(1)
        self.next_B = self.next_B + length
        steps_T = torch.arange(length, device=device)
        return steps_T.unsqueeze(0) + start

    def _keep_ids(self, tokens_BT: Tensor, mask_BT: Tensor | None) -> None:
        read_BS = tokens_BT
        if mask_BT is not None:
            read_BS = read_BS.masked_fill(~mask_BT, PADDING)
        if self.ids_BS is not None:
            read_BS = torch.cat((self.ids_BS, read_BS), 1)
        self.ids_BS = read_BS[:, -HISTORY:]
