"""Receipts: two checkpoints weighed on the same tokens, in float32."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from mixwell.core.checkpoint import Checkpoint
from mixwell.core.receipts import Receipt
from mixwell.formats.tensors import size_bytes
from mixwell.lm.evaluate import add_loads, load_shares
from mixwell.lm.model import LanguageModel


@torch.no_grad()
def measure(before: Checkpoint, after: Checkpoint, tokens_BT: Tensor, method: str,
            promises: Mapping[str, float] | None = None, *, rows: int = 4) -> Receipt:
    """Weigh a conversion on `tokens_BT` (int64 [B, T], T at least 2), `rows` sequences at a time.

    The loss is the mean cross-entropy of each next token in nats; loads are shares of slots by expert and layer.
    """
    old, new = _Side(before), _Side(after)
    error, kl = 0.0, 0.0
    for batch in tokens_BT.split(rows):
        first_BTV, second_BTV = old.read(batch), new.read(batch)
        apart = (first_BTV - second_BTV).abs()
        error = max(error, float(apart.max()))
        first, second = _log_shares(first_BTV), _log_shares(second_BTV)
        kl += float(F.kl_div(second, first, log_target=True, reduction="sum"))
        old.add_loss(first, batch)
        new.add_loss(second, batch)
    count = tokens_BT[:, 1:].numel()
    return Receipt(
        method=method,
        max_logit_error=error,
        kl_nats=max(kl / count, 0.0),
        loss_before_nats=old.nats / count,
        loss_after_nats=new.nats / count,
        parameters_before=old.model.num_parameters(),
        parameters_after=new.model.num_parameters(),
        size_before_bytes=size_bytes(before.tensors),
        size_after_bytes=size_bytes(after.tensors),
        load_before=old.shares(),
        load_after=new.shares(),
        promises=dict(promises or {}),
    )


def _log_shares(logits_BTV: Tensor) -> Tensor:
    """Log probabilities of each next token, float32."""
    before_another = logits_BTV[:, :-1].float()
    return before_another.log_softmax(-1)


class _Side:
    """A model on one side of the conversion, and its sums over the batches read."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.model = LanguageModel.from_checkpoint(checkpoint, dtype=torch.float32).eval()
        self.nats = 0.0
        self.load: dict[int, Tensor] = {}

    def read(self, tokens_BT: Tensor) -> Tensor:
        """Logits [B, T, V]; counts where the tokens go."""
        output = self.model(tokens_BT)
        add_loads(self.load, output.routings)
        return output.logits_BTV

    def add_loss(self, log_shares_BTV: Tensor, tokens_BT: Tensor) -> None:
        """Count what the next tokens cost."""
        targets_BT1 = tokens_BT[:, 1:, None]
        self.nats -= float(log_shares_BTV.gather(-1, targets_BT1).sum())

    def shares(self) -> dict[str, list[float]]:
        """Shares of the slots by expert and routed layer."""
        by_layer = self.load.items()
        return {str(layer): load_shares(load_E) for layer, load_E in by_layer}
