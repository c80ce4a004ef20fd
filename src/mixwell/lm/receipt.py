"""Receipts: what a conversion changed, measured on the same tokens in float32, and whether that was promised."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mixwell.core.checkpoint import Checkpoint
from mixwell.core.errors import MixwellError
from mixwell.formats.tensors import size_bytes
from mixwell.lm.evaluate import add_loads, load_shares
from mixwell.lm.model import LanguageModel
from mixwell.lm.streamed import streamed
from mixwell.lm.student import quantile


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """One conversion, weighed before and after on the same tokens."""

    method: str  # convert.upcycle
    max_logit_error: float  # largest absolute difference of a logit
    kl_nats: float  # mean KL(before || after) per token
    loss_before_nats: float  # mean cross-entropy per token
    loss_after_nats: float
    parameters_before: int
    parameters_after: int
    size_before_bytes: int
    size_after_bytes: int
    load_before: Mapping[str, list[float]] = field(default_factory=dict)  # layer -> share of tokens by expert
    load_after: Mapping[str, list[float]] = field(default_factory=dict)
    active_before: int = 0  # parameters that a token's products touch
    active_after: int = 0
    # bits per byte after less those before, with the ends of a 95 % interval over the windows; None where the tokens
    # stand for no text
    bits_per_byte_change: float | None = None
    bits_per_byte_low: float | None = None
    bits_per_byte_high: float | None = None
    load_entropy_before: Mapping[str, float] = field(default_factory=dict)  # layer -> entropy of its load, 1 = even
    load_entropy_after: Mapping[str, float] = field(default_factory=dict)
    tensors: Mapping[str, Any] = field(default_factory=dict)  # copied, used, made: how many; dropped: name -> rule
    promises: Mapping[str, float] = field(default_factory=dict)  # field of this receipt -> largest value allowed

    def broken(self) -> list[str]:
        """The promises that were not kept, in words. A value that is not a number keeps no promise."""
        lines = []
        for name, limit in self.promises.items():
            value = float(getattr(self, name))
            if math.isnan(value) or value > limit:
                lines.append(f"{name} is {value:.3g}, promised at most {limit:.3g}")
        return lines

    def check(self) -> Receipt:
        """Return self, or raise `MixwellError` that names each broken promise."""
        if broken := self.broken():
            raise MixwellError(f"{self.method} broke its promise: {'; '.join(broken)}. The result was not kept.")
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        plain = dict(vars(self))
        for name, value in plain.items():
            if isinstance(value, Mapping):
                plain[name] = dict(value)
        plain["kept"] = not self.broken()
        return plain


@torch.no_grad()
def measure(before: Checkpoint, after: Checkpoint, tokens_BT: Tensor, method: str,
            promises: Mapping[str, float] | None = None, *, rows: int = 4,
            token_bytes_V: Tensor | None = None, beside: Callable[[LanguageModel], None] | None = None,
            labels_B: Tensor | None = None) -> Receipt:
    """Weigh a conversion on `tokens_BT` (int64 [B, T], T at least 2), `rows` sequences at a time.

    The loss is the mean cross-entropy of each next token in nats; loads are shares of slots by expert and layer.
    token_bytes_V: the bytes that each token stands for, where the tokens are text. beside: puts what a checkpoint does
    not hold, an adapter, beside the model after. labels_B: the domain of each row, where it is known. A model whose
    logits are not finite raises `MixwellError`: nothing can be said of it.
    """
    old = _Side(streamed(before), f"{method}: the model before")
    if beside is None:
        model = streamed(after)
    else:
        model = LanguageModel.from_checkpoint(after, dtype=torch.float32).eval()
        beside(model)
    new = _Side(model, f"{method}: the model after")
    error, kl = 0.0, 0.0
    parts = tokens_BT.split(rows)
    labels = [None] * len(parts) if labels_B is None else labels_B.split(rows)
    for batch, own in zip(parts, labels):
        first_BTV, second_BTV = old.read(batch, own), new.read(batch, own)
        apart = first_BTV - second_BTV
        error = max(error, float(apart.abs_().max()))
        del apart  # as large as the logits
        first, second = _log_shares(first_BTV), _log_shares(second_BTV)
        del first_BTV, second_BTV
        kl += float(F.kl_div(second, first, log_target=True, reduction="sum"))
        old.add_loss(first, batch)
        new.add_loss(second, batch)
    count = tokens_BT[:, 1:].numel()
    load_before, load_after = old.shares(), new.shares()
    return Receipt(
        method=method,
        max_logit_error=error,
        kl_nats=max(kl / count, 0.0),
        loss_before_nats=old.nats / count,
        loss_after_nats=new.nats / count,
        parameters_before=old.model.num_parameters(),
        parameters_after=new.model.num_parameters(),
        active_before=old.model.num_parameters(active=True),
        active_after=new.model.num_parameters(active=True),
        size_before_bytes=size_bytes(before.tensors),
        size_after_bytes=size_bytes(after.tensors),
        load_before=load_before,
        load_after=load_after,
        load_entropy_before=_entropies(load_before),
        load_entropy_after=_entropies(load_after),
        promises=dict(promises or {}),
        **_bits_change(old.windows, new.windows, tokens_BT, token_bytes_V),
    )


def _bits_change(before: list[float], after: list[float], tokens_BT: Tensor,
                 token_bytes_V: Tensor | None) -> dict[str, Any]:
    """The change in bits per byte with its 95 % interval over windows; nothing where the tokens stand for no bytes."""
    if token_bytes_V is None:
        return {}
    size_B = token_bytes_V[tokens_BT[:, 1:]].double().sum(1)
    if not float(size_B.min()) > 0:
        return {}
    nats_B = torch.tensor(after).double() - torch.tensor(before).double()
    bits_B = nats_B / math.log(2)
    mean = float(bits_B.sum() / size_B.sum())
    count = len(bits_B)
    if count < 2:
        return {"bits_per_byte_change": mean}
    off_B = bits_B - mean * size_B  # of a ratio of sums: what each window leaves unexplained
    spread = float(off_B.std()) / float(size_B.mean()) / math.sqrt(count)
    half = quantile(count - 1) * spread
    return {"bits_per_byte_change": mean, "bits_per_byte_low": mean - half, "bits_per_byte_high": mean + half}


def _entropies(load: Mapping[str, list[float]]) -> dict[str, float]:
    """Entropy of each layer's load over that of an even one."""
    return {layer: _entropy(shares) for layer, shares in load.items()}


