"""How many tokens each expert was given, by layer and by the label of the request."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MOST_LABELS = 32  # told apart; further ones count under the empty label alone


class Loads:
    """Tokens of each expert of each layer, under the labels of the requests and over all of them."""

    def __init__(self, layers: int) -> None:
        self.layers = layers
        self._counts: dict[str, list[Tensor | None]] = {"": [None] * layers}

    def add(self, label: str, *pieces: Sequence[Tensor | None]) -> None:
        """Count the experts [T, K] of the tokens of some pieces, of each one tensor a layer, -1 for none."""
        labels = {"", label}
        if label not in self._counts and len(self._counts) <= MOST_LABELS:
            self._counts[label] = [None] * self.layers
        for layer, of_pieces in enumerate(zip(*pieces)):
            told = [experts_TK.flatten() for experts_TK in of_pieces if experts_TK is not None]
            if not told:
                continue
            slots = torch.cat(told) + 1
            counts = torch.bincount(slots)[1:]  # the first bin counts the empty slots
            for name in labels & self._counts.keys():
                own = self._counts[name]
                own[layer] = _sum(own[layer], counts)

    def told(self) -> dict[str, list[list[int] | None]]:
        """Label -> layer -> tokens of each expert, None for layers that tell none; "" is over all labels."""
        now = list(self._counts.items())  # another thread may add a label meanwhile
        found = {}
        for label, layers in now:
            found[label] = [None if counts is None else counts.tolist() for counts in layers]
        return found


def _sum(old_E: Tensor | None, new_E: Tensor) -> Tensor:
    """Sum of two counts, the shorter one as if it went on with zeros."""
    if old_E is None:
        return new_E
    longer, shorter = (old_E, new_E) if len(old_E) >= len(new_E) else (new_E, old_E)
    total = longer.clone()
    total[: len(shorter)] += shorter
    return total
