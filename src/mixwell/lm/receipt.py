"""Receipts: two checkpoints weighed on the same tokens, in float32."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from mixwell.core.checkpoint import Checkpoint
from mixwell.core.receipts import Receipt
from mixwell.core.tensors import size_bytes
from mixwell.lm.model import LanguageModel


@torch.no_grad()
def measure(before: Checkpoint, after: Checkpoint, tokens_BT: Tensor, method: str,
            promises: Mapping[str, float] | None = None, *, rows: int = 4) -> Receipt:
    """Weigh a conversion on `tokens_BT` (int64 [B, T], T at least 2), `rows` sequences at a time.

    The loss is the mean cross-entropy of each next token in nats; loads are shares of slots by expert and layer.
    """
    old = LanguageModel.from_checkpoint(before, dtype=torch.float32).eval()
    new = LanguageModel.from_checkpoint(after, dtype=torch.float32).eval()
    error, kl, losses = 0.0, 0.0, [0.0, 0.0]
    loads: list[dict[int, Tensor]] = [{}, {}]
    for batch in tokens_BT.split(rows):
        outputs = (old(batch), new(batch))
        first, second = (o.logits_BTV[:, :-1].float().log_softmax(-1) for o in outputs)
        error = max(error, float((outputs[0].logits_BTV - outputs[1].logits_BTV).abs().max()))
        kl += float(F.kl_div(second, first, log_target=True, reduction="sum"))
        for i, log_p in enumerate((first, second)):
            losses[i] -= float(log_p.gather(-1, batch[:, 1:, None]).sum())
            _add_loads(loads[i], outputs[i].routings)
    count = tokens_BT[:, 1:].numel()
    return Receipt(
        method=method, max_logit_error=error, kl_nats=max(kl / count, 0.0), loss_before_nats=losses[0] / count,
        loss_after_nats=losses[1] / count, parameters_before=old.num_parameters(),
        parameters_after=new.num_parameters(), size_before_bytes=size_bytes(before.tensors),
        size_after_bytes=size_bytes(after.tensors), load_before=_shares(loads[0]), load_after=_shares(loads[1]),
        promises=dict(promises or {}))


def _add_loads(loads: dict[int, Tensor], routings) -> None:
    for layer, routing in enumerate(routings):
        if routing is not None:
            loads[layer] = loads.get(layer, 0) + routing.load_E()


def _shares(loads: Mapping[int, Tensor]) -> dict[str, list[float]]:
    return {str(layer): (load / load.sum().clamp_min(1)).tolist() for layer, load in loads.items()}
