"""Evaluation on held-out text: bits per byte by domain, and where the tokens of each domain are sent.

Bits per byte compare models with different tokenizers: the bits to predict a text over the bytes of that very text.

Legend: B windows, S tokens of a window, T targets, W windows that these fill, E experts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from mixwell.core.errors import MixwellError
from mixwell.core.routing import Routing
from mixwell.lm.data import TokenData
from mixwell.lm.network import IGNORED


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
    predicted too and stand for no byte. Tokens that the loss does not count (a question, say) are read and neither
    predicted nor counted as bytes. The model is left in evaluation mode.
    """
    model.eval()
    found = Evaluation(bits_per_byte={}, mean=0.0, loss_nats={}, load={}, tokens={}, bytes={})
    for label, domain in enumerate(data.domains):
        stream, size = _stream(data, domain, split, max_tokens)
        labels = data.labels(domain, split, 1, len(stream))
        inputs = torch.from_numpy(stream[:-1].astype(np.int64))
        batches = windows(inputs, torch.from_numpy(labels), batch_size, seq_len)
        nats, load = _sums(model, batches, label, step)
        tokens = int((labels != IGNORED).sum())
        bits = nats / math.log(2)
        found.tokens[domain] = tokens
        found.bytes[domain] = size
        found.loss_nats[domain] = nats / tokens
        found.bits_per_byte[domain] = bits / size
        for layer, load_E in load.items():
            shares = found.load.setdefault(str(layer), {})
            shares[domain] = load_shares(load_E)
    total = sum(found.bits_per_byte.values())
    return replace(found, mean=total / len(data.domains))


def _stream(data: TokenData, domain: str, split: str, max_tokens: int) -> tuple[np.ndarray, float]:
    """The tokens to evaluate on, and the bytes that all but the first stand for."""
    stream = data.tokens(domain, split)[:max_tokens]
    size = data.bytes_of(domain, split, 1, len(stream))
    if len(stream) < 2 or not size:
        raise MixwellError(f"domain {domain!r} has {len(stream)} tokens to evaluate on; expected at least 2 with text. "
                           "Hold out more of it, or raise max_tokens.")
    return stream, size


def _sums(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], label: int,
          step: int) -> tuple[float, dict[int, Tensor]]:
    """(nats of all targets, routed layer -> slots by expert)."""
    device = next(model.parameters()).device
    nats, load = 0.0, dict[int, Tensor]()
    for inputs_BT, targets_BT in batches:
        inputs, targets = inputs_BT.to(device), targets_BT.to(device)
        labels_B = torch.full((len(inputs),), label, device=device)
        loss = model.loss(inputs, targets, labels_B=labels_B, step=step)  # type: ignore[operator]
        nats += float(loss.nats) * int((targets != IGNORED).sum())
        add_loads(load, loss.routings)
    return nats, load


def add_loads(load: dict[int, Tensor], routings: Sequence[Routing | None]) -> None:
    """Add the slots that each expert of the routed layers got to `load`, layer -> [E]."""
    for layer, routing in enumerate(routings):
        if routing is not None:
            load[layer] = load.get(layer, 0) + routing.load_E()


def windows(inputs_T: Tensor, targets_T: Tensor, batch_size: int, seq_len: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of (inputs, targets) that go through the stream once; what is left over comes last, as one row."""
    full = len(inputs_T) // seq_len * seq_len
    if full:
        inputs_WS = inputs_T[:full].view(-1, seq_len)
        targets_WS = targets_T[:full].view(-1, seq_len)
        batches = inputs_WS.split(batch_size), targets_WS.split(batch_size)
        yield from zip(*batches)
    rest, after = inputs_T[full:], targets_T[full:]
    if len(rest):
        yield rest.unsqueeze(0), after.unsqueeze(0)


def load_shares(load_E: Tensor) -> list[float]:
    """Slots by expert as shares of all, 0 where there are none."""
    total = load_E.sum().clamp_min(1)
    shares_E = load_E / total
    return shares_E.tolist()
