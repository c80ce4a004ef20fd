"""What a method that makes one checkpoint of another may ask for, and what weights meet over calibration text.

Legend: T tokens of a batch, I input width, E experts, B rows, S positions of a row, N windows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from mixwell.core.checkpoint import Checkpoint


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a conversion asks for."""

    tokens: int = 0  # of calibration text
    models: tuple[str, ...] = ()  # folders or stages of other models that it reads
    files: tuple[str, ...] = ()  # that its options are read from


class Inputs(Protocol):
    """Calibration text, and what it is to single weights."""

    @property
    def batches(self) -> Sequence[Tensor]:
        """Token ids of each batch."""
        ...

    def inputs(self, checkpoint: Checkpoint, names: Sequence[str]) -> Iterator[Mapping[str, Tensor]]:
        """Of each batch, what each weight named is multiplied with: float32 [T, I], of a stack's down map [E, T, I].

        Every expert meets every token, whatever the router says.
        """
        ...

    def routed(self, checkpoint: Checkpoint) -> Mapping[int, Tensor]:
        """Of each layer with a router, how many tokens it sent to each expert, int64 [E]."""
        ...

    def gates(self, checkpoint: Checkpoint) -> Mapping[int, Tensor]:
        """Of each layer with a router, what the weights that it gave each expert sum up to, float64 [E]."""
        ...

    def logits(self, checkpoint: Checkpoint, tokens_BS: Tensor, moving: Mapping[str, Tensor]) -> Tensor:
        """Logits [B, S, V] of the model with the tensors `moving` in their places, with a gradient by these."""
        ...

    def over(self, tokens_NS: Tensor) -> Inputs:
        """The same over other windows of token ids."""
        ...

    def streams(self, checkpoint: Checkpoint) -> Iterator[Sequence[Tensor]]:
        """Of each batch, the residual stream [T, D] that each layer reads, float32, and what the last one leaves."""
        ...

    def slopes(self, checkpoint: Checkpoint, at: Mapping[str, Tensor], *, rows: int = 0,
               ) -> Iterator[Mapping[str, Tensor]]:
        """Gradients of the mean cross-entropy in nats by the tensors `at`, which stand in their places, float64.

        One for each `rows` windows of the text, 0 one for all of it.
        """
        ...

    def through(self, checkpoint: Checkpoint, tokens_BS: Tensor, x_BSD: Tensor | None, layers: Sequence[int],
                moving: Mapping[str, Tensor]) -> Tensor:
        """What the residual stream [B, S, D] is behind these layers, x being what comes into the first of them.

        Without x, from the tokens on. Tensors `moving` stand in their places; a gradient comes by them. Raises
        `MixwellError` where a router reads another layer's state, so that layers do not run by themselves.
        """
        ...
