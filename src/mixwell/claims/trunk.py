"""The language bench's trunk: a small dense model that has learnt more than a bigram table; mixers are swapped in it.

A model from its first step on spends a claim's tokens on what a table of pairs knows. Here embeddings, norms and the
mixers that are not on trial come from a trained model, and those on trial start fresh, alike in size.

Legend: B windows, S tokens of a window, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mixwell.claims.premise import Untestable
from mixwell.claims.starts import level_inside
from mixwell.core.rng import generator

if TYPE_CHECKING:
    from mixwell.lm.data import TokenData
    from mixwell.lm.model import LanguageModel

Part = Literal["channel_mixer", "sequence_mixer"]
SEED = 2_000_003  # far from those of trials
TOKENS = 600_000
WIDTH = 64  # of its dense blocks
SIZE = 0.01  # root mean square of what a fresh mixer adds; the trunk's own add 0.04 to states of 0.1
PSEUDO_COUNTS = (1, 3, 10, 30, 100)  # of the unigram in a row of the bigram table; the best one counts


def arch_of(arch: Mapping[str, Any], swapped: Part) -> dict[str, Any]:
    """The trunk for models of `arch`: the same, with the usual mixer in the place of the one on trial."""
    if swapped == "channel_mixer":
        dense = {"method": "experts.layers.swiglu", "hidden_dim": WIDTH}
        return {**arch, "channel_mixer": dense}
    own = ("sequence_mixer", "num_kv_heads")
    plain = {name: arch[name] for name in arch if name not in own}
    return {**plain, "num_heads": 4}


def swap(trunk: nn.Module, model: LanguageModel, seed: int, data: TokenData, swapped: Part) -> None:
    """Make a fresh model the trunk, but for its mixers on trial, which are brought to one size."""
    graft(trunk, model, swapped)
    tokens, labels = windows(data, "train", 16, 64)
    if model.needs_tokens:
        model.fit_tokens(_text(data), generator(seed, "fit_tokens"))
    mixers = [getattr(layer, swapped) for layer in model.layers]
    model.eval()
    level_inside(mixers, partial(model, tokens, labels_B=labels), SIZE)


@torch.no_grad()
def graft(trunk: nn.Module, model: nn.Module, swapped: Part) -> None:
    """Copy all but the mixers on trial; anything that the trunk lacks or has in another shape raises."""
    theirs = trunk.state_dict()
    for name, tensor in model.state_dict().items():
        if f".{swapped}." not in name:
            tensor.copy_(theirs[name])


def windows(data: TokenData, split: str, rows: int, width: int) -> tuple[Tensor, Tensor]:
    """(the first `rows` windows of each domain [B, S], the domain of each [B])."""
    found, labels = [], []
    for label, domain in enumerate(data.domains):
        tokens = data.tokens(domain, split)
        whole = min(rows, len(tokens) // width)
        last = whole * width
        ids = tokens[:last].astype(np.int64)
        part = torch.from_numpy(ids)
        cut = part.view(whole, width)
        found.append(cut)
        own = torch.full((whole,), label)
        labels.append(own)
    return torch.cat(found), torch.cat(labels)


def _text(data: TokenData) -> Tensor:
    """All training tokens, one domain after another."""
    streams = [data.tokens(domain, "train") for domain in data.domains]
    ids = np.concatenate(streams).astype(np.int64)
    return torch.from_numpy(ids)


def require_past_bigrams(bits: float, data: TokenData, held_tokens: int) -> None:
    """Raise `Untestable` for a trunk that a bigram table of the same text equals."""
    table = bigram_bits(data, held_tokens)
    if bits >= table:
        raise Untestable(f"the trunk stands at {bits:.3f} bits per byte and a bigram table of its text at {table:.3f}; "
                         "expected a trunk that has learnt more")


def bigram_bits(data: TokenData, held_tokens: int) -> float:
    """Bits per byte of a bigram table of the training text on held-out text, mean over domains, its best smoothing."""
    counts_VV = np.zeros((data.vocab_size, data.vocab_size))
    for domain in data.domains:
        ids = data.tokens(domain, "train")
        pairs = ids[:-1], ids[1:]
        np.add.at(counts_VV, pairs, 1)
    found = []
    for pseudo in PSEUDO_COUNTS:
        table_VV = _smoothed(counts_VV, pseudo)
        found.append(_table_bits(data, table_VV, held_tokens))
    return min(found)


def _smoothed(counts_VV: np.ndarray, pseudo: float) -> np.ndarray:
    """Chances of the next token by rows, `pseudo` tokens drawn by the unigram added to each row."""
    unigram_V = counts_VV.sum(0) + 1
    shares_V = unigram_V / unigram_V.sum()
    added_VV = counts_VV + pseudo * shares_V
    return added_VV / added_VV.sum(1, keepdims=True)


def _table_bits(data: TokenData, chances_VV: np.ndarray, held_tokens: int) -> float:
    found = []
    for domain in data.domains:
        ids = data.tokens(domain, "held")[:held_tokens]
        here, following = ids[:-1], ids[1:]
        chances = chances_VV[here, following]
        bits = -np.log2(chances).sum()
        size = data.bytes_of(domain, "held", 1, len(ids))
        found.append(bits / size)
    return float(np.mean(found))
