"""Small decoders on text in which two tokens say what may follow, and domains that differ in some of these rules."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mixwell.claims.claim import Untestable
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.rng import generator
from mixwell.lm.config import ModelConfig
from mixwell.lm.model import LanguageModel

VOCAB, LENGTH, ROWS = 8, 24, 16
FIRST = 150  # steps of the first training
RATES = (1e-3, 3e-3, 1e-2)
NATS = "nats a token of held-out text"
Draw = Callable[[int, torch.Generator], Tensor]


class Chain:
    """Text whose next token hangs on the last two; a share of the pairs has rules of the domain's own."""

    def __init__(self, seed: int, domain: int, own: float = 0.5) -> None:
        pairs = VOCAB, VOCAB
        shared = generator(seed, "rules")
        common = torch.randn(*pairs, VOCAB, generator=shared)
        draws = generator(seed, "rules", domain)
        other = torch.randn(*pairs, VOCAB, generator=draws)
        drawn = torch.rand(*pairs, 1, generator=draws)
        changed = drawn < own
        logits = torch.where(changed, other, common)
        sharp = 3 * logits
        self.chances = torch.softmax(sharp, -1)

    def __call__(self, rows: int, draws: torch.Generator) -> Tensor:
        """Windows [rows, LENGTH + 1]."""
        first = torch.randint(VOCAB, (rows, 2), generator=draws)
        before, last = first.unbind(1)
        found = [before, last]
        more = LENGTH - 1
        for _ in range(more):
            chances = self.chances[before, last]
            drawn = torch.multinomial(chances, 1, generator=draws)
            before, last = last, drawn[:, 0]
            found.append(last)
        return torch.stack(found, 1)


def fresh(seed: int) -> LanguageModel:
    """A decoder of two layers, width 32."""
    config = ModelConfig(vocab_size=VOCAB, dim=32, num_layers=2, num_heads=4,
                         channel_mixer={"method": "experts.layers.swiglu", "hidden_dim": 64})
    return LanguageModel(config, generator(seed, "model"))


def fitted(model: LanguageModel, chains: Sequence[Draw], steps: int, lr: float, seed: int, *,
           labelled: bool = False) -> LanguageModel:
    """The model after steps of AdamW on rows of these domains, as many of each, its turns taken where it has some."""
    model.train()
    turns: Any = getattr(model, "turns", None)
    if turns is not None:
        turns.open()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    draws = generator(seed, "batches")
    each = ROWS // len(chains)
    labels = torch.arange(len(chains)).repeat_interleave(each)
    for step in range(steps):
        if turns is not None:
            turns.begin(step)
        parts = [chain(each, draws) for chain in chains]
        tokens = torch.cat(parts)
        loss = model.loss(tokens[:, :-1], tokens[:, 1:], labels_B=labels if labelled else None)
        optimizer.zero_grad()
        loss.nats.backward()
        optimizer.step()
    if turns is not None:
        turns.close()
    return model.eval()


@torch.no_grad()
def nats(model: LanguageModel, chain: Draw, seed: int) -> float:
    """Mean cross-entropy on 128 windows that no training saw."""
    tokens = chain(128, generator(seed, "held out"))
    found = model.eval().loss(tokens[:, :-1], tokens[:, 1:])
    return float(found.nats)


@functools.cache
def known(seed: int) -> Checkpoint:
    """A decoder that has learnt domain 0; `Untestable` where it has learnt little, or domain 1 needs nothing new."""
    own = Chain(seed, 0)
    model = fitted(fresh(seed), [own], FIRST, 1e-2, seed)
    found = both(model, seed)
    old, new = found["old"], found["new"]
    if old > 0.85 * new:
        raise Untestable(f"after training {old:.2f} nats on its own domain and {new:.2f} on the next; expected less")
    return model.to_checkpoint()


@functools.cache
def worldly(seed: int, domains: int) -> Checkpoint:
    """A decoder that has learnt the first of the domains, all at once."""
    chains = [Chain(seed, domain) for domain in range(domains)]
    model = fitted(fresh(seed), chains, FIRST, 1e-2, seed)
    return model.to_checkpoint()


def base(seed: int) -> LanguageModel:
    """A decoder that knows domain 0."""
    return copied(known(seed))


def copied(checkpoint: Checkpoint) -> LanguageModel:
    """A model of its own."""
    tensors = {name: tensor.clone() for name, tensor in checkpoint.tensors.items()}
    return LanguageModel.from_checkpoint(checkpoint.derive(tensors=tensors))


def both(model: LanguageModel, seed: int) -> dict[str, float]:
    """Nats on the old domain and on the new one."""
    old = Chain(seed, 0)
    new = Chain(seed, 1)
    before = nats(model, old, seed)
    after = nats(model, new, seed)
    return {"old": before, "new": after}
