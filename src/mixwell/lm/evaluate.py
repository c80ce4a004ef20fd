"""Evaluation on held-out text: bits per byte by domain, and where the tokens of each domain are sent.

Bits per byte compare models with different tokenizers: the bits to predict a text over the bytes of that very text.

Legend: B windows, S tokens of a window, T targets, E experts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mixwell.core.errors import MixwellError
from mixwell.lm.data import TokenData


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was measured; plain data throughout."""

    bits_per_byte: dict[str, float]  # domain -> bits to predict its text, over that text's UTF-8 bytes
    mean: float  # of bits_per_byte, every domain counting the same
    loss_nats: dict[str, float]  # domain -> mean cross-entropy per token
    load: dict[str, dict[str, list[float]]]  # layer -> domain -> share of the slots by expert; routed layers only
    tokens: dict[str, int]  # domain -> tokens predicted
    bytes: dict[str, float]  # domain -> UTF-8 bytes that those tokens stand for


@torch.no_grad()
def evaluate(model: nn.Module, data: TokenData, *, max_tokens: int = 65536, batch_size: int = 8, seq_len: int = 256,
             step: int = 0, split: str = "held") -> Evaluation:
    """Predict the first `max_tokens` tokens of every domain's held-out stream but the very first.

    The stream is cut into windows of `seq_len` that follow each other without overlap, the last one shorter, so that
    every token but the first is predicted once; a token sees at most the `seq_len` before it. End-of-text tokens are
    predicted too and stand for no byte. The model is left in evaluation mode.
    """
    model.eval()
    sums = {d: _domain(model, data, d, max_tokens, batch_size, seq_len, step, split) for d in data.domains}
    bits = {d: s.nats / math.log(2) / s.bytes for d, s in sums.items()}
    layers = range(max(len(s.load) for s in sums.values()))
    load = {str(i): {d: _shares(part) for d, s in sums.items() if (part := s.load[i]) is not None} for i in layers}
    return Evaluation(bits, sum(bits.values()) / len(bits), {d: s.nats / s.tokens for d, s in sums.items()},
                      {layer: shares for layer, shares in load.items() if shares},
                      {d: s.tokens for d, s in sums.items()}, {d: s.bytes for d, s in sums.items()})


@dataclass
class _Sums:
    tokens: int
    bytes: float
    nats: float
    load: list[Tensor | None]


def _domain(model: nn.Module, data: TokenData, domain: str, max_tokens: int, batch_size: int, seq_len: int, step: int,
            split: str) -> _Sums:
    stream = data.tokens(domain, split)[:max_tokens]
    size = data.bytes_of(domain, split, 1, len(stream))
    if len(stream) < 2 or not size:
        raise MixwellError(f"domain {domain!r} has {len(stream)} tokens to evaluate on; expected at least 2 with text. "
                           "Hold out more of it, or raise max_tokens.")
    device = next(model.parameters()).device
    label, sums = data.domains.index(domain), _Sums(len(stream) - 1, size, 0.0, [])
    for inputs_BT, targets_BT in _windows(stream, batch_size, seq_len):
        labels_B = torch.full((len(inputs_BT),), label, device=device)
        loss = model.loss(inputs_BT.to(device), targets_BT.to(device), labels_B=labels_B, step=step)  # type: ignore[operator]
        sums.nats += float(loss.nats) * targets_BT.numel()
        fresh = [None if r is None else r.load_E() for r in loss.routings]
        sums.load = [a if b is None else b if a is None else a + b for a, b in zip(sums.load, fresh)] or fresh
    return sums


def _windows(stream: np.ndarray, batch_size: int, seq_len: int):
    """Batches of (inputs, targets) that go through the stream once; what is left over comes last, as one row."""
    ids = torch.from_numpy(stream.astype(np.int64))
    full = (len(ids) - 1) // seq_len * seq_len
    inputs_WS, targets_WS = ids[:full].view(-1, seq_len), ids[1 : full + 1].view(-1, seq_len)
    yield from zip(inputs_WS.split(batch_size), targets_WS.split(batch_size)) if full else ()
    if full < len(ids) - 1:
        yield ids[None, full:-1], ids[None, full + 1 :]


def _shares(load_E: Tensor) -> list[float]:
    return (load_E / load_E.sum().clamp(min=1)).tolist()
