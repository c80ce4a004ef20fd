"""What a conversion may ask for beside its checkpoint: what layers see over calibration text, and other models.

A method's module says what it wants by `needs(config) -> Needs`; its function then takes a fourth argument, a
`Calibration`, which is made where models are run (`lm.calibration`). Text goes through in batches, so that memory is
bounded by one of them, and as often as the method asks.

Legend: B rows, S positions of a row, T = B S tokens of a batch, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from mixwell.core.checkpoint import Checkpoint
from mixwell.core.routing import Routing
from mixwell.mixing.calibration import Needs


@dataclass(frozen=True, eq=False, kw_only=True)
class Seen:
    """What one layer's channel mixer saw of a batch; float32."""

    x_TD: Tensor  # what it reads, behind its norm
    routing: Routing | None  # None where it routes nothing
    ids_T: Tensor  # int64, the tokens
    labels_T: Tensor  # int64, the domain of each token
    grad_TD: Tensor | None = None  # of the summed loss by what the mixer gave; None unless asked for


class Calibration(Protocol):
    """Calibration text, and the models that go through it."""

    @property
    def batches(self) -> Sequence[Tensor]:
        """Token ids [B, S] of each batch."""
        ...

    @property
    def num_domains(self) -> int:
        """Domains that the text comes from, which `Seen.labels_T` counts from 0."""
        ...

    def seen(self, checkpoint: Checkpoint, *, gradients: bool = False) -> Iterator[list[Seen]]:
        """Of each batch, what every layer of the model saw."""
        ...

    def logits(self, checkpoint: Checkpoint, tokens_BS: Tensor, moving: Mapping[str, Tensor]) -> Tensor:
        """Logits [B, S, V] of the model with the tensors `moving` in their places, with a gradient by these."""
        ...

    def model(self, name: str) -> Checkpoint:
        """One of `Needs.models`."""
        ...

    def states(self, checkpoint: Checkpoint, text: str, *, residual: bool) -> list[Tensor]:
        """What each layer reads [T, D] over a text, or what its channel mixer does behind the norm."""
        ...


def asked(module: object, config: object) -> Needs:
    """What the method of `module` needs with these options; nothing where it does not say."""
    say = getattr(module, "needs", None)
    return Needs() if say is None else say(config)


def domains(labels_T: Tensor, count: int) -> Mapping[int, Tensor]:
    """Domain -> which tokens [T] are of it, of those that occur."""
    found = {}
    for domain in range(count):
        mask_T = labels_T == domain
        if bool(mask_T.any()):
            found[domain] = mask_T
    return found
