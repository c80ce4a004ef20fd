"""Tasks on short strings for claims: small decoders that read an instruction and letters, and answer with letters.

A row is instruction, colon, letters, colon, answer; only the answer is learned from and judged.

Legend: B rows, N letters of a string, T tokens of a row.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixwell.claims.premise import Untestable
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.rng import generator
from mixwell.lm.config import ModelConfig
from mixwell.lm.model import LanguageModel
from mixwell.lm.network import IGNORED

LETTERS, COLON, WORDS = 12, 12, 13  # letters are 0 to 11; words of instructions from 13 on
VOCAB = 40
Task = Callable[[Tensor], Tensor]  # letters [B, N] -> answer [B, N]
TASKS: Mapping[str, Task] = {
    "copy": lambda x: x,
    "reverse": lambda x: x.flip(1),
    "rotate": lambda x: x.roll(-1, 1),
    "sort": lambda x: x.sort(1).values,
    "next": lambda x: (x + 1) % LETTERS,
    "half": lambda x: x.roll(x.shape[1] // 2, 1),
    "mirror": lambda x: LETTERS - 1 - x,
    "descend": lambda x: x.sort(1, descending=True).values,
}

KNOWN = ("copy", "next", "mirror")  # what `base` was trained on, each named by a word


class Rows(NamedTuple):
    """Tokens [B, T], the first token of the answer, and the task of each row [B]."""

    tokens: Tensor
    answer: int
    tasks: Tensor

    @property
    def targets(self) -> Tensor:
        """What each token is followed by, where that is learned from [B, T - 1]."""
        found = self.tokens[:, 1:].clone()
        found[:, : self.answer - 1] = IGNORED
        return found

    def of(self, chosen: Tensor) -> Rows:
        """Some of the rows."""
        tokens, tasks = self.tokens[chosen], self.tasks[chosen]
        return Rows(tokens, self.answer, tasks)


def drawn(names: Sequence[str], count: int, draws: torch.Generator, *, letters: int = 3,
          said: Callable[[Tensor, torch.Generator], Tensor] | None = None) -> Rows:
    """Rows of tasks in equal shares on average; `said` gives the words of their instructions, else one a task."""
    tasks = torch.randint(len(names), (count,), generator=draws)
    x = torch.randint(LETTERS, (count, letters), generator=draws)
    every = torch.stack([TASKS[name](x) for name in names])
    y = every[tasks, torch.arange(count)]
    words = WORDS + tasks[:, None] if said is None else said(tasks, draws)
    return joined(words, x, y, tasks)


def joined(words: Tensor, x: Tensor, y: Tensor, tasks: Tensor) -> Rows:
    """Rows of instructions, letters and answers."""
    colon = torch.full((len(x), 1), COLON)
    parts = words, colon, x, colon, y
    tokens = torch.cat(parts, 1)
    return Rows(tokens, tokens.shape[1] - y.shape[1], tasks)


def model(seed: int, **changes: Any) -> LanguageModel:
    """A decoder of two layers, width 32."""
    sizes: dict[str, Any] = {"vocab_size": VOCAB, "dim": 32, "num_layers": 2, "num_heads": 4,
                             "channel_mixer": {"method": "swiglu", "hidden_dim": 64}}
    config = ModelConfig(**{**sizes, **changes})
    return LanguageModel(config, generator(seed, "strings"))


def fitted(network: Any, batches: Iterable[Rows], lr: float, *, labelled: bool = False) -> Any:
    """Train what asks for gradients, a step a batch, the rate falling to 0 in a line; handed back in evaluation."""
    rows = list(batches)
    moving = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(moving, lr=lr, fused=True)
    network.train()
    for step, batch in enumerate(rows):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / len(rows))
        labels = batch.tasks if labelled else None
        loss = network.loss(batch.tokens[:, :-1], batch.targets, labels_B=labels, step=step)
        total = loss.nats if loss.aux is None else loss.nats + loss.aux
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    return network.eval()


@torch.no_grad()
def right(network: Any, rows: Rows, *, labelled: bool = False) -> Tensor:
    """Whether each row's answer is right in all its letters, bool [B]: what greedy sampling would write."""
    labels = rows.tasks if labelled else None
    before = rows.tokens[:, :-1]
    found = network.eval()(before, labels_B=labels)
    best = found.logits_BTV.argmax(-1)
    written = best[:, rows.answer - 1 :]
    expected = rows.tokens[:, rows.answer :]
    return (written == expected).all(1)


def share_right(network: Any, rows: Rows, **options: Any) -> float:
    """Share of the answers that are right."""
    return float(right(network, rows, **options).float().mean())


@functools.cache
def base(seed: int) -> Checkpoint:
    """A decoder trained on the tasks of `KNOWN`; `Untestable` where it answers under 70 % of them."""
    draws = generator(seed, "known")
    rows = (drawn(KNOWN, 32, draws) for _ in range(250))
    network = fitted(model(seed), rows, 1e-2)
    known = share_right(network, drawn(KNOWN, 256, draws))
    if known < 0.7:
        raise Untestable(f"the base answers {known:.0%} of what it was trained on; expected 70 %")
    found: Checkpoint = network.to_checkpoint()
    return found
