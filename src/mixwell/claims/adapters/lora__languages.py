"""Language adaptation of a mixture: the vocabulary as it is serves as well as an extended one, and the old is kept.

Paper: Rethinking LLM Language Adaptation: A Case Study on Chinese Mixtral; on the method lora.
Tried: a mixture of four experts trained on the text of one Markov chain of twelve letters, then adapted by LoRA of rank
8 on all matrices, embedding and head trained, to another chain of twelve symbols that two letters spell, a tenth of the
rows of the old text among them; against the same with twelve new tokens, each started at the mean of its spelling, on
as much text. Cross-entropy in nats a symbol. Against it: a loss 0.02 nats higher or more, or one on the old text that
is higher than before by a tenth.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mixwell.adapters import lora
from mixwell.adapters.attached import attach
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side, no_worse
from mixwell.claims.strings import LETTERS, WORDS, Rows, fitted, model
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.rng import generator
from mixwell.lm.model import LanguageModel

SYMBOLS, LENGTH = 12, 10  # of either language, of a row
MIXTURE = {"method": "moe", "num_experts": 4, "hidden_dim": 32, "router": {"method": "top_k", "k": 2},
           "balance": {"switch": 0.01}}


def chain(seed: int, name: str) -> Tensor:
    """Chances of the next symbol by rows."""
    logits = torch.randn(SYMBOLS, SYMBOLS, generator=generator(seed, name))
    return (2 * logits).softmax(1)


def text(seed: int, name: str, count: int, draws: torch.Generator) -> Tensor:
    """Symbols of a language [B, N]."""
    chances = chain(seed, name)
    found = [torch.randint(SYMBOLS, (count,), generator=draws)]
    for _ in range(LENGTH - 1):
        shares = chances[found[-1]]
        drawn = torch.multinomial(shares, 1, generator=draws)
        found.append(drawn.squeeze(1))
    return torch.stack(found, 1)


def spelling(seed: int) -> Tensor:
    """Two letters for each symbol of the new language, no two alike [12, 2]."""
    pairs = torch.randperm(LETTERS * LETTERS, generator=generator(seed, "spelling"))
    chosen = pairs[:SYMBOLS]
    return torch.stack((chosen // LETTERS, chosen % LETTERS), 1)


def written(seed: int, symbols: Tensor, extended: bool) -> Rows:
    """Rows of the new language, one token a symbol or two; the first symbol is given."""
    first = symbols[:, 0]
    if extended:
        tokens = WORDS + symbols
        return Rows(tokens, 1, first)
    pairs = spelling(seed)
    letters = pairs[symbols]
    tokens = letters.flatten(1)
    return Rows(tokens, 2, first)


def old_rows(seed: int, count: int, draws: torch.Generator) -> Rows:
    """Rows of the old language."""
    letters = text(seed, "old", count, draws)
    return Rows(letters, 1, letters[:, 0])


@functools.cache
def base(seed: int) -> Checkpoint:
    """The mixture that knows the old language."""
    draws = generator(seed, "pretraining")
    rows = [old_rows(seed, 32, draws) for _ in range(120)]
    network = fitted(model(seed, channel_mixer=MIXTURE), rows, 1e-2)
    found: Checkpoint = network.to_checkpoint()
    return found


def batches(seed: int, extended: bool) -> Iterator[Rows]:
    """Nine batches of the new language, then one of the old."""
    draws = generator(seed, "adaptation")
    for step in range(100):
        if step % 10 == 9:
            yield old_rows(seed, 32, draws)
        else:
            symbols = text(seed, "new", 32, draws)
            yield written(seed, symbols, extended)


@torch.no_grad()
def nats(network: Any, rows: Rows) -> float:
    """Cross-entropy of a row behind its first symbol, mean over symbols."""
    before = rows.tokens[:, :-1]
    network.eval()
    found = network.loss(before, rows.targets)
    length = before.shape[1]
    predicted = length + 1 - rows.answer
    a_symbol = predicted / (LENGTH - 1)
    return float(found.nats) * a_symbol


@torch.no_grad()
def begin(network: LanguageModel, seed: int) -> None:
    """Start each new token at the mean of its spelling."""
    letters = spelling(seed)
    for weight in (network.embed.weight, network.head_weight):
        means = weight[letters].mean(1)
        weight[WORDS : WORDS + SYMBOLS] = means


def adapted(bench: Bench, seed: int, *, lr: float, extended: bool, steps: bool = True) -> dict[str, float]:
    """Losses on both languages behind the adaptation, or before it."""
    network = LanguageModel.from_checkpoint(base(seed))
    if extended:
        begin(network, seed)
    if steps:
        config = lora.Config(rank=8, alpha=16.0)
        draws = generator(seed, "adapter")
        attach(lora.LoRA, network, None, config, draws, trained=("embed.weight", "head.weight"))
        fitted(network, batches(seed, extended), lr)
    test = generator(seed, "test")
    symbols = text(seed, "new", 256, test)
    new = nats(network, written(seed, symbols, extended))
    return {"new": new, "old": nats(network, old_rows(seed, 256, test))}


RATES = {"lr": (1e-3, 3e-3, 1e-2)}
CLAIM = Claim("The vocabulary as it is serves as well as an extended one.", "nats a symbol",
              quantity="new", at_least=-0.02, provided=(no_worse("old", 0.1, baseline="before"),),
              sides={"method": Side(adapted, {"extended": False}, RATES),
                     "baseline": Side(adapted, {"extended": True}, RATES),
                     "before": Side(adapted, {"extended": False, "steps": False, "lr": 1e-3})})
