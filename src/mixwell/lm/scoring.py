"""Bits that a model needs for each of several texts, to hold models with different tokenizers against each other.

Legend: B windows, T tokens of a window, S tokens of all texts, N texts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mixwell.core.errors import MixwellError
from mixwell.lm.documents import Document
from mixwell.lm.encoding import Encoder
from mixwell.lm.evaluate import windows
from mixwell.lm.tokenizer import Tokenizer

NOBODYS = -1  # of ids that count for no text


@dataclass(frozen=True, eq=False)
class Scores:
    """What a model makes of texts one by one."""

    bits_N: np.ndarray  # float64: to predict all tokens of the text and its end
    tokens: int  # predicted, of all texts
    seconds: float  # of predicting them


def score(model: nn.Module, tokenizer: Tokenizer, texts: Sequence[Document], *, batch_size: int = 16,
          seq_len: int = 256) -> Scores:
    """Predict whole texts; of a conversation, which the tokenizer's chat template writes, the answers alone count.

    They follow each other as in training, an end-of-text token before the first and behind each, and are cut into
    windows of `seq_len` without overlap: a token sees at most the `seq_len` before it. Every token counts, the first of
    the first text, too, but what the tokenizer puts before a text. The model is left in evaluation mode. A tokenizer
    with ids that the model does not embed raises `MixwellError`.
    """
    model.eval()
    stream_S, owners_S = _joined(tokenizer, texts)
    largest = int(stream_S.max())
    config: Any = model.config
    if largest >= config.vocab_size:
        raise MixwellError(f"the tokenizer gives id {largest}, the model embeds {config.vocab_size}; give it the "
                           "tokenizer that it was made with.")
    first_BT = stream_S[:1].unsqueeze(0)
    _row_nats(model, first_BT, first_BT)  # warms the kernels up
    parts, begin = [], time.perf_counter()
    for inputs_BT, targets_BT in windows(stream_S[:-1], stream_S[1:], batch_size, seq_len):
        nats_BT = _row_nats(model, inputs_BT, targets_BT)
        parts.append(nats_BT.flatten())
    took = time.perf_counter() - begin
    nats_S = torch.cat(parts).double().numpy()
    counted_S = owners_S != NOBODYS
    bits_N = np.bincount(owners_S[counted_S], nats_S[counted_S], minlength=len(texts)) / math.log(2)
    return Scores(bits_N, int(counted_S.sum()), took)


def _row_nats(model: nn.Module, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
    device = next(model.parameters()).device
    nats_BT = model.token_nats(inputs_BT.to(device), targets_BT.to(device))  # type: ignore[operator]
    return nats_BT.cpu()


def _joined(tokenizer: Tokenizer, texts: Sequence[Document]) -> tuple[Tensor, np.ndarray]:
    """(the ids of all texts behind an end-of-text token, the text that each id but the first counts for)."""
    ids, owners = [tokenizer.eos_id], []
    for number, found in enumerate(Encoder(tokenizer).encode(texts)):
        ids += found.ids
        owners += [number if counted else NOBODYS for counted in found.counts]
    return torch.tensor(ids), np.array(owners)