def _entropy(shares: list[float]) -> float:
    if len(shares) < 2:
        return 1.0
    some = [share for share in shares if share > 0]
    nats = -sum(share * math.log(share) for share in some)
    return nats / math.log(len(shares))


def _log_shares(logits_BTV: Tensor) -> Tensor:
    """Log probabilities of each next token, float32."""
    before_another = logits_BTV[:, :-1].float()
    return before_another.log_softmax(-1)


class _Side:
    """A model on one side of the conversion, and its sums over the batches read."""

    def __init__(self, model: LanguageModel, name: str) -> None:
        self.name, self.model = name, model
        self.nats = 0.0
        self.windows: list[float] = []  # nats of each
        self.load: dict[int, Tensor] = {}

    def read(self, tokens_BT: Tensor, labels_B: Tensor | None) -> Tensor:
        """Logits [B, T, V], all finite; counts where the tokens go."""
        output = self.model(tokens_BT, labels_B=labels_B)
        if not bool(output.logits_BTV.isfinite().all()):
            raise MixwellError(f"{self.name} gives logits that are not finite; it cannot be weighed.")
        add_loads(self.load, output.routings)
        return output.logits_BTV

    def add_loss(self, log_shares_BTV: Tensor, tokens_BT: Tensor) -> None:
        """Count what the next tokens cost."""
        targets_BT1 = tokens_BT[:, 1:, None]
        nats_BT1 = -log_shares_BTV.gather(-1, targets_BT1)
        self.nats += float(nats_BT1.sum())
        self.windows += nats_BT1.flatten(1).sum(1).tolist()

    def shares(self) -> dict[str, list[float]]:
        """Shares of the slots by expert and routed layer."""
        by_layer = self.load.items()
        return {str(layer): load_shares(load_E) for layer, load_E in by_layer}
